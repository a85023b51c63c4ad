"""How far encodings are from the entries that stand for them: keeps an encoder from running away from its book."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import PositiveFloat
from torch import Tensor
from torch.nn import functional

from medae.errors import SettingsError
from medae.networks.base import Output
from medae.networks.latent import Codes
from medae.objectives.base import RECONSTRUCTION, ObjectiveSettings, Term


class Commitment(ObjectiveSettings):
    """Mean squared distance of encoding and entry, for the encoder alone (van den Oord 2017, eq. 3): the entries
    follow by their moving averages."""

    applies_to: ClassVar[frozenset[str]] = RECONSTRUCTION
    compares: ClassVar[bool] = False

    kind: Literal["commitment"] = "commitment"
    weight: PositiveFloat = 0.25
    """Factor in the total (the paper's beta); the term itself is reported without it."""

    @property
    def needs(self) -> Mapping[str, frozenset[str]]:
        return {"latent": frozenset({"codes"}), "book": frozenset({"learned"})}

    def build(self) -> Term:
        return _Commitment()


class _Commitment(Term):
    def forward(self, output: Output, target: Tensor) -> Tensor:
        latent = output.latent
        if not isinstance(latent, Codes) or latent.encoded is None:
            raise SettingsError("the commitment objective needs a network with a learned book: vqvae with `ema`")
        return functional.mse_loss(latent.encoded, latent.vectors.detach())
