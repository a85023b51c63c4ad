"""A fully convolutional variational autoencoder (Kingma 2014, https://arxiv.org/abs/1312.6114)."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medae.networks.base import Autoencoder, AutoencoderSettings
from medae.networks.blocks import ConvNormReLU, convolution
from medae.networks.latent import Gaussian
from medae.networks.reach import CONVOLUTION, DOUBLED, STRIDED, Window

LOG_VARIANCE = (-20.0, 10.0)
"""Standard deviations of 5e-5 .. 150; beyond that, the exponential would overflow in half precision."""


class VAE(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial) through normals (B, latent, *spatial / stride)."""

    def __init__(self, settings: "VAESettings", channels_in: int, channels_out: int) -> None:
        features, latent, dims, norm = settings.features, settings.latent_channels, settings.dims, settings.norm
        super().__init__(2 ** len(features), settings.emission)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = [ConvNormReLU(dims, latent, features[-1], norm)]
        for narrow, wide in zip([channels_in, *features], features, strict=False):
            encoder += [ConvNormReLU(dims, narrow, wide, norm, stride=2), ConvNormReLU(dims, wide, wide, norm)]
        for wide, narrow in zip(features[::-1], [*features[-2::-1], features[0]], strict=True):
            decoder += [nn.Upsample(scale_factor=2), ConvNormReLU(dims, wide, narrow, norm)]
        self.encoder = nn.Sequential(*encoder)
        self.mean = convolution(dims, features[-1], latent, kernel=1)
        self.log_variance = convolution(dims, features[-1], latent, kernel=1)
        self.decoder = nn.Sequential(*decoder, convolution(dims, features[0], self.emission.numbers(channels_out)))

    def _encode(self, x: Tensor) -> Gaussian:
        seen = self.encoder(x)
        return Gaussian(self.mean(seen), self.log_variance(seen).clamp(*LOG_VARIANCE))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        prediction: Tensor = self.decoder(z)
        return prediction


class VAESettings(AutoencoderSettings):
    """VAE: a smooth code with a known distribution; for anomaly scores and for sampling."""

    latent: ClassVar[Literal["code", "gaussian", "codes"] | None] = "gaussian"

    kind: Literal["vae"] = "vae"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each level, shallow to deep; each halves the size."""
    latent_channels: PositiveInt = 16
    """Numbers a voxel of the code holds: the narrower, the less that is unusual can be reconstructed."""

    def build(self, channels_in: int, channels_out: int) -> VAE:
        return VAE(self, channels_in, channels_out)

    def layers(self) -> list[Window]:
        down = [STRIDED, CONVOLUTION] * len(self.features)
        up = [DOUBLED, CONVOLUTION] * len(self.features)
        return [*down, CONVOLUTION, *up, CONVOLUTION]
