"""What goes wrong with a slide, drawn on a tile of it: ink, a fold, foreign tissue, a bubble; lost focus, too much
compression, another stain.

Tiles are (R, W, 3) uint8, bright-field; each function returns a new one and takes all its chances from `rng`. They
imitate the physics, not the look; the first four mark a part of the tile only, as the real ones do. A model that finds
these has shown that it finds these, not every artefact there is.
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


def bubble(tile: Tile, rng: np.random.Generator) -> Tile:
    """Air under the cover glass, 40..70 % of the tile wide: inside out of focus and paler, its rim a dark ring."""
    from scipy.ndimage import gaussian_filter

    rows, columns = tile.shape[:2]
    size = min(rows, columns)
    radius = size * rng.uniform(0.2, 0.35)
    middle = np.array([rows, columns]) * rng.uniform(0.3, 0.7, 2)
    row, column = np.mgrid[:rows, :columns]
    distance = np.hypot(row - middle[0], column - middle[1])
    inside = np.clip(radius - distance + 0.5, 0, 1)[..., None]
    rim = np.exp(-0.5 * ((distance - radius) / max(1.0, 0.06 * size)) ** 2)[..., None]
    light = tile / 255
    air = 0.35 * gaussian_filter(light, (2, 2, 0), mode="reflect") + 0.65 * rng.uniform(0.85, 0.95)
    return _picture((light * (1 - inside) + air * inside) * (1 - rng.uniform(0.55, 0.8) * rim))


def compressed(tile: Tile, rng: np.random.Generator) -> Tile:
    """JPEG of quality 3 to 10 with halved colour, as a thumbnail that was taken for the slide."""
    import io

    from PIL import Image as Pillow

    stream = io.BytesIO()
    Pillow.fromarray(tile).save(stream, "JPEG", quality=int(rng.integers(3, 11)), subsampling=2)
    return np.asarray(Pillow.open(stream))


def stain_shift(tile: Tile, rng: np.random.Generator) -> Tile:
    """One stain half or twice as strong as it should be: optical densities of its colour (Ruifrok 2001) are scaled."""
    from skimage.color import hed2rgb, rgb2hed

    stains = rgb2hed(tile)
    which = int(rng.choice([0, 2]))
    stains[..., which] *= rng.choice([0.4, 2.2]) * rng.uniform(0.9, 1.1)
    return _picture(hed2rgb(stains))


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
