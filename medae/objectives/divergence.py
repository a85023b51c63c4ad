"""How far the latent distribution is from the standard normal one: what makes an autoencoder variational."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Gaussian
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term


class KL(ObjectiveSettings):
    """KL(N(mean, variance) || N(0, 1)): summed over a sample's latent, divided by its number of image values.

    So it is in nats per image value, and means the same for any size of patch and latent. Beside a likelihood
    (`gaussian`, `bernoulli`, `categorical`), which is in nats per image value too, beta is the literature's: 1 is the
    evidence bound (Kingma 2014, https://arxiv.org/abs/1312.6114), more presses for a simpler code (Higgins 2017).
    Beside `mse`, a mean over image values, beta is twice the variance v that reconstructions are expected to miss by,
    times the literature's: mse + 2 v kl is 2 v times the bound of a decoder with that noise, up to a constant. .02
    expects them to be off by .1 of the range.
    """

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION
    compares: ClassVar[bool] = False

    kind: Literal["kl"] = "kl"
    beta: PositiveFloat = 0.02
    """Beside `mse`: twice the variance that is expected; beside a likelihood: the literature's, of which 1 is
    neutral."""
    warm_up: float = Field(default=0.1, ge=0, le=1)
    """beta rises linearly from 0 over this part of each cycle, so that the latent is used before it is priced; 0: beta
    is constant."""
    cycles: PositiveInt = 1
    """beta starts again from 0 so many times (Fu 2019, https://arxiv.org/abs/1903.10145, who takes 4 and a warm-up of
    .5)."""
    free_bits: NonNegativeFloat = 0
    """Nats (though called bits) that each number of the code may hold for nothing, on average over the batch and, in a
    spatial code, over a channel's places (Kingma 2016, https://arxiv.org/abs/1606.04934): what costs nothing is not
    given up. .05 to .25 keeps a code alive."""

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"latent": frozenset({"gaussian"})}

    @property
    def described(self) -> str:
        return f"{self.weight * self.beta:g} x {self.kind}"

    def build(self) -> Term:
        return _KL(self.free_bits)

    def factor(self, progress: float) -> float:
        within = 1.0 if progress >= 1 else progress * self.cycles % 1
        ramp = 1.0 if self.warm_up == 0 else min(1.0, within / self.warm_up)
        return self.weight * self.beta * ramp


class _KL(Term):
    def __init__(self, free_bits: float) -> None:
        super().__init__()
        self.free_bits = free_bits

    def forward(self, output: Output, target: Tensor) -> Tensor:
        latent = output.latent
        if not isinstance(latent, Gaussian):
            raise SettingsError("the kl objective needs a network with a Gaussian latent: vae; this one has none")
        nats = divergence(latent)
        each = nats.mean((0, 2)).clamp(min=self.free_bits)
        return each.sum() * nats.shape[2] / target[0].numel()


def divergence(latent: Gaussian) -> Tensor:
    """KL(latent || N(0, 1)) of each number of the code: (B, Z, places), nats."""
    mean, log_variance = latent.mean.float(), latent.log_variance.float()
    nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    return nats.reshape(*nats.shape[:2], -1)
