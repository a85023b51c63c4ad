"""How far a network sees: the window arithmetic of its layers along one axis."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple


class Window(NamedTuple):
    """One layer along one axis, in torch's terms; `up`: it enlarges (transposed convolution, un-pooling, nearest)."""

    kernel: int
    stride: int = 1
    padding: int = 0
    up: bool = False

    def seen_by(self, low: int, high: int) -> tuple[int, int]:
        """The first and last input position that the outputs low..high depend on."""
        if self.up:
            # output q = stride * input - padding + k with k in 0..kernel-1, solved for the input
            return -((self.kernel - 1 - self.padding - low) // self.stride), (high + self.padding) // self.stride
        return low * self.stride - self.padding, high * self.stride - self.padding + self.kernel - 1


CONVOLUTION = Window(3, padding=1)
STRIDED = Window(3, stride=2, padding=1)
HALVED = Window(2, stride=2)
"""Max-pooling, pixel-unshuffle: two neighbours become one."""
DOUBLED = Window(2, stride=2, up=True)
"""Un-pooling, nearest up-sampling, transposed convolution of two, pixel-shuffle."""


def stride_of(layers: Sequence[Window]) -> int:
    """By how much the layers reduce the input at most: sizes and tile starts must be a multiple of it."""
    return prod(layer.stride for layer in layers if not layer.up)


def radius_of(layers: Sequence[Window]) -> int:
    """The farthest input that any output depends on; layers from input to output, on the longest path.

    Strided layers see unevenly, so every position within one stride is followed back. Two convolutions of 3: 2;
    one convolution, pooling by 2, one convolution, up-sampling by 2: position 0 sees -3..4, position 1 too: radius 4.
    """
    farthest = 0
    for position in range(stride_of(layers)):
        low = high = position
        for layer in reversed(layers):
            low, high = layer.seen_by(low, high)
        farthest = max(farthest, position - low, high - position)
    return farthest
