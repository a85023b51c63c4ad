"""A learned book: each entry follows the mean of the encodings that choose it (van den Oord 2017, appendix A.1,
https://arxiv.org/abs/1711.00937).

Departures, which keep the book alive: the moving averages are unbiased from the first step on, the book begins at
encodings of the first batch, and an entry that nearly nothing chooses begins anew at an encoding that the book fits
badly (drawn as in k-means++: Arthur 2007).
"""

from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from medae.networks.latent import Codes
from medae.networks.quantisers.base import LARGEST, Quantiser, QuantiserSettings, flat, unbiased

FAR = 1e20
"""The squared error before there is any entry."""
ROWS = 2**14
"""Encodings that are compared with the book at once: with 256 entries, 16 MiB of distances."""


class EMAQuantiser(Quantiser):
    """Changes in training mode only, at each forward pass, like the statistics of a BatchNorm.

    The book is not kept itself but as sums / usage: a moving average over these two, such as that of the weights in a
    training, then gives each entry the mean of all encodings that chose it, and hardly moves a dead entry's ghost.
    Draws come from torch's global generator.
    """

    usage: Tensor
    sums: Tensor
    steps: Tensor

    def __init__(self, codes: int, channels: int, decay: float, restart_below: float) -> None:
        super().__init__(codes, channels)
        self.decay, self.restart_below = decay, restart_below
        self.register_buffer("usage", torch.ones(codes))  # encodings of a batch that choose the entry
        self.register_buffer("sums", torch.randn(codes, channels))  # of these encodings
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @property
    def book(self) -> Tensor:
        """(codes, Z)."""
        return self.sums / self.usage[:, None]

    def _entries(self, indices: Tensor) -> Tensor:
        return self.book[indices]

    def _quantise(self, z: Tensor) -> Codes:
        rows = flat(z.detach())
        if self.training and self.steps == 0:
            self._place(torch.ones_like(self.usage, dtype=torch.bool), rows, torch.full_like(rows[:, 0], FAR))
        nearest, error = self._nearest(rows)
        indices = nearest.reshape(z[:, 0].shape)
        vectors = self.vectors(indices)
        if self.training:
            self._follow(rows, nearest, error)
        # the bracket is zero, with a gradient; NaN where the encoding is no number, which has no nearest entry
        return Codes(indices, vectors + (z - z.detach()), encoded=z)

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Z) -> the index of each row's nearest entry, and the squared distance to it."""
        book = self.book
        length = book.square().sum(1)
        found = [torch.addmm(length, part, book.T, alpha=-2).min(1) for part in torch.split(rows, ROWS)]
        distance = torch.cat([value for value, _ in found]) + rows.square().sum(1)
        return torch.cat([index for _, index in found]), distance.clamp(min=0)

    @torch.no_grad()
    def _follow(self, rows: Tensor, nearest: Tensor, error: Tensor) -> None:
        self.steps += 1
        keep = unbiased(self.decay, self.steps)
        usage = torch.zeros_like(self.usage).index_add_(0, nearest, torch.ones_like(error))
        sums = torch.zeros_like(self.sums).index_add_(0, nearest, rows)
        self.usage.mul_(keep).add_((1 - keep) * usage)
        self.sums.mul_(keep).add_((1 - keep) * sums)
        dead = self.usage <= self.restart_below * len(rows) / self.codes
        if dead.any():
            self._place(dead, rows, error)

    @torch.no_grad()
    def _place(self, which: Tensor, rows: Tensor, error: Tensor) -> None:
        """Begin these entries at rows, each drawn by the squared error that the others leave, as if it had had its
        fair share of the batch."""
        share = len(rows) / self.codes
        error = error.nan_to_num(0, 0, 0)
        for entry in which.nonzero().flatten():
            row = rows[torch.multinomial(error + torch.finfo(error.dtype).tiny, 1)]
            error = torch.minimum(error, (rows - row).square().sum(1).nan_to_num(0, 0, 0))
            self.usage[entry] = share
            self.sums[entry] = share * row[0]


class EMASettings(QuantiserSettings):
    """A learned book of vectors; with the `commitment` objective."""

    kind: Literal["ema"] = "ema"
    codes: int = Field(default=256, ge=2, le=LARGEST)
    """Entries of the book."""
    channels: PositiveInt = 16
    """Numbers of an entry."""
    decay: float = Field(default=0.99, gt=0, lt=1)
    """How slowly an entry follows what chooses it."""
    restart_below: float = Field(default=0.1, ge=0, lt=1)
    """An entry that is chosen less often than this part of its fair share begins anew; 0: one that nothing chose."""

    @property
    def book(self) -> tuple[int, int]:
        return self.codes, self.channels

    def build(self) -> EMAQuantiser:
        return EMAQuantiser(self.codes, self.channels, self.decay, self.restart_below)
