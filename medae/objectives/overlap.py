"""Overlap of predicted and true regions: Dice and its kin, from MONAI.

Predictions are logits (B, 1 + labels, *spatial), targets labels (B, 1, *spatial), int64, 0 = background.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, model_validator
from torch import Tensor

from medae.networks.base import Output
from medae.objectives.base import SEGMENTATION, ObjectiveSettings, Term


class Overlap(ObjectiveSettings):
    """Base: which classes are counted, and over what."""

    applies_to: ClassVar[frozenset[str]] = SEGMENTATION

    background: bool = False
    """Whether the background counts as a class of its own."""
    batch: bool = True
    """One overlap for the whole batch, so that a patch without a label does not shout; False: one for each sample."""

    def _options(self) -> dict[str, Any]:
        return {
            "include_background": self.background,
            "batch": self.batch,
            "softmax": True,
            "to_onehot_y": True,
        }


class DiceCE(Overlap):
    """Soft Dice plus cross entropy: the field's default (nnU-Net, doi:10.1038/s41592-020-01008-z)."""

    kind: Literal["dice_ce"] = "dice_ce"
    dice: NonNegativeFloat = 1.0
    """Share of the Dice."""
    cross_entropy: NonNegativeFloat = 1.0
    """Share of the cross entropy, which always counts the background."""

    @model_validator(mode="after")
    def _some_share(self) -> "DiceCE":
        if self.dice + self.cross_entropy == 0:
            raise ValueError("dice and cross_entropy are both 0, so there is nothing to learn from")
        return self

    def build(self) -> Term:
        from monai.losses import DiceCELoss

        return Regions(DiceCELoss(**self._options(), lambda_dice=self.dice, lambda_ce=self.cross_entropy))


class Dice(Overlap):
    """1 - soft Dice (Milletari 2016, https://arxiv.org/abs/1606.04797), the mean over classes."""

    kind: Literal["dice"] = "dice"

    def build(self) -> Term:
        from monai.losses import DiceLoss

        return Regions(DiceLoss(**self._options()))


class Tversky(Overlap):
    """Dice with its own price for each error (Salehi 2017, https://arxiv.org/abs/1706.05721); .5 and .5 is Dice."""

    kind: Literal["tversky"] = "tversky"
    false_positives: float = Field(default=0.3, gt=0)
    """Price of a voxel too many (alpha)."""
    false_negatives: float = Field(default=0.7, gt=0)
    """Price of a voxel missed (beta)."""

    def build(self) -> Term:
        from monai.losses import TverskyLoss

        return Regions(TverskyLoss(**self._options(), alpha=self.false_positives, beta=self.false_negatives))


class Regions(Term):
    """A loss of MONAI between logits and labels."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, output: Output, target: Tensor) -> Tensor:
        value: Tensor = self.loss(output.prediction, target)
        return value
