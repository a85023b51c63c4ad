"""Anomaly: how badly an autoencoder that knows normal images reproduces this one, and where."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.errors import UsageError
from medae.image import Image
from medae.preparation import Prepared
from medae.tasks.base import Task


class Anomaly(Task):
    """Reconstruction (channels, *spatial) -> residual map (1, *spatial) and one score per image."""

    kind: Literal["anomaly"] = "anomaly"
    residual: Literal["l1", "l2"] = "l2"
    """Per voxel, the mean over channels of |x - reconstruction| or its square, in the network's 0..1 range."""
    reducer: Literal["mean", "max", "top_percent"] = "mean"
    """How the map becomes the score."""
    top_percent: float = Field(default=5, gt=0, le=100)
    """`reducer: top_percent` is the mean of the highest so many per cent of the voxels."""

    @property
    def score_name(self) -> str:
        """The score that is calibrated."""
        return f"{self.residual}_{self.reducer}"

    def channels_out(self, channels_in: int) -> int:
        return channels_in

    def check_threshold(self, threshold: float | None) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise UsageError(
                f"the threshold of an anomaly model is a false-positive rate between 0 and 1, got {threshold:g}"
            )

    def decide(self, output: NDArray[Any], x: NDArray[Any], threshold: float | None) -> NDArray[Any]:
        """The residual map, float32. The threshold is the calibration's: it says nothing about a voxel."""
        difference = x - output
        residual = np.abs(difference) if self.residual == "l1" else np.square(difference)
        mean: NDArray[Any] = residual.mean(axis=0, keepdims=True, dtype=np.float32)
        return mean

    def answer(self, decided: NDArray[Any], prepared: Prepared) -> Image:
        return prepared.restore(decided)

    def scores(self, decided: NDArray[Any], answer: Image, prepared: Prepared) -> dict[str, float]:
        """The score, from the map on the network's grid."""
        return {self.score_name: self._reduce(decided)}

    def _reduce(self, residual: NDArray[Any]) -> float:
        if self.reducer == "mean":
            return float(residual.mean(dtype=np.float64))
        if self.reducer == "max":
            return float(residual.max())
        count = max(1, round(residual.size * self.top_percent / 100))
        highest = np.partition(residual.ravel(), residual.size - count)[-count:]
        return float(highest.mean(dtype=np.float64))
