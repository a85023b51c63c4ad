"""Simple statistics of the image taken together: what no reconstruction tells, such as lost sharpness."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from medae.scores.base import Found, Score
from medae.scores.baselines import Gaussian, laplacian


class Statistics(Score):
    """Squared Mahalanobis distance of an image's statistics to those of normal images, by their number: 1 is usual.

    Per channel: the mean, the logarithm of the standard deviation, and at three scales those of the Laplacian's
    energy; unlike in either direction is far away.
    """

    fits: ClassVar[bool] = True

    kind: Literal["statistics"] = "statistics"

    def default_name(self) -> str:
        return "statistics"

    def value(self, found: Found) -> float:
        parts = found.parts(self.key)
        away = (of_image(found.pixels) - parts["mean"]) / parts["deviation"]
        return float(np.square(parts["whitening"] @ away).mean())

    def fit(self, images: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """What is kept of normal images (C, S, R, W)."""
        gaussian = Gaussian.fit(np.stack([of_image(image) for image in images]))
        return {"mean": gaussian.mean, "deviation": gaussian.deviation, "whitening": gaussian.whitening}


def of_image(pixels_CSRW: NDArray[Any], scales: int = 3) -> NDArray[np.float64]:
    """The statistics, channel by channel."""
    values = pixels_CSRW.astype(np.float64)
    rows = [values.mean((1, 2, 3)), np.log(values.std((1, 2, 3)) + 1e-4)]
    for scale in range(scales):
        energy = np.square(laplacian(values)).mean((1, 2, 3))
        rows.append(0.5 * np.log(energy + 1e-8))
        if scale + 1 < scales:
            values = _halved(values)
    return np.stack(rows).ravel()


def _halved(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half as many rows and columns, each the mean of two; the last of an odd number is left out."""
    rows, columns = (max(length // 2, 1) for length in values.shape[-2:])
    if min(values.shape[-2:]) < 2:
        return values
    kept = values[..., : 2 * rows, : 2 * columns].reshape(*values.shape[:-2], rows, 2, columns, 2)
    result: NDArray[np.float64] = kept.mean((-3, -1))
    return result
