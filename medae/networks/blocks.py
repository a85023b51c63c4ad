"""The layers that several networks are made of, in 2-D and 3-D."""

from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

from medae.networks.base import Norm

CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LARGEST_GROUPS = 8
Activation = Literal["linear", "sigmoid", "relu"]


def convolution(dims: int, channels_in: int, channels_out: int, kernel: int = 3) -> nn.Conv2d | nn.Conv3d:
    """Same size; zeros outside the image."""
    return CONVOLUTIONS[dims](channels_in, channels_out, kernel, padding=kernel // 2)


def activation(kind: Activation) -> list[nn.Module]:
    """None for `linear`."""
    if kind == "linear":
        return []
    return [nn.Sigmoid() if kind == "sigmoid" else nn.ReLU()]


def groups_for(*widths: int) -> int:
    """As many groups as divide every width, at most 8."""
    return gcd(LARGEST_GROUPS, *widths)


class ConvNormReLU(nn.Sequential):
    """Convolution of 3, norm, ReLU; a stride of 2 gives half the size."""

    def __init__(self, dims: int, channels_in: int, channels_out: int, norm: Norm, stride: int = 1) -> None:
        # a bias before a norm would only be subtracted again
        convolve = CONVOLUTIONS[dims](channels_in, channels_out, 3, stride, padding=1, bias=norm == "none")
        layers: list[nn.Module] = [convolve, *_norm(dims, channels_out, norm), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class WindowNorm(nn.GroupNorm):
    """Group norm that also takes a single voxel, which the one of torch refuses: the learned bias remains."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _norm(dims: int, channels: int, norm: Norm) -> list[nn.Module]:
    if norm == "none":
        return []
    if norm == "batch":
        return [BATCH_NORMS[dims](channels)]
    # instance norm is group norm with one channel a group
    return [WindowNorm(channels if norm == "instance" else groups_for(channels), channels)]
