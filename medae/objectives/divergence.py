"""How far the latent distribution is from the standard normal one: what makes an autoencoder variational."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Gaussian
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term


class KL(ObjectiveSettings):
    """KL(N(mean, variance) || N(0, 1)): summed over a sample's latent, divided by its number of image values.

    So it is in nats per image value and stands beside `mse`, a mean over image values: mse + beta x kl is, up to a
    factor, the negative evidence bound of a decoder whose noise has the variance beta / 2 (Kingma 2014,
    https://arxiv.org/abs/1312.6114; Higgins 2017 calls another, unnormalised number beta). beta .02 expects
    reconstructions to be off by .1 of the range. The same beta means the same for any size of patch and latent.
    """

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION

    kind: Literal["kl"] = "kl"
    beta: PositiveFloat = 0.02
    """Twice the variance that reconstructions are expected to miss by, when `mse` has the weight 1."""
    warm_up: float = Field(default=0.1, ge=0, le=1)
    """beta rises linearly from 0 over this part of the training, so that the latent is used before it is priced."""

    def build(self) -> Term:
        return _KL()

    def factor(self, progress: float) -> float:
        ramp = 1.0 if self.warm_up == 0 else min(1.0, progress / self.warm_up)
        return self.weight * self.beta * ramp


class _KL(Term):
    def forward(self, output: Output, target: Tensor) -> Tensor:
        latent = output.latent
        if not isinstance(latent, Gaussian):
            raise SettingsError("the kl objective needs a network with a Gaussian latent: vae; this one has none")
        mean, log_variance = latent.mean.float(), latent.log_variance.float()
        nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return nats.flatten(1).sum(1).mean() / target[0].numel()
