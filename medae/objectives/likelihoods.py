"""Likelihoods: what the decoder says is a distribution of images, and the truth should be likely in it.

Each term is the mean of -log p(value) over all image values, in nats. `kl` is in nats per image value too, so a
likelihood and `kl` with beta 1 are the negative evidence bound itself, and beta is the beta of the literature (Higgins
2017).

Between likelihoods only bits per value of 8-bit images compare: `bits_per_value` is the probability of the grey level,
not a density. That of a gaussian is its integral over the level, the ends of the range taking the rest (Salimans 2017,
https://arxiv.org/abs/1701.05517); for deviations of many levels it is -log2 of the density + log2(255).
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term

LEVELS = 256
LEAST_VARIANCE = (1 / 255) ** 2 / 12
"""Of rounding to 8 bits: below it, a likelihood would be about the rounding."""


class GaussianLikelihood(ObjectiveSettings):
    """Normal around the prediction; with `kl`, the VAE of continuous images.

    variance: a number: fixed (`mse`, in other units). `optimal`: one for all values, the mean squared error itself,
    which is what the likelihood is greatest for: sigma-VAE (Rybkin 2021, https://arxiv.org/abs/2006.13202), which
    balances the reconstruction against `kl` by itself. `learned`: the decoder says one for each voxel (the network's
    `decoder: gaussian`), so that what cannot be known, such as noise and edges, weighs less (Kendall 2017; AE-U, Mao
    2020).
    """

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["gaussian"] = "gaussian"
    variance: PositiveFloat | Literal["optimal", "learned"] = "optimal"
    """A number, `optimal` or `learned`."""

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"decoder": frozenset({"gaussian"})} if self.variance == "learned" else {}

    @property
    def described(self) -> str:
        return f"{super().described} (variance {self.variance})"

    def build(self) -> "LikelihoodTerm":
        return _Gaussian(self.variance)


class BernoulliLikelihood(ObjectiveSettings):
    """Each value is a probability of white (the network's `decoder: bernoulli`): for masks and ink, and, as a habit of
    the field, for grey values too, of which it is no distribution (Loaiza-Ganem 2019,
    https://arxiv.org/abs/1907.06845)."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["bernoulli"] = "bernoulli"

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"decoder": frozenset({"bernoulli"})}

    def build(self) -> "LikelihoodTerm":
        return _Bernoulli()


class CategoricalLikelihood(ObjectiveSettings):
    """A probability for each grey level (the network's `decoder: categorical`): any shape of distribution, at the price
    of as many outputs (van den Oord 2016, https://arxiv.org/abs/1601.06759)."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["categorical"] = "categorical"

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"decoder": frozenset({"categorical"})}

    def build(self) -> "LikelihoodTerm":
        return _Categorical()


class LikelihoodTerm(Term):
    """-log p of the target under what the decoder said."""

    @abstractmethod
    def log_prob(self, output: Output, target: Tensor) -> Tensor:
        """(B, C, *spatial), nats: a log density for `gaussian`, a log probability for the others."""

    @abstractmethod
    def bits_per_value(self, output: Output, target: Tensor) -> Tensor:
        """A scalar: -log2 of the probability of 8-bit values (`target` is at level / 255), the mean over all."""

    def forward(self, output: Output, target: Tensor) -> Tensor:
        return -self.log_prob(output, target).mean()


class _Gaussian(LikelihoodTerm):
    def __init__(self, variance: float | Literal["optimal", "learned"]) -> None:
        super().__init__()
        self.variance = variance

    def log_variance(self, output: Output, target: Tensor) -> Tensor:
        """Of each voxel, or one for all."""
        if self.variance == "learned":
            return _given(output.log_variance, "gaussian").float()
        if self.variance == "optimal":
            return functional.mse_loss(output.prediction, target).clamp(min=LEAST_VARIANCE).log()
        return target.new_tensor(math.log(self.variance))

    def log_prob(self, output: Output, target: Tensor) -> Tensor:
        log_variance = self.log_variance(output, target)
        squared = (output.prediction - target).square()
        return -0.5 * (squared * torch.exp(-log_variance) + log_variance + math.log(2 * math.pi))

    def bits_per_value(self, output: Output, target: Tensor) -> Tensor:
        deviation = torch.exp(0.5 * self.log_variance(output, target).double())
        level = _levels_of(target, LEVELS).double()
        lower = ((level - 0.5) / (LEVELS - 1) - output.prediction) / deviation
        upper = ((level + 0.5) / (LEVELS - 1) - output.prediction) / deviation
        lower = lower.masked_fill(level == 0, -math.inf)
        upper = upper.masked_fill(level == LEVELS - 1, math.inf)
        # of the two tails the one that is small: differences of numbers near 1 have no digits left
        turned = lower > 0
        lower, upper = torch.where(turned, -upper, lower), torch.where(turned, -lower, upper)
        low, high = torch.special.log_ndtr(lower), torch.special.log_ndtr(upper)
        log_probability: Tensor = high + torch.log1p(-torch.exp(low - high))
        return -log_probability.mean() / math.log(2)


class _Bernoulli(LikelihoodTerm):
    def log_prob(self, output: Output, target: Tensor) -> Tensor:
        logits = _given(output.logits, "bernoulli").float()
        return -functional.binary_cross_entropy_with_logits(logits, target.clamp(0, 1), reduction="none")

    def bits_per_value(self, output: Output, target: Tensor) -> Tensor:
        """Of black and white: the value itself is the probability of white."""
        return -self.log_prob(output, target).mean() / math.log(2)


class _Categorical(LikelihoodTerm):
    def log_prob(self, output: Output, target: Tensor) -> Tensor:
        logits = _given(output.logits, "categorical").float()
        levels = _levels_of(target, logits.shape[2])
        return -functional.cross_entropy(logits.transpose(1, 2), levels, reduction="none")

    def bits_per_value(self, output: Output, target: Tensor) -> Tensor:
        """Where the network knows fewer levels, each stands for several of the 256, equally likely."""
        levels = _given(output.logits, "categorical").shape[2]
        return -self.log_prob(output, target).mean() / math.log(2) + math.log2(LEVELS / levels)


def _levels_of(target: Tensor, levels: int) -> Tensor:
    """Values in 0..1 -> the nearest of so many levels, int64; what lies beyond counts as the end."""
    return (target * (levels - 1)).round().clamp(0, levels - 1).long()


def _given(values: Tensor | None, decoder: str) -> Tensor:
    if values is None:
        raise SettingsError(f"this likelihood needs a network with `decoder: {decoder}`, which says more than a value")
    return values
