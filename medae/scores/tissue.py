"""What pathologists call the colour and the pattern of a tissue, as numbers of the whole image."""

from collections.abc import Callable
from itertools import combinations
from math import cos, pi, sin
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.statistics import StatisticScore, densities, haematoxylin

LEVELS = (5, 25, 50, 75, 95)
"""Per cent of the voxels below: how much of a channel is how dense."""
CIRCLES = ((8, 1), (16, 2), (24, 3))
"""Points on a circle, and its radius in voxels."""
MOST = 2**15
"""Voxels that tell densities and patterns; more are thinned evenly, patterns by rows."""
FAINT = 0.02
"""Where the logarithms of densities begin."""
PARTS = 2**10
"""Of the way from voxel to voxel, in which a point's place is told: all values are whole numbers, which float32 adds
without an error up to 64 times white, so that what is equal is found equal."""
PALE = 0.002
"""Of haematoxylin, of which a nucleus has 0.05 to 0.1: the densest of an image has at least so much."""


class Stain(StatisticScore):
    """Of slides in bright field, in 0..1: which stains there are, and how much of them.

    Per channel the logarithms of the optical density's quantiles, and how channels go together (Fisher's z of their
    correlations).
    """

    kind: Literal["stain"] = "stain"

    @property
    def of_light(self) -> bool:
        return True

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers."""
        found = densities(_thinned(pixels_CSRW)).astype(np.float64)
        quantiles = np.log(np.maximum(np.percentile(found, LEVELS, axis=1), 0) + FAINT)
        away = found - found.mean(1, keepdims=True)
        unit = away / np.maximum(np.sqrt(np.square(away).sum(1, keepdims=True)), 1e-12)
        together = [float(unit[one] @ unit[other]) for one, other in combinations(range(len(unit)), 2)]
        return np.concatenate([quantiles.ravel(), np.arctanh(np.clip(together, -0.999, 0.999))])


class Haematoxylin(StatisticScore):
    """Of slides in bright field, in 0..1: how much of the image holds how much of the nuclei's stain.

    Its quantiles by the densest, and so the same however strongly a slide is stained: pale or filled between the
    nuclei, few nuclei or many. Of images that are not RGB, those of the mean optical density over channels.
    """

    kind: Literal["haematoxylin"] = "haematoxylin"

    @property
    def of_light(self) -> bool:
        return True

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers, 0..1."""
        some = _thinned(pixels_CSRW)
        stain = haematoxylin(some) if len(some) == 3 else densities(some).mean(0, dtype=np.float64)
        *levels, densest = np.percentile(stain, LEVELS)
        return np.array(levels, np.float64) / max(float(densest), PALE)


class Patterns(StatisticScore):
    """How often each uniform local binary pattern occurs in the mean over channels, on three circles (Ojala 2002,
    https://doi.org/10.1109/TPAMI.2002.1017623): spots, edges and ends, whichever way they lie and however bright."""

    kind: Literal["patterns"] = "patterns"

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """Square roots of the shares, which all vary about as much."""
        grey = _grey_levels(pixels_CSRW)
        reach = max(radius for _, radius in CIRCLES)
        padded = np.pad(grey, [(0, 0), (reach, reach), (reach, reach)], mode="symmetric")  # black beyond would be seen
        every = -(-grey.size // MOST)
        rows = np.arange(padded.size // padded.shape[2]).reshape(padded.shape[:2])[:, reach:-reach].ravel()
        lines, told = padded.reshape(-1, padded.shape[2]), rows[every // 2 :: every]
        planes = {away: lines[told + away] for away in range(-reach, reach + 1)}

        def moved(rows: int, columns: int) -> NDArray[np.float32]:
            found: NDArray[np.float32] = planes[rows][:, reach + columns : lines.shape[1] - reach + columns]
            return found

        result: NDArray[np.float64] = np.sqrt(np.concatenate([_shares(moved, *circle) for circle in CIRCLES]))
        return result


def _grey_levels(pixels_CSRW: NDArray[Any]) -> NDArray[np.float32]:
    """The mean over channels in steps of eight bits: noise below one is no pattern."""
    mean: NDArray[np.float32] = np.array(pixels_CSRW[0], np.float32)
    for channel in pixels_CSRW[1:]:
        mean += channel
    mean *= np.float32(255 / len(pixels_CSRW))
    np.rint(mean, out=mean)
    return mean


Moved = Callable[[int, int], NDArray[np.float32]]
"""The same voxels of an image that is moved by rows and columns."""


def _shares(moved: Moved, points: int, radius: int) -> NDArray[np.float64]:
    """Of the patterns with 0, 1, ... points that are as bright as the middle, in one arc, and of all others.

    Arcs are counted from the first point to the last, without the step between these two, as by scikit-image's
    `local_binary_pattern`, whose codes these are but for ties.
    """
    middle = moved(0, 0) * np.float32(PARTS)
    ones, steps = np.zeros(middle.shape, np.uint8), np.zeros(middle.shape, np.uint8)
    before = None
    for place in _places(points, radius):
        bright = (_between(moved, *place) >= middle).view(np.uint8)
        ones += bright
        if before is not None:
            steps += before ^ bright
        before = bright
    codes = np.where(steps <= 2, ones, np.uint8(points + 1))
    return np.bincount(codes.ravel(), minlength=points + 2) / codes.size


def _places(points: int, radius: int) -> list[tuple[int, int, int, int]]:
    """Of the points of a circle: the row and column before them, and by how many PARTS they are beyond these."""
    found = []
    for point in range(points):
        angle = 2 * pi * point / points
        row, column = round(-radius * sin(angle) * PARTS), round(radius * cos(angle) * PARTS)
        found.append((row // PARTS, column // PARTS, row % PARTS, column % PARTS))
    return found


def _between(moved: Moved, row: int, column: int, down: int, right: int) -> NDArray[np.float32]:
    """Bilinear, times PARTS; of equal voxels exactly theirs."""
    both = round(down * right / PARTS)
    shares = {(0, 0): PARTS - down - right + both, (0, 1): right - both, (1, 0): down - both, (1, 1): both}
    terms = [moved(row + at[0], column + at[1]) * np.float32(share) for at, share in shares.items() if share]
    for term in terms[1:]:
        terms[0] += term
    return terms[0]


def _thinned(pixels_CSRW: NDArray[Any]) -> NDArray[Any]:
    """(C, n), evenly, at most MOST."""
    flat = pixels_CSRW.reshape(len(pixels_CSRW), -1)
    return flat[:, :: -(-flat.shape[1] // MOST)]
