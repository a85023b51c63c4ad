"""Each voxel's class by itself: cross entropy and its focal variant.

Predictions are logits (B, 1 + labels, *spatial), targets labels (B, 1, *spatial), int64, 0 = background. The background
always counts: a softmax without one of its classes is another distribution (MONAI's focal loss without background takes
it over the rest, which for one label is always 1, and its loss always 0).
"""

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor
from torch.nn import functional

from medae.networks.base import Output
from medae.objectives.base import SEGMENTATION, ObjectiveSettings, Term
from medae.objectives.overlap import Regions


class CrossEntropy(ObjectiveSettings):
    """Mean over voxels of -log P(true class)."""

    applies_to: ClassVar[frozenset[str]] = SEGMENTATION

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(default=0, ge=0, lt=1)
    """This part of each true class is spread over all classes: for labels that are not sure of themselves."""

    def build(self) -> Term:
        return _CrossEntropy(self.label_smoothing)


class Focal(ObjectiveSettings):
    """Cross entropy with easy voxels turned down by (1 - P)^gamma (Lin 2017, https://arxiv.org/abs/1708.02002).

    The mean over voxels and classes, as MONAI takes it: 1 / (1 + labels) of the cross entropy at gamma 0.
    """

    applies_to: ClassVar[frozenset[str]] = SEGMENTATION

    kind: Literal["focal"] = "focal"
    gamma: NonNegativeFloat = 2.0

    def build(self) -> Term:
        from monai.losses import FocalLoss

        return Regions(FocalLoss(include_background=True, to_onehot_y=True, use_softmax=True, gamma=self.gamma))


class _CrossEntropy(Term):
    def __init__(self, label_smoothing: float) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, output: Output, target: Tensor) -> Tensor:
        return functional.cross_entropy(output.prediction, target[:, 0], label_smoothing=self.label_smoothing)
