"""A dense autoencoder: every voxel of an image of one size with every unit, through layers of any widths.

Hinton 2006, doi:10.1126/science.1127647. Linear, with one hidden layer, it finds the plane of the principal components
(Baldi 1989, doi:10.1016/0893-6080(89)90014-2). Overcomplete, it needs a penalty, or it learns to copy.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medae.errors import SettingsError
from medae.networks.base import Size, StackedAutoencoder, StackedSettings, Stage
from medae.networks.blocks import Activation, activation
from medae.networks.reach import Window


class DenseAutoencoder(StackedAutoencoder):
    """(B, channels_in, *size) -> (B, channels_out, *size) through (B, widths[-1], 1, 1); 3-D one axis more."""

    def __init__(self, settings: "DenseAutoencoderSettings", channels_in: int, channels_out: int) -> None:
        numbers = settings.emission.numbers(channels_out)
        widths = [channels_in * prod(settings.size), *settings.widths]
        stages = [_stage(settings, widths, at, numbers) for at in range(len(settings.widths))]
        super().__init__(stages, 1, settings.emission, settings.size)


def _stage(settings: "DenseAutoencoderSettings", widths: Sequence[int], at: int, numbers: int) -> Stage:
    """One layer and its mirror image; the first takes images apart, the last makes codes of the usual form."""
    first, last = at == 0, at == len(widths) - 2
    wide, narrow, size = widths[at], widths[at + 1], settings.size
    down = nn.Linear(wide, narrow)
    up = Tied(down) if settings.tied else nn.Linear(narrow, numbers * prod(size) if first else wide)
    # no norm on the code: it would undo what a penalty asks of its activations
    said = activation(settings.code) if last else [*_norm(settings, narrow), *activation(settings.activation)]
    # what the outermost stage reconstructs is not an activation
    rebuilt = [] if first else [*_norm(settings, wide), *activation(settings.activation)]
    encoder = [*[nn.Flatten()] * first, down, *said, *[nn.Unflatten(1, (narrow, *[1] * len(size)))] * last]
    decoder = [*[nn.Flatten()] * last, up, *rebuilt, *[nn.Unflatten(1, (numbers, *size))] * first]
    return Stage(nn.Sequential(*encoder), nn.Sequential(*decoder))


class Tied(nn.Module):
    """The transposed weights of a layer, and a bias of its own."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        # in a list, so that the layer's weights are not parameters of this one too
        self._layer = [layer]
        self.bias = nn.Parameter(torch.zeros(layer.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._layer[0].weight.T, self.bias)


def _norm(settings: "DenseAutoencoderSettings", width: int) -> list[nn.Module]:
    return [nn.BatchNorm1d(width)] if settings.norm == "batch" else []


class DenseAutoencoderSettings(StackedSettings):
    """Dense autoencoder: for small images of one size, as a baseline, for codes that mean something as a whole."""

    kind: Literal["dense_autoencoder"] = "dense_autoencoder"
    norm: Literal["batch", "none"] = "none"
    """Of the hidden layers; the code has none."""
    size: Size
    """(rows, columns), in 3-D (slices, rows, columns): of the images and of the patches, for no other has weights."""
    widths: tuple[PositiveInt, ...] = Field(default=(32,), min_length=1, max_length=12)
    """Units of each layer of the encoder, the code last; the decoder is its mirror image. 28 x 28 pixels and 128, 64,
    32, 10 is 784-128-64-32-10-32-64-128-784."""
    activation: Activation = "relu"
    """Of the hidden layers; `linear` makes principal components of it."""
    code: Activation = "linear"
    """On the code: sparsity by Bernoulli-KL needs `sigmoid`; `relu` lets a unit be silent."""
    tied: bool = False
    """The decoder takes the transposed weights of the encoder, which halves them; biases are free."""

    @model_validator(mode="after")
    def _tied_weights_fit(self) -> Self:
        if self.tied and self.decoder in ("gaussian", "categorical"):
            raise ValueError(
                f"tied: the encoder's weights, transposed, give one number a voxel, and a {self.decoder} decoder needs "
                "more: take free weights, or a point decoder"
            )
        return self

    def build(self, channels_in: int, channels_out: int) -> DenseAutoencoder:
        if self.tied and channels_in != channels_out:
            raise SettingsError(
                f"tied weights give as many channels as they take, not {channels_in} -> {channels_out}: take free ones"
            )
        return DenseAutoencoder(self, channels_in, channels_out)

    def code_and_image(self, channels: int) -> tuple[int, int]:
        return self.widths[-1], self.seen_by_code(channels)

    def layers(self) -> list[Window]:
        return []
