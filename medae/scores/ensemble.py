"""Several scores as one: by their ranks among normal images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.scores.base import Found, Score

POINTS = 129
"""Quantiles that are kept of each member's scores of normal images."""


class RankAverage(Score):
    """The mean over members, or the highest, of where their score ranks among normal training images, 0..1; of one that
    is two-sided, how far from the middle.

    Beyond the highest of these a rank goes on rising with the score, by 1 for each range between their median and
    their 99th percentile, so that two images that no normal one reaches can be told apart.
    """

    fits: ClassVar[bool] = True

    kind: Literal["rank_average"] = "rank_average"
    members: tuple[str, ...] = Field(min_length=2)
    """Names of scores before this one."""
    by: Literal["mean", "highest"] = "mean"
    """What they say on the whole, or whether any of them says something."""

    @property
    def after(self) -> tuple[str, ...]:
        return self.members

    def default_name(self) -> str:
        return "rank_average"

    def value(self, found: Found) -> float:
        parts = found.parts(self.key)
        ranks = {name: rank(found.values[name], parts[name]) for name in self.members}
        away = [2 * abs(at - 0.5) if name in found.two_sided else at for name, at in ranks.items()]
        return float(max(away) if self.by == "highest" else np.mean(away))

    def fit(self, values: Mapping[str, Sequence[float]]) -> dict[str, NDArray[Any]]:
        """What is kept of the members' scores of normal images."""
        return {name: np.quantile(values[name], np.linspace(0, 1, POINTS)) for name in self.members}


def rank(score: float, quantiles: NDArray[Any]) -> float:
    """0..1 between the lowest and the highest of evenly spaced quantiles, beyond them in proportion."""
    low, high = float(quantiles[0]), float(quantiles[-1])
    inside = float(np.interp(score, quantiles, np.linspace(0, 1, len(quantiles))))
    middle = float(np.median(quantiles))
    if score > high:
        return inside + (score - high) / max(float(np.quantile(quantiles, 0.99)) - middle, 1e-12)
    if score < low:
        return inside - (low - score) / max(middle - float(np.quantile(quantiles, 0.01)), 1e-12)
    return inside
