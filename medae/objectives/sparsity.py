"""Few units of the code at work at a time: what makes even an overcomplete autoencoder learn something.

The literature's lambda is `weight`. The code is `latent.point()`, after its activation; of a spatial code, a unit is a
channel, seen at all places. Terms are means over units, so that a weight means the same for any width of the code. With
the mean `mse` of n image values and s units, Ng's `1/2 sum of squares + beta x sum over units` is weight = 2 beta s /
n.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Codes
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term

LEAST = 1e-6
"""Mean activations are kept so far from 0 and 1, where the divergence has no slope that is a number."""


class Sparsity(ObjectiveSettings):
    """Base of the penalties on a code."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION
    compares: ClassVar[bool] = False

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"latent": frozenset({"code", "gaussian"})}


class SparseKL(Sparsity):
    """KL(Bernoulli(rho) || Bernoulli(mean activation)) of each unit, over the batch (Ng 2011, CS294A lecture notes).

    For codes in 0..1: each unit is asked to be on for the part rho of all inputs, which ones it may choose.
    """

    kind: Literal["sparse_kl"] = "sparse_kl"
    rho: float = Field(default=0.05, gt=0, lt=1)
    """The mean activation that each unit should have."""

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"latent": frozenset({"code"}), "code": frozenset({"sigmoid"})}

    def build(self) -> Term:
        return _SparseKL(self.rho)


class SparseL1(Sparsity):
    """Mean absolute activation: exact zeros where the code's activation is `relu` (Ranzato 2007, Glorot 2011)."""

    kind: Literal["sparse_l1"] = "sparse_l1"

    def build(self) -> Term:
        return _SparseL1()


class SparseL2(Sparsity):
    """Mean squared activation: keeps a code small, and hardly ever zero."""

    kind: Literal["sparse_l2"] = "sparse_l2"

    def build(self) -> Term:
        return _SparseL2()


class _OfCode(Term):
    def forward(self, output: Output, target: Tensor) -> Tensor:
        if output.latent is None or isinstance(output.latent, Codes):
            raise SettingsError("sparsity needs a network with a continuous code: dense_autoencoder, conv_autoencoder")
        return self.penalty(output.latent.point().z.float())

    @abstractmethod
    def penalty(self, code: Tensor) -> Tensor:
        """Of a code (B, Z, *spatial)."""


class _SparseKL(_OfCode):
    def __init__(self, rho: float) -> None:
        super().__init__()
        self.rho = rho

    def penalty(self, code: Tensor) -> Tensor:
        if code.min() < 0 or code.max() > 1:
            raise SettingsError("sparse_kl is for activations between 0 and 1: give the network `code: sigmoid`")
        mean = code.transpose(0, 1).flatten(1).mean(1).clamp(LEAST, 1 - LEAST)
        on = self.rho * torch.log(self.rho / mean)
        off = (1 - self.rho) * torch.log((1 - self.rho) / (1 - mean))
        return (on + off).mean()


class _SparseL1(_OfCode):
    def penalty(self, code: Tensor) -> Tensor:
        return code.abs().mean()


class _SparseL2(_OfCode):
    def penalty(self, code: Tensor) -> Tensor:
        return code.square().mean()
