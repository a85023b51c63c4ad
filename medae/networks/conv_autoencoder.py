"""A convolutional autoencoder: convolutions and max-pooling to a narrow code, and back without skips."""

from itertools import pairwise
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medae.networks.base import Autoencoder, AutoencoderSettings, Norm
from medae.networks.blocks import Activation, ConvNormReLU, activation, convolution
from medae.networks.latent import Code
from medae.networks.reach import CONVOLUTION, DOUBLED, HALVED, Window

POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
Enlarging = Literal["upsample", "transposed"]


class ConvAutoencoder(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial) through (B, bottleneck, *spatial / stride)."""

    def __init__(self, settings: "ConvAutoencoderSettings", channels_in: int, channels_out: int) -> None:
        features, count, dims, norm = settings.features, settings.convolutions, settings.dims, settings.norm
        super().__init__(2 ** len(features), settings.emission)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = [ConvNormReLU(dims, settings.bottleneck, features[-1], norm)]
        for narrow, wide in zip([channels_in, *features], features, strict=False):
            encoder += [*_convolve(dims, narrow, wide, count, norm), POOLS[dims](2)]
        for wide, narrow in zip(features[::-1], [*features[-2::-1], features[0]], strict=True):
            decoder += [*_enlarge(dims, wide, settings.enlarge), *_convolve(dims, wide, narrow, count, norm)]
        # no norm: it would undo what a penalty asks of the code's activations
        code = [convolution(dims, features[-1], settings.bottleneck), *activation(settings.code)]
        self.encoder = nn.Sequential(*encoder, *code)
        self.decoder = nn.Sequential(*decoder, convolution(dims, features[0], self.emission.numbers(channels_out)))

    def _encode(self, x: Tensor) -> Code:
        return Code(self.encoder(x))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        prediction: Tensor = self.decoder(z)
        return prediction


def _convolve(dims: int, channels_in: int, channels_out: int, count: int, norm: Norm) -> list[nn.Module]:
    widths = [channels_in, *[channels_out] * count]
    return [ConvNormReLU(dims, *pair, norm) for pair in pairwise(widths)]


def _enlarge(dims: int, channels: int, enlarge: Enlarging) -> list[nn.Module]:
    if enlarge == "upsample":
        return [nn.Upsample(scale_factor=2)]
    # kernel = stride: no two outputs overlap, so no chequerboard and no wider view than up-sampling
    return [TRANSPOSED[dims](channels, channels, 2, stride=2)]


class ConvAutoencoderSettings(AutoencoderSettings):
    """Convolutional autoencoder: what does not fit through its code is lost; for restoration and anomaly scores."""

    kind: Literal["conv_autoencoder"] = "conv_autoencoder"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each level, shallow to deep; each ends in a pooling by 2."""
    convolutions: PositiveInt = 1
    """Convolutions at each level, in the encoder and again in the decoder."""
    bottleneck: PositiveInt = 16
    """Channels of the code: the narrower, the less that is unusual can be reconstructed."""
    code: Activation = "linear"
    """On the code: sparsity by Bernoulli-KL needs `sigmoid`; `relu` lets a unit be silent."""
    enlarge: Enlarging = "upsample"
    """How the decoder doubles the size: nearest up-sampling, or a transposed convolution of 2."""

    def build(self, channels_in: int, channels_out: int) -> ConvAutoencoder:
        return ConvAutoencoder(self, channels_in, channels_out)

    def layers(self) -> list[Window]:
        convolutions = [CONVOLUTION] * self.convolutions
        down = [*convolutions, HALVED] * len(self.features)
        up = [DOUBLED, *convolutions] * len(self.features)
        return [*down, CONVOLUTION, CONVOLUTION, *up, CONVOLUTION]
