"""What pathologists call the colour and the pattern of a tissue, as numbers of the whole image."""

from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.statistics import StatisticScore, densities, haematoxylin

LEVELS = (5, 25, 50, 75, 95)
"""Per cent of the voxels below: how much of a channel is how dense."""
CIRCLES = ((8, 1), (16, 2), (24, 3))
"""Points on a circle, and its radius in voxels."""
MOST = 2**16
"""Voxels that tell the densities; more are thinned evenly."""
FAINT = 0.02
"""Where the logarithms of densities begin."""
PALE = 0.002
"""Of haematoxylin, of which a nucleus has 0.05 to 0.1: the densest of an image has at least so much."""


class Stain(StatisticScore):
    """Of slides in bright field, in 0..1: which stains there are, and how much of them.

    Per channel the logarithms of the optical density's quantiles, and how channels go together (Fisher's z of their
    correlations).
    """

    kind: Literal["stain"] = "stain"

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


def _thinned(pixels_CSRW: NDArray[Any]) -> NDArray[Any]:
    """(C, n), evenly, at most MOST."""
    flat = pixels_CSRW.reshape(len(pixels_CSRW), -1)
    return flat[:, :: -(-flat.shape[1] // MOST)]
