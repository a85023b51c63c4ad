"""Selective prediction: how much risk is left when the most doubtful cases are sent to a person."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNCERTAINTY = "uncertainty_"
"""How the names of uncertainties begin."""
GATE = "gate_percentile"
"""Of the input, as its gate says it."""

Values = Mapping[str, float]
"""Of one case, by name."""


def doubts_of(cases: Iterable[Values]) -> list[str]:
    """The names of what says beforehand how doubtful an answer is."""
    names = dict.fromkeys(name for values in cases for name in values)
    return [name for name in names if name.startswith(UNCERTAINTY) or name == GATE]


def risk_of(values: Values) -> float:
    """Of a segmentation 1 - Dice; of a restoration the mean squared error in units of the squared range."""
    return 1 - values["dice"] if "dice" in values else float(10 ** (-values["psnr"] / 10))


class RiskCoverage(NamedTuple):
    """Cases are kept from the surest to the most doubtful."""

    coverage: NDArray[np.float64]
    """Part of the cases that is kept, ascending to 1."""
    risk: NDArray[np.float64]
    """Mean risk of the kept ones."""

    @property
    def area(self) -> float:
        """AURC, the mean risk over coverages: lower is better; the mean risk itself where doubt says nothing."""
        return float(self.risk.mean())


def risk_coverage(doubt: ArrayLike, risk: ArrayLike) -> RiskCoverage:
    """One value per case -> the curve (El-Yaniv 2010, JMLR 11:1605; Geifman 2019, https://arxiv.org/abs/1805.08206).

    doubt: higher is less sure. risk: such as 1 - Dice. Of equal doubts none is surer: each has the mean risk of all.
    Raises ValueError for no cases and for values that are not numbers.
    """
    doubts, risks = np.asarray(doubt, float), np.asarray(risk, float)
    if doubts.shape != risks.shape or doubts.ndim != 1 or not doubts.size:
        raise ValueError(f"one doubt and one risk for each case, at least one; got {doubts.shape} and {risks.shape}")
    if not (np.isfinite(doubts).all() and np.isfinite(risks).all()):
        raise ValueError("doubts and risks must be numbers")
    _, group, counts = np.unique(doubts, return_inverse=True, return_counts=True)
    shared = np.bincount(group, risks) / counts
    order = np.argsort(doubts, kind="stable")
    kept = np.arange(1, len(doubts) + 1)
    return RiskCoverage(kept / len(doubts), np.cumsum(shared[group][order]) / kept)
