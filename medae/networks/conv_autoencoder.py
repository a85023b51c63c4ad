"""A convolutional autoencoder: convolutions and max-pooling to a narrow code, and back without skips."""

from typing import Literal

from pydantic import Field, PositiveInt
from torch import nn

from medae.networks.base import StackedAutoencoder, StackedSettings, Stage
from medae.networks.blocks import (
    Activation,
    ConvNormReLU,
    activation,
    convolution,
    convolve,
    dropout,
    flatten,
    unflatten,
)
from medae.networks.reach import CONVOLUTION, DOUBLED, HALVED, Window

POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
Enlarging = Literal["upsample", "transposed"]


class ConvAutoencoder(StackedAutoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial) through (B, bottleneck, *spatial / stride)."""

    def __init__(self, settings: "ConvAutoencoderSettings", channels_in: int, channels_out: int) -> None:
        numbers = settings.emission.numbers(channels_out)
        stages = [_stage(settings, at, channels_in, numbers) for at in range(len(settings.features))]
        super().__init__(
            [*stages, _bottleneck(settings)], 2 ** len(settings.features), settings.emission, settings.size
        )


def _stage(settings: "ConvAutoencoderSettings", at: int, channels_in: int, numbers: int) -> Stage:
    """Convolutions and a pooling; an enlarging and convolutions back to what came in."""
    dims, norm, features, count = settings.dims, settings.norm, settings.features, settings.convolutions
    wide, first = features[at], at == 0
    before, back = (channels_in, wide) if first else (features[at - 1], features[at - 1])
    drop = dropout(settings.dropout, at, len(features))
    down = convolve(dims, [before, *[wide] * count], norm, residual=settings.residual)
    up = convolve(dims, [*[wide] * count, back], norm, residual=settings.residual)
    # what the outermost stage reconstructs is not an activation
    last = [convolution(dims, wide, numbers)] if first else []
    return Stage(
        nn.Sequential(*down, POOLS[dims](2), drop),
        nn.Sequential(*_enlarge(dims, wide, settings.enlarge), *up, drop, *last),
    )


def _bottleneck(settings: "ConvAutoencoderSettings") -> Stage:
    dims, norm, deepest, code = settings.dims, settings.norm, settings.features[-1], settings.bottleneck
    # no norm: it would undo what a penalty asks of the code's activations
    said = activation(settings.code)
    if settings.size is None:
        narrow: nn.Module = convolution(dims, deepest, code)
        return Stage(nn.Sequential(narrow, *said), ConvNormReLU(dims, code, deepest, norm))
    spatial = settings.code_size(2 ** len(settings.features))
    narrow, widen = flatten(deepest, spatial, code), unflatten(code, deepest, spatial)
    return Stage(nn.Sequential(narrow, *said), nn.Sequential(widen, ConvNormReLU(dims, deepest, deepest, norm)))


def _enlarge(dims: int, channels: int, enlarge: Enlarging) -> list[nn.Module]:
    if enlarge == "upsample":
        return [nn.Upsample(scale_factor=2)]
    # kernel = stride: no two outputs overlap, so no chequerboard and no wider view than up-sampling
    return [TRANSPOSED[dims](channels, channels, 2, stride=2)]


class ConvAutoencoderSettings(StackedSettings):
    """Convolutional autoencoder: what does not fit through its code is lost; for restoration and anomaly scores."""

    kind: Literal["conv_autoencoder"] = "conv_autoencoder"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each level, shallow to deep; each ends in a pooling by 2."""
    convolutions: PositiveInt = 1
    """Convolutions at each level, in the encoder and again in the decoder."""
    residual: bool = False
    """A short-cut around the convolutions of each level."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Probability, in the three deepest levels of the encoder and of the decoder."""
    bottleneck: PositiveInt = 16
    """Numbers of the code: channels at each of its places or, with `size`, in all. The narrower, the less that is
    unusual can be reconstructed."""
    code: Activation = "linear"
    """On the code: sparsity by Bernoulli-KL needs `sigmoid`; `relu` lets a unit be silent."""
    enlarge: Enlarging = "upsample"
    """How the decoder doubles the size: nearest up-sampling, or a transposed convolution of 2."""

    def build(self, channels_in: int, channels_out: int) -> ConvAutoencoder:
        return ConvAutoencoder(self, channels_in, channels_out)

    def code_and_image(self, channels: int) -> tuple[int, int]:
        return self.bottleneck, self.seen_by_code(channels)

    def layers(self) -> list[Window]:
        convolutions = [CONVOLUTION] * self.convolutions
        down = [*convolutions, HALVED] * len(self.features)
        up = [DOUBLED, *convolutions] * len(self.features)
        return [*down, CONVOLUTION, CONVOLUTION, *up, CONVOLUTION]
