"""DnCNN: predicts the noise and subtracts it (Zhang 2017, https://arxiv.org/abs/1608.03981).

With `pixel_unshuffle: 2` it works at half the size with 4 (8 in 3-D) times the channels, as FFDNet does
(Zhang 2018, https://arxiv.org/abs/1710.04026): four times faster and twice the view for the same depth.
"""

from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from medae.errors import SettingsError
from medae.networks.base import NetworkSettings, Norm, crop, pad
from medae.networks.blocks import ConvNormReLU, convolution
from medae.networks.reach import CONVOLUTION, DOUBLED, HALVED, Window

NEAR_ZERO = 1e-2
"""Not zero, so that a gradient reaches every layer from the first step on."""


class DnCNN(nn.Module):
    """(B, channels, *spatial) noisy -> the same, clean."""

    def __init__(self, dims: int, channels: int, depth: int, features: int, unshuffle: int, norm: Norm) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        shuffled = channels * unshuffle**dims
        first = ConvNormReLU(dims, shuffled, features, "none")
        middle = [ConvNormReLU(dims, *pair, norm) for pair in pairwise([features] * (depth - 1))]
        # noise has both signs: no ReLU at the end
        self.noise = nn.Sequential(first, *middle, convolution(dims, features, shuffled))
        self._start_near_the_identity()

    def _start_near_the_identity(self) -> None:
        """He's initialisation (2015, https://arxiv.org/abs/1502.01852) as in the paper, but for a last layer near zero:
        a network that begins by adding noise first unlearns what it sees (400 steps on stained tissue: +6 dB)."""
        layers = [module for module in self.noise.modules() if isinstance(module, nn.Conv2d | nn.Conv3d)]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        with torch.no_grad():
            layers[-1].weight *= NEAR_ZERO

    def forward(self, x: Tensor) -> Tensor:
        whole = pad(x, self.unshuffle)
        noise = pixel_shuffle(self.noise(pixel_unshuffle(whole, self.unshuffle)), self.unshuffle)
        return x - crop(noise, x)


def pixel_unshuffle(x: Tensor, factor: int) -> Tensor:
    """(B, C, *spatial) -> (B, C * factor**dims, *spatial / factor): `nn.PixelUnshuffle`, also in 3-D."""
    if factor == 1:
        return x
    batch, channels, *sizes = x.shape
    dims = len(sizes)
    split = x.reshape(batch, channels, *(part for size in sizes for part in (size // factor, factor)))
    inner = range(3, 3 + 2 * dims, 2)
    outer = range(2, 2 + 2 * dims, 2)
    return split.permute(0, 1, *inner, *outer).reshape(batch, -1, *(size // factor for size in sizes))


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    """The inverse of `pixel_unshuffle`."""
    if factor == 1:
        return x
    batch, channels, *sizes = x.shape
    dims = len(sizes)
    split = x.reshape(batch, channels // factor**dims, *[factor] * dims, *sizes)
    pairs = (axis for n in range(dims) for axis in (2 + dims + n, 2 + n))
    return split.permute(0, 1, *pairs).reshape(batch, -1, *(size * factor for size in sizes))


class DnCNNSettings(NetworkSettings):
    """DnCNN: a plain stack of convolutions that learns the noise; for restoration."""

    kind: Literal["dncnn"] = "dncnn"
    depth: int = Field(default=8, ge=2, le=64)
    """Convolutions in a row; 17 in the paper."""
    features: PositiveInt = 48
    """Width of all of them but the last; 64 in the paper."""
    pixel_unshuffle: Literal[1, 2] = 2
    """2: at half the size with the neighbours as channels, faster and seeing twice as far; 1: as in the paper."""

    def build(self, channels_in: int, channels_out: int) -> DnCNN:
        if channels_in != channels_out:
            raise SettingsError(
                f"dncnn subtracts noise from its input, so it gives as many channels as it takes, not {channels_in} -> "
                f"{channels_out}; use it for restoration, or take another network"
            )
        return DnCNN(self.dims, channels_in, self.depth, self.features, self.pixel_unshuffle, self.norm)

    def layers(self) -> list[Window]:
        convolutions = [CONVOLUTION] * self.depth
        return convolutions if self.pixel_unshuffle == 1 else [HALVED, *convolutions, DOUBLED]
