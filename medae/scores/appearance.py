"""How an image looks as a whole: what goes wrong in acquisition, storage and transfer, and other kinds of image."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.statistics import Statistics, StatisticScore, laplacian_of

TILES = 6
"""Along a side of a slice: so fine is its unevenness seen."""
LEVELS = (5, 25, 50, 75, 95)
"""Per cent of the voxels below: the shape of the histogram."""
ENDS = (1, 99)
"""Per cent: between these the histogram's range lies."""
MOST = 2**16
"""Voxels that tell the shape of the histogram; more are thinned evenly."""
DARK, QUIET, FEW, STEADY = 1e-4, 1e-8, 1e-4, 0.05
"""Where the logarithms of light, energy, shares and unevenness begin."""


class Appearance(StatisticScore):
    """How far the looks of the image are from those of normal images, each number in units of its standard deviation.

    Per channel what `statistics` counts. Of the mean over channels: the shape of the histogram, and the shares of
    voxels at its two ends (saturation); how much sharper rows are than columns (motion); the shares of lines that hold
    one value and of neighbours alike, the largest jump between lines, and the quietest line (missing strips,
    erased parts); brightness and sharpness tile by tile, as a surface over the slice and what departs from it
    (illumination, coil fields).
    """

    kind: Literal["appearance"] = "appearance"

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers."""
        grey = pixels_CSRW.mean(0, dtype=np.float32)
        numbers = [*_histogram(grey), *_lines(grey), *_surfaces(grey)]
        return np.concatenate([Statistics().of_image(pixels_CSRW), numbers])


def _histogram(grey: NDArray[np.float32]) -> Iterator[float]:
    low, high = grey.min(), grey.max()
    for end in (low, high):
        yield float(np.log10((grey == end).mean() + FEW))
    some = grey.ravel()[:: -(-grey.size // MOST)]
    first, *levels, last = np.percentile(some, (ENDS[0], *LEVELS, ENDS[1])).tolist()
    yield from ((level - first) / max(last - first, 1e-6) for level in levels)
    away = (grey - grey.mean()) / (grey.std() + 1e-6)
    squares = away * away
    yield float(np.arcsinh((squares * away).mean(dtype=np.float64)))
    yield float(np.log((squares * squares).mean(dtype=np.float64) + 1e-3))


def _lines(grey: NDArray[np.float32]) -> Iterator[float]:
    """What differs between rows and columns, and what is wrong with some of them."""
    down, right = np.diff(grey, axis=1), np.diff(grey, axis=2)
    energies = [np.square(right).mean(2) + QUIET, np.square(down).mean(1) + QUIET]  # of each row, of each column
    yield float(0.5 * np.log(np.square(down).mean() + QUIET) - 0.5 * np.log(np.square(right).mean() + QUIET))
    yield float(np.log10(((down == 0).mean() + (right == 0).mean()) / 2 + 10 * FEW))
    constant = max(float((energy == QUIET).mean()) for energy in energies)
    yield float(np.log10(constant + 100 * FEW))
    jumps = [np.abs(np.diff(grey.mean(axis), axis=1)) + DARK for axis in (2, 1)]
    yield max(float(np.log(jump.max(1) / np.median(jump, 1)).max()) for jump in jumps)
    yield max(float(np.log(np.median(energy, 1) / energy.min(1)).max()) for energy in energies)


def _surfaces(grey: NDArray[np.float32]) -> Iterator[float]:
    """Of light and of sharpness: the slope across the slice, how far the surface rises and falls, what it leaves."""
    tiles = min(TILES, *grey.shape[1:])
    light = np.log(_by_tile(grey - grey.min(), tiles) + DARK)
    edges = np.stack([laplacian_of(np.diff(plane, axis=0), np.diff(plane, axis=1)) for plane in grey])
    sharp = 0.5 * np.log(_by_tile(np.square(edges), tiles) + QUIET)
    basis, inverse = _surface(tiles)
    for seen in (light, sharp):
        flat = seen.reshape(len(seen), -1)
        weights = flat @ inverse.T
        fitted = weights @ basis.T
        found = np.hypot(weights[:, 1], weights[:, 2]), fitted.std(1), (flat - fitted).std(1)
        yield from (float(np.log(each.mean() + STEADY)) for each in found)


def _by_tile(values: NDArray[Any], tiles: int) -> NDArray[np.float64]:
    """(S, R, W) -> (S, tiles, tiles), the means."""
    edges = [np.linspace(0, length, tiles, endpoint=False).astype(int) for length in values.shape[1:]]
    sums = np.add.reduceat(np.add.reduceat(values, edges[0], axis=1, dtype=np.float64), edges[1], axis=2)
    sizes = [np.diff([*edge, length]) for edge, length in zip(edges, values.shape[1:], strict=True)]
    means: NDArray[np.float64] = sums / np.outer(*sizes)
    return means


@lru_cache(maxsize=TILES)
def _surface(tiles: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Polynomials of the second order over a grid (tiles**2, 5), and what fits them."""
    at = np.linspace(-1, 1, tiles)
    row, column = (axis.ravel() for axis in np.meshgrid(at, at, indexing="ij"))
    basis = np.stack([np.ones_like(row), row, column, row**2 + column**2, row * column], axis=1)
    return basis, np.linalg.pinv(basis)
