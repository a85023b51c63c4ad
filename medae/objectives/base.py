"""What all objectives share: their settings, and the term of the loss that they build."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import PositiveFloat
from torch import Tensor, nn

from medae.networks.base import Output
from medae.settings import Settings


class Term(nn.Module, ABC):
    """One number, to be made small, about what the network said."""

    @abstractmethod
    def forward(self, output: Output, target: Tensor) -> Tensor:
        """A scalar. `output.prediction` is float32, and as large as the target."""


class ObjectiveSettings(Settings, ABC):
    """One term of the loss; `build` makes it."""

    applies_to: ClassVar[frozenset[str]]
    """Kinds of task whose target it understands."""

    kind: str
    weight: PositiveFloat = 1.0
    """Factor in the total; the term itself is reported without it."""

    @abstractmethod
    def build(self) -> Term:
        """A fresh term."""

    def factor(self, progress: float) -> float:
        """The weight at this part, 0..1, of the training."""
        return self.weight


SEGMENTATION = frozenset({"segmentation"})
RECONSTRUCTION = frozenset({"restoration", "anomaly"})
