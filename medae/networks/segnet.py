"""SegNet: a VGG-like encoder whose pooling indices place the values again in the decoder.

Badrinarayanan 2017, https://arxiv.org/abs/1511.00561. Departures: widths and depths are settings, and a convolution of
1 classifies after the last stage of the decoder (in the paper the last convolution of 3 does).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from medae.networks.base import Autoencoder, AutoencoderSettings, Norm
from medae.networks.blocks import ConvNormReLU, convolution
from medae.networks.latent import Code
from medae.networks.reach import CONVOLUTION, DOUBLED, HALVED, Window

POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
UNPOOLS = {2: nn.MaxUnpool2d, 3: nn.MaxUnpool3d}


class SegNet(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial); the code: the deepest map, and all indices."""

    def __init__(self, settings: "SegNetSettings", channels_in: int, channels_out: int) -> None:
        features, convolutions, dims, norm = settings.features, settings.convolutions, settings.dims, settings.norm
        super().__init__(2 ** len(features), settings.emission)
        before = [channels_in, *features[:-1]]
        after = [features[0], *features[:-1]]
        stages = list(zip(before, features, after, convolutions, strict=True))
        self.encoder = nn.ModuleList(_stage(dims, [narrow, *[wide] * count], norm) for narrow, wide, _, count in stages)
        self.decoder = nn.ModuleList(_stage(dims, [*[wide] * count, back], norm) for _, wide, back, count in stages)
        self.pool = POOLS[dims](2, return_indices=True)
        self.unpool = UNPOOLS[dims](2)
        self.head = convolution(dims, features[0], self.emission.numbers(channels_out), kernel=1)

    def _encode(self, x: Tensor) -> Code:
        indices = []
        for stage in self.encoder:
            x, index = self.pool(stage(x))
            indices.append(index)
        return Code(x, tuple(indices))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        for stage, index in zip(reversed(self.decoder), reversed(context), strict=True):
            z = stage(self.unpool(z, index))
        prediction: Tensor = self.head(z)
        return prediction


def _stage(dims: int, widths: Sequence[int], norm: Norm) -> nn.Sequential:
    return nn.Sequential(*(ConvNormReLU(dims, *pair, norm) for pair in pairwise(widths)))


class SegNetSettings(AutoencoderSettings):
    """SegNet: sharp borders from pooling indices alone, without skips; for segmentation and restoration."""

    kind: Literal["segnet"] = "segnet"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each stage, shallow to deep; each ends in a pooling by 2. The paper's: 64, 128, 256, 512, 512."""
    convolutions: tuple[PositiveInt, ...] = (2, 2, 2)
    """Convolutions in each stage, in the encoder and again in the decoder. The paper's: 2, 2, 3, 3, 3."""

    @model_validator(mode="after")
    def _one_count_a_stage(self) -> Self:
        stages, counts = len(self.features), len(self.convolutions)
        if stages != counts:
            raise ValueError(f"{stages} stages (features) need {stages} numbers of convolutions, got {counts}")
        return self

    def build(self, channels_in: int, channels_out: int) -> SegNet:
        return SegNet(self, channels_in, channels_out)

    def layers(self) -> list[Window]:
        down = [layer for count in self.convolutions for layer in [*[CONVOLUTION] * count, HALVED]]
        up = [layer for count in reversed(self.convolutions) for layer in [DOUBLED, *[CONVOLUTION] * count]]
        return down + up
