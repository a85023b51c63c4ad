"""Likeness as a network, or an eye, sees it: a loss that does not reward the average of all that is likely."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor

from medae.features import describe, feature_distance
from medae.networks.base import Output
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term


class Perceptual(ObjectiveSettings):
    """Mean squared difference of fixed features (Johnson 2016, https://arxiv.org/abs/1603.08155).

    Where several sharp images are equally likely, `mse` is smallest for their blurred mean. Features do not vary with
    every shift of a texture, so that a sharp answer costs less. Give it beside `mse` or `l1`, which keep the values.
    """

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["perceptual"] = "perceptual"
    weight: PositiveFloat = 0.1
    """Factor in the total; the term itself is reported without it."""
    weights: Path | None = None
    """VGG16's, in torchvision's format (.pth or .safetensors). Without them: fixed filters (Gabor energy and blur at
    three scales), which need no file. The model card says which."""

    def build(self) -> Term:
        return _Perceptual(self.weights)

    @property
    def described(self) -> str:
        return f"{super().described} by {describe(self.weights)}"


class _Perceptual(Term):
    def __init__(self, weights: Path | None) -> None:
        super().__init__()
        self.distance = feature_distance(weights)

    def forward(self, output: Output, target: Tensor) -> Tensor:
        distance: Tensor = self.distance(output.prediction, target)
        return distance
