"""How much of its book a network uses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Usage:
    """How often each entry of a book was chosen."""

    counts: Tensor
    """(entries,), int64."""

    @classmethod
    def of(cls, indices: Iterable[Tensor], codes: int) -> Self:
        """indices: of any shape, from a book of so many entries."""
        counts = torch.zeros(codes, dtype=torch.int64)
        for found in indices:
            counts += torch.bincount(found.flatten().cpu(), minlength=codes)
        return cls(counts)

    @property
    def used(self) -> int:
        """Entries that were chosen at all."""
        return int((self.counts > 0).sum())

    @property
    def bits(self) -> float:
        """Entropy of a code that knows nothing of its neighbours."""
        share = self.counts.double() / max(int(self.counts.sum()), 1)
        return -float(torch.special.xlogy(share, share).sum()) / math.log(2)

    @property
    def perplexity(self) -> float:
        """As many entries, used equally often, would say as much."""
        return math.exp2(self.bits)

    @property
    def summary(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "entries": len(self.counts),
            "used": self.used,
            "perplexity": round(self.perplexity, 2),
            "counted": int(self.counts.sum()),
        }
