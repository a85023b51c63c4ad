"""How an image looks as a whole: what goes wrong in acquisition, storage and transfer, and other kinds of image."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.statistics import Statistics, StatisticScore, laplacian_of, product_sum

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
        down, right = grey[:, 1:] - grey[:, :-1], grey[..., 1:] - grey[..., :-1]
        numbers = [*_histogram(grey), *_lines(grey, down, right), *_surfaces(grey, down, right)]
        return np.concatenate([Statistics().of_image(pixels_CSRW), numbers])


def _histogram(grey: NDArray[np.float32]) -> Iterator[float]:
    for end in (grey.min(), grey.max()):
        yield float(np.log10(np.count_nonzero(grey == end) / grey.size + FEW))
    some = np.sort(grey.ravel()[:: -(-grey.size // MOST)])
    at = np.array((ENDS[0], *LEVELS, ENDS[1])) / 100 * (len(some) - 1)
    first, *levels, last = np.interp(at, np.arange(len(some)), some).tolist()
    yield from ((level - first) / max(last - first, 1e-6) for level in levels)
    away = grey - grey.mean()
    squares = away * away
    deviation = np.sqrt(squares.mean(dtype=np.float64)) + 1e-6
    yield float(np.arcsinh(product_sum(squares, away) / grey.size / deviation**3))
    yield float(np.log(product_sum(squares, squares) / grey.size / deviation**4 + 1e-3))


def _lines(grey: NDArray[np.float32], down: NDArray[np.float32], right: NDArray[np.float32]) -> Iterator[float]:
    """What differs between rows and columns, and what is wrong with some of them. down, right: the differences of
    neighbours along columns and rows."""
    sums = [np.einsum("srw,srw->sr", right, right), np.einsum("srw,srw->sw", down, down)]  # of each row, each column
    totals = [each.sum(dtype=np.float64) / edges.size + QUIET for each, edges in zip(sums, (right, down), strict=True)]
    energies = [sums[0] / right.shape[2] + QUIET, sums[1] / down.shape[1] + QUIET]
    yield float(0.5 * np.log(totals[1]) - 0.5 * np.log(totals[0]))
    alike = sum(1 - np.count_nonzero(edges) / edges.size for edges in (down, right)) / 2
    yield float(np.log10(alike + 10 * FEW))
    constant = max(float((energy == QUIET).mean()) for energy in energies)
    yield float(np.log10(constant + 100 * FEW))
    jumps = [np.abs(np.diff(grey.mean(axis), axis=1)) + DARK for axis in (2, 1)]
    yield max(float(np.log(jump.max(1) / np.median(jump, 1)).max()) for jump in jumps)
    yield max(float(np.log(np.median(energy, 1) / energy.min(1)).max()) for energy in energies)


def _surfaces(grey: NDArray[np.float32], down: NDArray[np.float32], right: NDArray[np.float32]) -> Iterator[float]:
    """Of light and of sharpness: the slope across the slice, how far the surface rises and falls, what it leaves."""
    tiles = min(TILES, *grey.shape[1:])
    light = np.log(_by_tile(grey, tiles) - float(grey.min()) + DARK)
    edges = np.stack([laplacian_of(*differences) for differences in zip(down, right, strict=True)])
    sharp = 0.5 * np.log(_by_tile(np.square(edges, out=edges), tiles) + QUIET)
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
    rows = np.add.reduceat(values, edges[1], axis=2, dtype=np.float64)  # these first: rows lie together
    sums = np.add.reduceat(rows, edges[0], axis=1)
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
