"""What pathologists call the colour and the pattern of a tissue, as numbers of the whole image."""

from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.statistics import StatisticScore, densities

LEVELS = (5, 25, 50, 75, 95)
"""Per cent of the voxels below: how much of a channel is how dense."""
CIRCLES = ((8, 1), (16, 2), (24, 3))
"""Points on a circle, and its radius in voxels."""
MOST = 2**16
"""Voxels that tell the densities; more are thinned evenly."""
FAINT = 0.02
"""Where the logarithms of densities begin."""


class Stain(StatisticScore):
    """Of slides in bright field, in 0..1: which stains there are, and how much of them.

    Per channel the logarithms of the optical density's quantiles, and how channels go together (Fisher's z of their
    correlations).
    """

    kind: Literal["stain"] = "stain"

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers."""
        flat = pixels_CSRW.reshape(len(pixels_CSRW), -1)
        found = densities(flat[:, :: -(-flat.shape[1] // MOST)]).astype(np.float64)
        quantiles = np.log(np.maximum(np.percentile(found, LEVELS, axis=1), 0) + FAINT)
        away = found - found.mean(1, keepdims=True)
        unit = away / np.maximum(np.sqrt(np.square(away).sum(1, keepdims=True)), 1e-12)
        together = [float(unit[one] @ unit[other]) for one, other in combinations(range(len(unit)), 2)]
        return np.concatenate([quantiles.ravel(), np.arctanh(np.clip(together, -0.999, 0.999))])


class Patterns(StatisticScore):
    """How often each uniform local binary pattern occurs in the mean over channels, on three circles (Ojala 2002,
    https://doi.org/10.1109/TPAMI.2002.1017623): spots, edges and ends, whichever way they lie and however bright."""

    kind: Literal["patterns"] = "patterns"

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """Square roots of the shares, which all vary about as much."""
        from skimage.feature import local_binary_pattern

        grey = np.rint(255 * pixels_CSRW.mean(0, dtype=np.float64)).astype(np.int32)  # noise below a step is no pattern
        reach = max(radius for _, radius in CIRCLES)
        planes = np.pad(grey, [(0, 0), (reach, reach), (reach, reach)], mode="symmetric")  # black beyond would be seen
        shares: list[NDArray[np.float64]] = []
        for points, radius in CIRCLES:
            codes = np.stack([local_binary_pattern(plane, points, radius, "uniform") for plane in planes])
            inner = codes[:, reach:-reach, reach:-reach].astype(np.intp)
            shares.append(np.bincount(inner.ravel(), minlength=points + 2) / grey.size)
        return np.sqrt(np.concatenate(shares))
