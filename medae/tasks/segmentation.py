"""Segmentation: a label for every voxel."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from medae.errors import UsageError
from medae.image import Image
from medae.io.answer import Label
from medae.preparation import Prepared
from medae.tasks.base import Task, softmax, voxel_size


class Segmentation(Task):
    """Logits (1 + labels, *spatial) -> labels (1, *spatial), 0 = background."""

    kind: Literal["segmentation"] = "segmentation"
    labels: tuple[Label, ...] = Field(min_length=1, max_length=65_534)
    """In the order of their values 1, 2, ...; the background 0 is implicit."""

    @field_validator("labels")
    @classmethod
    def _names_differ(cls, labels: tuple[Label, ...]) -> tuple[Label, ...]:
        names = [label.name for label in labels]
        if len(set(names)) < len(names):
            raise ValueError(f"label names must differ, got {names}")
        return labels

    def channels_out(self, channels_in: int) -> int:
        return 1 + len(self.labels)

    def check_threshold(self, threshold: float | None) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise UsageError(f"the threshold of a segmentation is a probability between 0 and 1, got {threshold:g}")

    def decide(self, output: NDArray[Any], x: NDArray[Any], threshold: float | None) -> NDArray[Any]:
        """The likeliest label; with a threshold: the likeliest foreground label where P(foreground) >= threshold."""
        dtype = np.uint8 if len(self.labels) < 256 else np.uint16
        if threshold is not None:
            foreground = 1 - softmax(output)[:1] >= threshold
            return np.where(foreground, 1 + _likeliest(output[1:], dtype), 0).astype(dtype)
        if len(self.labels) == 1:
            return (output[1:] > output[:1]).astype(dtype)
        return _likeliest(output, dtype)

    def probabilities(self, output: NDArray[Any]) -> NDArray[np.float32]:
        """(labels, *spatial) in 0..1, without the background."""
        return softmax(output)[1:]

    def answer(self, decided: NDArray[Any], prepared: Prepared) -> Image:
        return prepared.restore(decided, labels=True)

    def measure(
        self, decided: NDArray[Any], answer: Image, prepared: Prepared, weights: Mapping[str, NDArray[Any]]
    ) -> dict[str, float]:
        """Per label: its voxels, and its area or volume where the image says how large a voxel is."""
        length = 1 + len(self.labels)
        # by slices: bincount makes eight bytes of each voxel
        counts = sum(np.bincount(plane.ravel(), minlength=length) for plane in answer.pixels[0])
        assert isinstance(counts, np.ndarray), "an image has at least one slice"
        size = voxel_size(answer.geometry)
        scores: dict[str, float] = {}
        for label, count in zip(self.labels, counts[1:].tolist(), strict=True):
            scores[f"{label.name}_voxels"] = float(count)
            if size is not None:
                scores[f"{label.name}_{size.unit}"] = count * size.value
        return scores


def _likeliest(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """(labels, *spatial) -> (1, *spatial): argmax over labels, in half the time of numpy's."""
    best = values[:1].copy()
    labels = np.zeros(best.shape, dtype)
    for label in range(1, len(values)):
        candidate = values[label : label + 1]
        np.putmask(labels, candidate > best, dtype(label))
        np.maximum(best, candidate, out=best)
    return labels
