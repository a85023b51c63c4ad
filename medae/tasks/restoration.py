"""Restoration: the image without its damage. Denoising now; other corruptions are other tasks of the same kind."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medae.data.corruption import CorruptionConfig
from medae.errors import UsageError
from medae.image import Image
from medae.preparation import Prepared
from medae.tasks.base import Task


class Restoration(Task):
    """Damaged (channels, *spatial) -> restored, same shape, in the input's own units and place."""

    kind: Literal["restoration"] = "restoration"
    corruption: CorruptionConfig | None = None
    """What is done to clean images in training and evaluation; None: cases come in pairs (image, target)."""

    def channels_out(self, channels_in: int) -> int:
        return channels_in

    def check_threshold(self, threshold: float | None) -> None:
        if threshold is not None:
            raise UsageError("restoration has no threshold; leave it out")

    def decide(self, output: NDArray[Any], x: NDArray[Any], threshold: float | None) -> NDArray[Any]:
        return output.astype(np.float32, copy=False)

    def answer(self, decided: NDArray[Any], prepared: Prepared) -> Image:
        return prepared.restore_intensity(decided)

    def measure(
        self, decided: NDArray[Any], answer: Image, prepared: Prepared, weights: Mapping[str, NDArray[Any]]
    ) -> dict[str, float]:
        """How much was taken away: the root mean square change, in the image's own units."""
        change = answer.pixels - prepared.original.pixels[: answer.channels].astype(np.float32)
        return {"change_rms": float(np.sqrt(np.mean(np.square(change, dtype=np.float64))))}
