"""Objectives: what training makes small; a closed union by `kind`, one file per family."""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.objectives.base import ObjectiveSettings, Term
from medae.objectives.commitment import Commitment
from medae.objectives.divergence import KL
from medae.objectives.fidelity import L1, MSE, SSIM
from medae.objectives.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood, LikelihoodTerm
from medae.objectives.overlap import Dice, DiceCE, Tversky
from medae.objectives.perceptual import Perceptual
from medae.objectives.sparsity import SparseKL, SparseL1, SparseL2
from medae.objectives.voxels import CrossEntropy, Focal

ObjectiveConfig = Annotated[
    DiceCE
    | Dice
    | CrossEntropy
    | Focal
    | Tversky
    | MSE
    | L1
    | SSIM
    | Perceptual
    | GaussianLikelihood
    | BernoulliLikelihood
    | CategoricalLikelihood
    | KL
    | Commitment
    | SparseKL
    | SparseL1
    | SparseL2,
    Field(discriminator="kind"),
]


class Loss(nn.Module):
    """The weighted sum of the objectives' terms. Raises SettingsError where a kind is there twice."""

    def __init__(self, objectives: Sequence[ObjectiveSettings]) -> None:
        super().__init__()
        self.objectives = tuple(objectives)
        kinds = [objective.kind for objective in objectives]
        if len(set(kinds)) < len(kinds):
            raise SettingsError(f"terms are reported by kind, so each kind comes once; got {', '.join(kinds)}")
        self.terms = nn.ModuleDict({objective.kind: objective.build() for objective in objectives})

    def forward(self, output: Output, target: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """-> (total, terms by kind, detached and without their weights).

        target: labels (B, 1, *spatial), int64, or an image (B, C, *spatial). progress: 0..1 of the whole training.
        Computed in float32 whatever the network computes in: sums over patches overflow half precision.
        """
        with torch.autocast(target.device.type, enabled=False):
            output = output._replace(prediction=output.prediction.float())
            terms = {name: term(output, target) for name, term in self.terms.items()}
            total = torch.stack([each.factor(progress) * terms[each.kind] for each in self.objectives]).sum()
        return total, {name: term.detach() for name, term in terms.items()}


__all__ = [
    "KL",
    "L1",
    "MSE",
    "SSIM",
    "BernoulliLikelihood",
    "CategoricalLikelihood",
    "Commitment",
    "CrossEntropy",
    "Dice",
    "DiceCE",
    "Focal",
    "GaussianLikelihood",
    "LikelihoodTerm",
    "Loss",
    "ObjectiveConfig",
    "ObjectiveSettings",
    "Perceptual",
    "SparseKL",
    "SparseL1",
    "SparseL2",
    "Term",
    "Tversky",
]
