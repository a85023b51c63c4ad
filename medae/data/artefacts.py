"""What goes wrong with a slide, drawn on a tile of it: ink, a fold, foreign tissue, lost focus.

Tiles are (R, W, 3) uint8, bright-field; each function returns a new one and takes all its chances from `rng`. They
imitate the physics, not the look, and mark a part of the tile only, as the real ones do; a model that finds these has
shown that it finds these, not every artefact there is.
"""

import numpy as np
from numpy.typing import NDArray

Tile = NDArray[np.uint8]
Weight = NDArray[np.float64]
"""(R, W) in 0..1: where, and how much."""

_MARKERS = np.array([(20, 30, 110), (10, 95, 55), (25, 25, 30)]) / 255
"""Blue, green and black: what slides are marked with."""


def ink(tile: Tile, rng: np.random.Generator) -> Tile:
    """A stroke of a marker pen across the tile, 20..40 % of its width, 80..95 % opaque."""
    size = min(tile.shape[:2])
    stroke = _band(tile.shape, size * rng.uniform(0.2, 0.4), edge=1.0, rng=rng)
    opacity = stroke * rng.uniform(0.8, 0.95)
    colour = _MARKERS[rng.integers(len(_MARKERS))]
    return _picture(tile / 255 * (1 - opacity[..., None]) + colour * opacity[..., None])


def fold(tile: Tile, rng: np.random.Generator) -> Tile:
    """A pleat across the tile, 25..50 % of its width: the tissue three times over itself.

    Light passes through all three layers, so their transmittances multiply (Beer and Lambert).
    """
    size = min(tile.shape[:2])
    pleat = _band(tile.shape, size * rng.uniform(0.25, 0.5), edge=0.7, rng=rng)
    light = np.clip(tile / 255, 1 / 255, 1)
    axis = int(rng.integers(2))
    shift = int(rng.integers(size // 4, size // 2))
    layers = light * np.flip(light, axis) * np.roll(light, shift, axis)
    return _picture(light * (1 - pleat[..., None]) + layers * pleat[..., None])


def foreign(tile: Tile, tissue: Tile, rng: np.random.Generator) -> Tile:
    """A piece of another specimen, 35..60 % of the tile's area, cut out of `tissue` at a random place."""
    rows, columns = tile.shape[:2]
    top, left = (int(rng.integers(have - need + 1)) for have, need in zip(tissue.shape, (rows, columns), strict=False))
    piece = tissue[top : top + rows, left : left + columns]
    where = _blob((rows, columns), rng.uniform(0.35, 0.6), rng)[..., None]
    return _picture(tile / 255 * (1 - where) + piece / 255 * where)


def blur(tile: Tile, rng: np.random.Generator) -> Tile:
    """Out of focus: gaussian of 1.5 to 3 pixels over the whole tile."""
    from scipy.ndimage import gaussian_filter

    sigma = rng.uniform(1.5, 3)
    return _picture(gaussian_filter(tile / 255, (sigma, sigma, 0), mode="reflect"))


def _band(shape: tuple[int, ...], width: float, *, edge: float, rng: np.random.Generator) -> Weight:
    """A straight band of any direction through the middle half of the tile, its edges `edge` pixels soft."""
    rows, columns = shape[:2]
    angle = rng.uniform(0, np.pi)
    middle = np.array([rows, columns]) * rng.uniform(0.25, 0.75, 2)
    row, column = np.mgrid[:rows, :columns]
    distance = np.abs((row - middle[0]) * np.cos(angle) + (column - middle[1]) * np.sin(angle))
    band: Weight = np.clip((width / 2 - distance) / edge + 0.5, 0, 1)
    return band


def _blob(shape: tuple[int, int], part: float, rng: np.random.Generator) -> Weight:
    """A smooth irregular region of `part` of the area, its edge about a pixel soft."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape), min(shape) / 4, mode="reflect")
    blob: Weight = gaussian_filter((field > np.quantile(field, 1 - part)).astype(float), 0.7)
    return blob


def _picture(light: NDArray[np.float64]) -> Tile:
    return np.rint(np.clip(light, 0, 1) * 255).astype(np.uint8)
