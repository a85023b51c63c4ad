"""A convolutional variational autoencoder (Kingma 2014, https://arxiv.org/abs/1312.6114)."""

from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medae.networks.base import Autoencoder, AutoencoderSettings
from medae.networks.blocks import ConvNormReLU, convolution, convolve, dropout, flatten, unflatten
from medae.networks.latent import Gaussian
from medae.networks.reach import CONVOLUTION, DOUBLED, STRIDED, Window

LOG_VARIANCE = (-20.0, 10.0)
"""Standard deviations of 5e-5 .. 150; beyond that, the exponential would overflow in half precision."""


class VAE(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial) through normals (B, latent, *spatial / stride)."""

    def __init__(self, settings: "VAESettings", channels_in: int, channels_out: int) -> None:
        features, dims, norm = settings.features, settings.dims, settings.norm
        super().__init__(2 ** len(features), settings.emission, settings.size)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        before, after = [channels_in, *features[:-1]], [features[0], *features[:-1]]
        for at, (narrow, wide, back) in enumerate(zip(before, features, after, strict=True)):
            drop = dropout(settings.dropout, at, len(features))
            down = convolve(dims, [wide, wide], norm, residual=settings.residual)
            up = convolve(dims, [wide, back], norm, residual=settings.residual)
            encoder += [ConvNormReLU(dims, narrow, wide, norm, stride=2), *down, drop]
            decoder = [nn.Upsample(scale_factor=2), *up, drop, *decoder]
        self.encoder = nn.Sequential(*encoder)
        self.mean, self.log_variance, widen = _bottleneck(settings)
        last = convolution(dims, features[0], self.emission.numbers(channels_out))
        self.decoder = nn.Sequential(widen, *decoder, last)

    def _encode(self, x: Tensor) -> Gaussian:
        seen = self.encoder(x)
        return Gaussian(self.mean(seen), self.log_variance(seen).clamp(*LOG_VARIANCE))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        raw: Tensor = self.decoder(z)
        return raw


def _bottleneck(settings: "VAESettings") -> tuple[nn.Module, nn.Module, nn.Module]:
    """From the deepest map to mean and log-variance of the code, and back."""
    dims, norm, deepest, latent = settings.dims, settings.norm, settings.features[-1], settings.latent_channels
    if settings.size is None:
        mean, log_variance = (convolution(dims, deepest, latent, kernel=1) for _ in range(2))
        return mean, log_variance, ConvNormReLU(dims, latent, deepest, norm)
    spatial = settings.code_size(2 ** len(settings.features))
    means, log_variances = (flatten(deepest, spatial, latent) for _ in range(2))
    widen = nn.Sequential(unflatten(latent, deepest, spatial), ConvNormReLU(dims, deepest, deepest, norm))
    return means, log_variances, widen


class VAESettings(AutoencoderSettings):
    """VAE: a smooth code with a known distribution; for anomaly scores and for sampling."""

    latent: ClassVar[Literal["code", "gaussian", "codes"] | None] = "gaussian"

    kind: Literal["vae"] = "vae"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each level, shallow to deep; each halves the size."""
    residual: bool = False
    """A short-cut around the second convolution of each level."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Probability, in the three deepest levels of the encoder and of the decoder."""
    latent_channels: PositiveInt = 16
    """Numbers of the code: channels at each of its places or, with `size`, in all. The narrower, the less that is
    unusual can be reconstructed."""

    def build(self, channels_in: int, channels_out: int) -> VAE:
        return VAE(self, channels_in, channels_out)

    def code_and_image(self, channels: int) -> tuple[int, int]:
        return self.latent_channels, self.seen_by_code(channels)

    def layers(self) -> list[Window]:
        down = [STRIDED, CONVOLUTION] * len(self.features)
        up = [DOUBLED, CONVOLUTION] * len(self.features)
        return [*down, CONVOLUTION, *up, CONVOLUTION]
