"""VQ-VAE (van den Oord 2017, https://arxiv.org/abs/1711.00937): an image in words of a finite book.

Encoder and decoder are MONAI's (Tudosiu 2022, https://arxiv.org/abs/2209.03177), without a norm; the state dicts of
`encoder` and `decoder` are those of `monai.networks.nets.VQVAE`. The quantiser is ours: MONAI's divides the sums of
entries that were never chosen by nearly nothing, which throws most of its book away in the first step.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from medae.networks.base import Autoencoder, AutoencoderSettings
from medae.networks.latent import Codes, Latent
from medae.networks.quantisers import EMASettings, QuantiserConfig
from medae.networks.reach import CONVOLUTION, Window

DOWN, UP = (2, 4, 1, 1), (2, 4, 1, 1, 0)
"""Stride, kernel, dilation, padding (and output padding) of a layer that halves or doubles the size."""
HALVED_BY_FOUR = Window(4, stride=2, padding=1)
DOUBLED_BY_FOUR = Window(4, stride=2, padding=1, up=True)


class VQVAE(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial) through indices (B, *spatial / stride)."""

    def __init__(self, settings: "VQVAESettings", channels_in: int, channels_out: int) -> None:
        # importing MONAI takes seconds: only who builds a VQ-VAE pays them
        from monai.networks.nets.vqvae import Decoder, Encoder

        features, levels = settings.features, len(settings.features)
        super().__init__(2**levels, settings.emission)
        _, vector = settings.quantiser.book
        blocks: dict[str, Any] = {
            "channels": features,
            "num_res_layers": settings.residual_units,
            "num_res_channels": features,
            "dropout": 0.0,
            "act": "RELU",
        }
        self.encoder = Encoder(settings.dims, channels_in, vector, downsample_parameters=[DOWN] * levels, **blocks)
        self.quantiser = settings.quantiser.build()
        numbers = self.emission.numbers(channels_out)
        self.decoder = Decoder(
            settings.dims, vector, numbers, upsample_parameters=[UP] * levels, output_act=None, **blocks
        )

    def codes(self, indices: Tensor) -> Codes:
        """What the indices (B, *spatial / stride) stand for: to decode what a prior has drawn."""
        return Codes(indices, self.quantiser.vectors(indices))

    def quantise(self, latent: Latent) -> Codes:
        """A point between codes, as the nearest code."""
        codes: Codes = self.quantiser(latent.point().z)
        return codes

    def _encode(self, x: Tensor) -> Codes:
        codes: Codes = self.quantiser(self.encoder(x))
        return codes

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        raw: Tensor = self.decoder(z)
        return raw


class VQVAESettings(AutoencoderSettings):
    """VQ-VAE: a code that can be counted, and that a prior can learn; for restoration, anomaly scores and sampling."""

    latent: ClassVar[Literal["code", "gaussian", "codes"] | None] = "codes"

    kind: Literal["vqvae"] = "vqvae"
    norm: Literal["none"] = "none"
    """MONAI's encoder and decoder have none."""
    size: None = None
    """Codes have places: images of any size."""
    features: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1, max_length=6)
    """Width of each level, shallow to deep; each halves the size."""
    residual_units: NonNegativeInt = 1
    """Pairs of convolutions with a short-cut at each level, in the encoder and again in the decoder."""
    quantiser: QuantiserConfig = EMASettings()
    """The book: learned (`ema`), or levels of each channel (`fsq`)."""

    @property
    def book(self) -> Literal["learned", "fixed"]:
        """Whether the entries follow what chooses them, so that encodings must be held close to them."""
        return "learned" if self.quantiser.kind == "ema" else "fixed"

    def build(self, channels_in: int, channels_out: int) -> VQVAE:
        return VQVAE(self, channels_in, channels_out)

    def layers(self) -> list[Window]:
        units = [CONVOLUTION, CONVOLUTION] * self.residual_units
        down = [HALVED_BY_FOUR, *units] * len(self.features)
        up = [*units, DOUBLED_BY_FOUR] * len(self.features)
        return [*down, CONVOLUTION, CONVOLUTION, *up]
