"""Simple statistics of the image taken together: what no reconstruction tells, such as lost sharpness."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.scores.base import Found, Score
from medae.scores.baselines import Gaussian, nearest

DARKEST = 1 / 256
"""No light at all would have an infinite optical density."""
NEIGHBOURS = 5


class Statistics(Score):
    """How far an image's statistics are from those of normal images; unlike in either direction is far away.

    Per channel the logarithms of the energy of the Laplacian and of the gradient at each scale and, unless they do not
    count, the mean and the logarithm of the standard deviation.
    """

    fits: ClassVar[bool] = True

    kind: Literal["statistics"] = "statistics"
    scales: int = Field(default=3, ge=1, le=6)
    """Each halves the resolution."""
    intensity: bool = True
    """Whether mean and standard deviation count."""
    optical_density: bool = False
    """Of slides in bright field, in 0..1: the amount of stain, -log of the light, instead of the light itself."""
    by: Literal["mahalanobis", "neighbours"] = "mahalanobis"
    """Squared Mahalanobis distance by the number of statistics (1 is usual), or the mean distance to the five nearest
    normal images, each statistic in units of its standard deviation."""

    def default_name(self) -> str:
        return "statistics"

    def value(self, found: Found) -> float:
        parts = found.parts(self.key)
        away = (self.of_image(found.pixels) - parts["mean"]) / parts["deviation"]
        if self.by == "neighbours":
            return nearest(away, parts["rows"].astype(np.float64), NEIGHBOURS)
        return float(np.square(parts["whitening"] @ away).mean())

    def fit(self, images: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What is kept of normal images (C, S, R, W)."""
        gaussian = Gaussian.fit(np.stack([self.of_image(image) for image in images]))
        kept = {"mean": gaussian.mean, "deviation": gaussian.deviation}
        return kept | ({"rows": gaussian.rows} if self.by == "neighbours" else {"whitening": gaussian.whitening})

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The statistics, channel by channel."""
        values = pixels_CSRW.astype(np.float32)
        if self.optical_density:
            values = -np.log(np.maximum(values, 0) * (1 - DARKEST) + DARKEST)
        rows = []
        if self.intensity:
            rows = [values.mean((1, 2, 3)), np.log(values.std((1, 2, 3)) + 1e-4)]
        for scale in range(self.scales):
            rows += [0.5 * np.log(energy + 1e-8) for energy in _energies(values)]
            if scale + 1 < self.scales:
                values = _halved(values)
        return np.stack(rows).astype(np.float64).ravel()


def _energies(values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean squares of the four neighbours' Laplacian and of the differences of neighbours, channel by channel."""
    down = np.diff(values, axis=2, append=values[:, :, -1:])
    right = np.diff(values, axis=3, append=values[..., -1:])
    laplacian = down + right
    laplacian[:, :, 1:] -= down[:, :, :-1]
    laplacian[..., 1:] -= right[..., :-1]
    gradient = _mean_square(down) + _mean_square(right)
    return _mean_square(laplacian), gradient


def _mean_square(values: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = values.reshape(len(values), -1)
    squares: NDArray[np.float64] = np.einsum("cv,cv->c", flat, flat, dtype=np.float64) / flat.shape[1]
    return squares


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half as many rows and columns, each the mean of two; the last of an odd number is left out."""
    if min(values.shape[-2:]) < 2:
        return values
    rows, columns = (length // 2 * 2 for length in values.shape[-2:])
    kept = values[..., :rows, :columns]
    quarter = kept[..., ::2, ::2] + kept[..., 1::2, ::2] + kept[..., ::2, 1::2] + kept[..., 1::2, 1::2]
    result: NDArray[np.float32] = quarter * np.float32(0.25)
    return result
