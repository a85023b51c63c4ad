"""What all tasks share. Arrays are (channels, *spatial); everything here is numpy."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.image import Geometry, Image
from medae.preparation import Prepared
from medae.settings import Settings
from medae.tiles import ReceptiveField


class Task(Settings, ABC):
    """What a model is asked: what its output means, and the answer that is made of it."""

    kind: str

    @abstractmethod
    def channels_out(self, channels_in: int) -> int:
        """How many channels the back end must give."""

    def network_channels(self, channels_in: int) -> int:
        """How many of them are the network's own; what else there is, is made of what it says."""
        return self.channels_out(channels_in)

    def seen(self, field: ReceptiveField) -> ReceptiveField:
        """What an answer depends on, where it looks farther than the network's `field`."""
        return field

    @abstractmethod
    def check_threshold(self, threshold: float | None) -> None:
        """Raises UsageError for a threshold that this task does not know."""

    @abstractmethod
    def decide(self, output: NDArray[Any], x: NDArray[Any], threshold: float | None) -> NDArray[Any]:
        """The network's output for the input x -> the answer, voxel by voxel, in its final type."""

    @abstractmethod
    def answer(self, decided: NDArray[Any], prepared: Prepared) -> Image:
        """The decided values on the network's grid -> the answer in the input's place."""

    @abstractmethod
    def measure(
        self, decided: NDArray[Any], answer: Image, prepared: Prepared, weights: Mapping[str, NDArray[Any]]
    ) -> dict[str, float]:
        """Named numbers about the answer, for the summary. weights: the package's, for those that are fitted."""


class Size(NamedTuple):
    """Of a voxel."""

    unit: str
    value: float


def voxel_size(geometry: Geometry) -> Size | None:
    """mm3 of a voxel, mm2 of a single slice's, also where axes are not at right angles; None where unknown."""
    if geometry.unit != "mm":
        return None
    s, r, w = geometry.affine[:3, :3].T
    area = np.cross(r, w)
    if geometry.shape[0] > 1:
        return Size("mm3", float(abs(s @ area)))
    return Size("mm2", float(np.linalg.norm(area)))


def softmax(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Over the first axis, in float32."""
    exponent = np.exp(logits - logits.max(axis=0, keepdims=True), dtype=np.float32)
    result: NDArray[np.float32] = exponent / exponent.sum(axis=0, keepdims=True)
    return result
