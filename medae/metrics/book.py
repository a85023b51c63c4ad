"""How much of its book a network with codes uses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr


@dataclass(frozen=True)
class Usage:
    """How often each entry of a book was chosen."""

    counts: NDArray[np.int64]
    """(entries,)."""

    @classmethod
    def of(cls, indices: Iterable[Any], entries: int) -> Self:
        """indices: arrays or CPU tensors of any shape, from a book of so many entries."""
        counts = np.zeros(entries, np.int64)
        for found in indices:
            counts += np.bincount(np.asarray(found).reshape(-1), minlength=entries)
        return cls(counts)

    @property
    def used(self) -> int:
        """Entries that were chosen at all."""
        return int((self.counts > 0).sum())

    @property
    def bits(self) -> float:
        """Entropy of a code that knows nothing of its neighbours."""
        return float(entr(self.counts / max(self.counts.sum(), 1)).sum()) / math.log(2)

    @property
    def perplexity(self) -> float:
        """So many entries, used equally often, would say as much."""
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
