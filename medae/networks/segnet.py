"""SegNet: a VGG-like encoder whose pooling places put the values back in the decoder.

Badrinarayanan 2017, https://arxiv.org/abs/1511.00561; its dropout is that of the Bayesian SegNet (Kendall 2015,
https://arxiv.org/abs/1511.02680). Departures: widths and depths are settings; the places are a byte each
(`medae.networks.pooling`); and a convolution of 1 classifies after the last stage of the decoder (in the paper the last
convolution of 3 does).
"""

from typing import Literal, Self

from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from medae.networks.base import Autoencoder, AutoencoderSettings
from medae.networks.blocks import convolution, convolve, dropout, flatten, unflatten
from medae.networks.latent import Code
from medae.networks.pooling import pool, unpool
from medae.networks.reach import CONVOLUTION, DOUBLED, HALVED, Window


class SegNet(Autoencoder):
    """(B, channels_in, *spatial) -> (B, channels_out, *spatial); the code: the deepest map, and all places."""

    def __init__(self, settings: "SegNetSettings", channels_in: int, channels_out: int) -> None:
        features, dims, norm, residual = settings.features, settings.dims, settings.norm, settings.residual
        super().__init__(2 ** len(features), settings.emission, settings.size)
        before, after = [channels_in, *features[:-1]], [features[0], *features[:-1]]
        encoder, decoder = nn.ModuleList(), nn.ModuleList()
        for narrow, wide, back, count in zip(before, features, after, settings.convolutions, strict=True):
            encoder.append(nn.Sequential(*convolve(dims, [narrow, *[wide] * count], norm, residual=residual)))
            decoder.append(nn.Sequential(*convolve(dims, [*[wide] * count, back], norm, residual=residual)))
        self.encoder, self.decoder = encoder, decoder
        stages = range(len(features))
        self.encoder_dropout = nn.ModuleList(dropout(settings.dropout, at, len(stages)) for at in stages)
        self.decoder_dropout = nn.ModuleList(dropout(settings.dropout, at, len(stages)) for at in stages)
        self.narrow, self.widen = _bottleneck(settings)
        self.head = convolution(dims, features[0], self.emission.numbers(channels_out), kernel=1)

    def _encode(self, x: Tensor) -> Code:
        context = []
        for stage, drop in zip(self.encoder, self.encoder_dropout, strict=True):
            x, places = pool(stage(x))
            x = drop(x)
            context.append(places)
        return Code(self.narrow(x), tuple(context))

    def _decode(self, z: Tensor, context: tuple[Tensor, ...]) -> Tensor:
        x = self.widen(z)
        stages = list(zip(self.decoder, self.decoder_dropout, context, strict=True))
        for stage, drop, places in reversed(stages):
            x = drop(stage(unpool(x, places)))
        raw: Tensor = self.head(x)
        return raw


def _bottleneck(settings: "SegNetSettings") -> tuple[nn.Module, nn.Module]:
    """From the deepest map to the code, and back."""
    deepest, code = settings.features[-1], settings.bottleneck
    if code is None:
        return nn.Identity(), nn.Identity()
    if settings.size is None:
        dims = settings.dims
        return convolution(dims, deepest, code, kernel=1), convolution(dims, code, deepest, kernel=1)
    spatial = settings.code_size(2 ** len(settings.features))
    return flatten(deepest, spatial, code), unflatten(code, deepest, spatial)


class SegNetSettings(AutoencoderSettings):
    """SegNet: sharp borders from pooling places alone, without skips; for segmentation and restoration."""

    kind: Literal["segnet"] = "segnet"
    features: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1, max_length=6)
    """Width of each stage, shallow to deep; each ends in a pooling by 2. The paper's: 64, 128, 256, 512, 512."""
    convolutions: tuple[PositiveInt, ...] = (2, 2, 2)
    """Convolutions in each stage, in the encoder and again in the decoder. The paper's: 2, 2, 3, 3, 3."""
    residual: bool = False
    """A short-cut around the convolutions of each stage."""
    dropout: float = Field(default=0, ge=0, lt=1)
    """Probability, in the three deepest stages of the encoder and of the decoder; the Bayesian SegNet's: .5."""
    bottleneck: PositiveInt | None = None
    """Numbers of the code: channels at each of its places or, with `size`, in all; null: the deepest map as it is."""

    @model_validator(mode="after")
    def _one_count_a_stage(self) -> Self:
        stages, counts = len(self.features), len(self.convolutions)
        if stages != counts:
            raise ValueError(f"{stages} stages (features) need {stages} numbers of convolutions, got {counts}")
        return self

    @model_validator(mode="after")
    def _flat_code_has_a_length(self) -> Self:
        if self.size is not None and self.bottleneck is None:
            raise ValueError("a flat code (size) needs a length: give bottleneck")
        return self

    def build(self, channels_in: int, channels_out: int) -> SegNet:
        return SegNet(self, channels_in, channels_out)

    def code_and_image(self, channels: int) -> tuple[int, int]:
        """The places of the maxima come on top."""
        return self.bottleneck or self.features[-1], self.seen_by_code(channels)

    def layers(self) -> list[Window]:
        down = [layer for count in self.convolutions for layer in [*[CONVOLUTION] * count, HALVED]]
        up = [layer for count in reversed(self.convolutions) for layer in [DOUBLED, *[CONVOLUTION] * count]]
        return down + up
