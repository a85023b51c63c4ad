"""What all quantisers share: their settings, and that they compute in float32 and let gradients through."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from medae.networks.latent import Codes
from medae.settings import Settings

LARGEST = 2**20
"""Entries of a book: a count of how often each was chosen still costs nothing beside the network."""


class Quantiser(nn.Module, ABC):
    """An encoding (B, Z, *spatial) -> the entries of a book that stand for it.

    Gradients pass as if nothing had been rounded (straight-through: Bengio 2013, https://arxiv.org/abs/1308.3432).
    """

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.codes, self.channels = codes, channels

    @abstractmethod
    def _quantise(self, z: Tensor) -> Codes: ...

    @abstractmethod
    def _entries(self, indices: Tensor) -> Tensor:
        """(N,) -> (N, Z)."""

    def forward(self, z: Tensor) -> Codes:
        """Computed in float32 whatever the network computes in: half precision cannot tell close entries apart."""
        with torch.autocast(z.device.type, enabled=False):
            return self._quantise(z.float())

    def vectors(self, indices: Tensor) -> Tensor:
        """The entries (B, Z, *spatial) that the indices (B, *spatial), 0 .. codes - 1, stand for."""
        return unflat(self._entries(indices.flatten()), indices)


def unbiased(decay: float, steps: Tensor) -> Tensor:
    """How much a moving average keeps of itself at this step, 1, 2 ...: the first is the mean of what was seen so far,
    until that is longer than the decay remembers (Adam's correction: Kingma 2015, https://arxiv.org/abs/1412.6980)."""
    return decay * (1 - decay ** (steps - 1)) / (1 - decay**steps)


def flat(z: Tensor) -> Tensor:
    """(B, Z, *spatial) -> (N, Z), a row a place."""
    return z.movedim(1, -1).reshape(-1, z.shape[1])


def unflat(rows: Tensor, indices: Tensor) -> Tensor:
    """(N, Z) -> (B, Z, *spatial), with `indices` (B, *spatial)."""
    return rows.reshape(*indices.shape, rows.shape[1]).movedim(-1, 1)


class QuantiserSettings(Settings, ABC):
    """A way to quantise; `build` makes it, untrained."""

    kind: str

    @property
    @abstractmethod
    def book(self) -> tuple[int, int]:
        """(entries, channels of an entry)."""

    @abstractmethod
    def build(self) -> Quantiser:
        """A fresh quantiser."""
