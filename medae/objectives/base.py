"""What all objectives share: their settings, and the term of the loss that they build."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
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
    in_range: ClassVar[bool] = False
    """Whether it means nothing but for values in 0..1."""
    compares: ClassVar[bool] = True
    """Whether it compares the prediction with the target; without any that does, nothing is learnt."""

    kind: str
    weight: PositiveFloat = 1.0
    """Factor in the total; the term itself is reported without it."""

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        """What the network must have: its attributes (`latent`, or a setting such as `decoder`) -> the values that
        fit."""
        return {}

    @property
    def least(self) -> int:
        """Voxels that a patch must have along each axis."""
        return 1

    @property
    def described(self) -> str:
        """In words, for the model card."""
        return f"{self.weight:g} x {self.kind}"

    @abstractmethod
    def build(self) -> Term:
        """A fresh term. Raises SettingsError where it needs a file that does not hold."""

    def factor(self, progress: float) -> float:
        """The weight at this part, 0..1, of the training."""
        return self.weight


SEGMENTATION = frozenset({"segmentation"})
RECONSTRUCTION = frozenset({"restoration", "anomaly"})
