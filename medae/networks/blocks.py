"""The layers that several networks are made of, in 2-D and 3-D."""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd, prod
from typing import Literal

import torch
from torch import Tensor, nn

from medae.networks.base import Norm

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LARGEST_GROUPS = 8
Activation = Literal["linear", "relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
DROPPED_STAGES = 3
"""Dropout is in so many of the deepest stages, on the way down and up (Kendall 2015, https://arxiv.org/abs/1511.02680);
earlier ones, which find edges, only lose by it."""


def convolution(dims: int, channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d | nn.Conv3d:
    """Same size; zeros outside the image."""
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, padding=kernel // 2)


def activation(kind: Activation) -> list[nn.Module]:
    """None for `linear`."""
    return [] if kind == "linear" else [ACTIVATIONS[kind]()]


def groups_for(*widths: int) -> int:
    """As many groups as divide every width, at most 8."""
    return gcd(LARGEST_GROUPS, *widths)


class ConvNormReLU(nn.Sequential):
    """Convolution of 3, norm, ReLU; a stride of 2 gives half the size."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, norm: Norm, stride: int = 1) -> None:
        super().__init__(*_conv_norm(dims, channels_in, channels_out, norm, stride), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """Convolutions beside a short-cut, then ReLU (He 2015, https://arxiv.org/abs/1512.03385)."""

    def __init__(self, dims: int, widths: Sequence[int], norm: Norm) -> None:
        super().__init__()
        *before, last = pairwise(widths)
        convolutions = [ConvNormReLU(dims, *pair, norm) for pair in before]
        self.body = nn.Sequential(*convolutions, *_conv_norm(dims, *last, norm))
        same = widths[0] == widths[-1]
        self.shortcut = nn.Identity() if same else convolution(dims, widths[0], widths[-1], kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def convolve(dims: int, widths: Sequence[int], norm: Norm, *, residual: bool) -> list[nn.Module]:
    """Convolutions from each width to the next; residual: with one short-cut around them all."""
    if residual:
        return [Residual(dims, widths, norm)]
    return [ConvNormReLU(dims, *pair, norm) for pair in pairwise(widths)]


def dropout(probability: float, stage: int, stages: int) -> nn.Module:
    """Of a stage, 0 the shallowest: nothing where it is not one of the deepest."""
    return nn.Dropout(probability) if probability and stage >= stages - DROPPED_STAGES else nn.Identity()


def flatten(channels: int, spatial: Sequence[int], code: int) -> nn.Module:
    """A map (B, channels, *spatial) -> a flat code (B, code, 1, 1) or (B, code, 1, 1, 1)."""
    size = channels * prod(spatial)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, code), nn.Unflatten(1, (code, *[1] * len(spatial))))


def unflatten(code: int, channels: int, spatial: Sequence[int]) -> nn.Module:
    """The way back."""
    size = channels * prod(spatial)
    return nn.Sequential(nn.Flatten(), nn.Linear(code, size), nn.Unflatten(1, (channels, *spatial)))


class WindowNorm(nn.GroupNorm):
    """Group norm that also takes a single voxel, which the one of torch refuses: the learned bias remains."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _conv_norm(dims: int, channels_in: int, channels_out: int, norm: Norm, stride: int = 1) -> list[nn.Module]:
    # a bias before a norm would only be subtracted again
    convolve = CONVOLUTIONS[dims](channels_in, channels_out, 3, stride, padding=1, bias=norm == "none")
    return [convolve, *_norm(dims, channels_out, norm)]


def _norm(dims: int, channels: int, norm: Norm) -> list[nn.Module]:
    if norm == "none":
        return []
    if norm == "batch":
        return [BATCH_NORMS[dims](channels)]
    # instance norm is group norm with one channel a group
    return [WindowNorm(channels if norm == "instance" else groups_for(channels), channels)]
