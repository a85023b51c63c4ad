"""A prior over the codes of a VQ-VAE: what code comes next, row by row, by MONAI's transformer (van den Oord 2017,
section 3.3, with the transformer of Tudosiu 2022, https://arxiv.org/abs/2209.03177, for the PixelCNN).

It gives samples, and how likely each code of an image is where it stands.
"""

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod
from typing import Self

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn import functional

from medae.errors import UnfitImage
from medae.settings import Settings

LONGEST = 1024
"""Codes that a prior can see at once. Work and memory grow with the square of it, and a sample takes as many passes."""

WINDOWS = 32
"""Windows in one forward pass."""


class PriorSettings(Settings):
    """A transformer over a grid of codes, and how it is trained once the network is."""

    width: PositiveInt = 64
    """Numbers that stand for a code inside."""
    depth: PositiveInt = 4
    """Blocks of attention."""
    heads: PositiveInt = 4
    """Of each block; they divide the width among them."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Part of the embedding that is left out in training."""
    grid: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """Codes along each axis that it sees at once, 1024 at most in all; null: those of a training patch."""
    steps: PositiveInt = 1000
    """Optimiser steps."""
    validate_every: PositiveInt = 100
    """Steps between two looks at the validation codes; the best weights are kept."""
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 1e-3
    """After a short linear rise; then it falls along a cosine to zero."""
    weight_decay: NonNegativeFloat = 0.01

    @model_validator(mode="after")
    def _holds(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
        if self.grid is not None:
            require_bounded(self.grid)
        return self

    def build(self, codes: int, grid: Sequence[int]) -> "Prior":
        """An untrained prior over so many codes. Raises ValueError for a grid that is too long."""
        return Prior(self, codes, grid)


def require_bounded(grid: Sequence[int]) -> None:
    """Raises ValueError for a grid of more codes than a prior can see at once."""
    if prod(grid) > LONGEST:
        raise ValueError(
            f"a grid of {words(grid)} has {prod(grid)} codes, and a prior sees at most {LONGEST} at once; take a "
            "smaller grid, or a network with one level more"
        )


def words(grid: Sequence[int]) -> str:
    """8 x 8"""
    return " x ".join(map(str, grid))


class Prior(nn.Module):
    """P(code | all codes before it) within a grid, read row by row."""

    def __init__(self, settings: PriorSettings, codes: int, grid: Sequence[int]) -> None:
        from monai.networks.nets.transformer import DecoderOnlyTransformer

        super().__init__()
        require_bounded(grid)
        self.codes, self.grid = codes, tuple(grid)
        self.core = DecoderOnlyTransformer(
            num_tokens=codes + 1,  # the last one stands before the first code
            max_seq_len=prod(grid),
            attn_layers_dim=settings.width,
            attn_layers_depth=settings.depth,
            attn_layers_heads=settings.heads,
            embedding_dropout_rate=settings.dropout,
            use_flash_attention=True,
        )
        for block in self.core.blocks:
            block.norm_cross_attn = nn.Identity()  # there is no cross attention, so it would never learn
            # the attention is causal by itself: the mask is neither used nor worth being saved
            block.attn.register_buffer("causal_mask", None)

    def forward(self, sequences: Tensor) -> Tensor:
        """(B, n) codes, n up to the length of the grid -> (B, n, codes): logits of each, given those before it."""
        start = sequences.new_full((len(sequences), 1), self.codes)
        logits: Tensor = self.core(torch.cat([start, sequences[:, :-1]], dim=1))
        return logits[..., : self.codes].float()

    def log_likelihood(self, indices: Tensor) -> Tensor:
        """ln P of each code where it stands: (B, *spatial) -> (B, *spatial), float32, in nats.

        A grid larger than the prior's own is cut into windows, each read by itself; where the last window of an axis
        overlaps the one before, what the earlier one found is kept. Raises UnfitImage for a smaller grid.
        """
        size = tuple(indices.shape[1:])
        if len(size) != len(self.grid) or any(here < own for here, own in zip(size, self.grid, strict=True)):
            raise UnfitImage(
                f"this image has {words(size)} codes, and the prior was trained on {words(self.grid)}; send a larger "
                "image"
            )
        found = torch.zeros(indices.shape, device=indices.device)
        for window in self._windows(size):
            part = indices[(slice(None), *window)]
            batches = [self._within(batch) for batch in torch.split(part.flatten(1), WINDOWS)]
            found[(slice(None), *window)] = torch.cat(batches).reshape(part.shape)
        return found

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """(count, *grid) codes drawn one after the other; the draws are the generator's, a temperature below 1 plays
        safe."""
        device = next(self.parameters()).device
        length = prod(self.grid)
        drawn = torch.zeros(count, length, dtype=torch.int64, device=device)
        for place in range(length):
            logits = self(drawn[:, : place + 1])[:, place] / temperature
            chances = logits.softmax(1).to(generator.device)
            drawn[:, place] = torch.multinomial(chances, 1, generator=generator)[:, 0].to(device)
        return drawn.reshape(count, *self.grid)

    def _within(self, sequences: Tensor) -> Tensor:
        return -functional.cross_entropy(self(sequences).movedim(2, 1), sequences, reduction="none")

    def _windows(self, size: Sequence[int]) -> Iterator[tuple[slice, ...]]:
        """Last ones first, so that earlier ones overwrite what both hold."""
        axes = [
            [slice(start, start + own) for start in reversed([*range(0, here - own, own), here - own])]
            for here, own in zip(size, self.grid, strict=True)
        ]
        return product(*axes)
