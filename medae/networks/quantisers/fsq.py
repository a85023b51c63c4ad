"""Finite scalar quantisation: each channel is rounded to a few levels, and their combinations are the book (Mentzer
2023, https://arxiv.org/abs/2309.15505). Nothing is learned and nothing can die.

Departures, which put every combination of levels to use. Encodings are whitened first, by moving averages of their mean
and covariance, in training as at evaluation: an encoder begins with values near zero that all channels share, and
hundreds of steps would pass before it reached the outer levels. And the bound is not the paper's tanh but a normal's
cumulative distribution, under which no level of a whitened normal is likelier than another.
"""

from math import prod, sqrt
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from medae.networks.latent import Codes
from medae.networks.quantisers.base import LARGEST, Quantiser, QuantiserSettings, flat, unbiased, unflat

MARGIN = 1e-3
"""Of the bound, so that nothing is rounded to beyond the outermost levels."""

DECAY = 0.99
"""Of the moving averages."""
LEAST = 1e-5
"""Of the variance of all directions: one that says less than that is not blown up."""
TINY = 1e-20
"""A variance, where all encodings are the same."""


class ScalarQuantiser(Quantiser):
    """An encoding of one channel a level list -> levels evenly spaced in -1..1."""

    levels: Tensor
    places: Tensor
    mean: Tensor
    covariance: Tensor
    steps: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__(prod(levels), len(levels))
        self.register_buffer("mean", torch.zeros(len(levels)))
        self.register_buffer("covariance", torch.eye(len(levels)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        # the settings know these: they are no weights
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        places = [prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("places", torch.tensor(places), persistent=False)

    def _quantise(self, z: Tensor) -> Codes:
        rows = flat(z)
        if self.training:
            self._follow(rows.detach())
        rows = self._bounded(self._whitened(rows))
        rounded = rows.detach().round()
        indices = ((rounded.nan_to_num() + self._middle).long() * self.places).sum(1).reshape(z[:, 0].shape)
        # the bracket is zero, with a gradient
        return Codes(indices, unflat((rounded + (rows - rows.detach())) / self._middle, indices))

    def _entries(self, indices: Tensor) -> Tensor:
        digits = indices[:, None] // self.places % self.levels
        return (digits - self._middle) / self._middle

    @property
    def _middle(self) -> Tensor:
        """The level of zero: 2 of 0..4, 2 of 0..3."""
        return self.levels // 2

    def _follow(self, rows: Tensor) -> None:
        self.steps += 1
        keep = unbiased(DECAY, self.steps)
        self.mean.mul_(keep).add_((1 - keep) * rows.mean(0))
        aside = rows - self.mean
        self.covariance.mul_(keep).add_((1 - keep) * aside.T @ aside / len(rows))

    def _whitened(self, rows: Tensor) -> Tensor:
        """Of mean 0 and variance 1 in every direction."""
        least = (LEAST * self.covariance.diagonal().mean() + TINY) * torch.eye(self.channels, device=rows.device)
        # not `cholesky`, which refuses what is no number: whoever looks at the loss says it better
        factor, _ = torch.linalg.cholesky_ex(self.covariance + least)
        found: Tensor = torch.linalg.solve_triangular(factor, (rows - self.mean).T, upper=False)
        return found.T

    def _bounded(self, rows: Tensor) -> Tensor:
        """By a normal's cumulative distribution: levels are equally likely, -2..2 of five, -2..1 of four."""
        half = self.levels * (1 - MARGIN) / 2
        # an even number of levels has none in the middle: half a level aside, everything is as for an odd one
        aside = 0.5 * (self.levels % 2 == 0)
        return torch.erf(rows / sqrt(2)) * half - aside


class FSQSettings(QuantiserSettings):
    """Fixed levels for each channel: no book to learn, no `commitment`, every entry in reach."""

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=2, le=64)], ...] = Field(default=(8, 6, 5), min_length=1, max_length=8)
    """Of each channel; their product is the number of entries. The paper's: (8, 6, 5) for about 2^8, (8, 5, 5, 5) for
    2^10, (7, 5, 5, 5, 5) for 2^12."""

    @model_validator(mode="after")
    def _book_is_bounded(self) -> Self:
        if prod(self.levels) > LARGEST:
            raise ValueError(
                f"the levels make a book of {prod(self.levels)} entries, and the largest has {LARGEST}: take fewer "
                "channels or levels"
            )
        return self

    @property
    def book(self) -> tuple[int, int]:
        return prod(self.levels), len(self.levels)

    def build(self) -> ScalarQuantiser:
        return ScalarQuantiser(self.levels)
