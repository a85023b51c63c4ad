"""Several scores as one: by their ranks among normal images."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.scores.base import Found, Score

LEAST = 1e-6
"""Of a median: scores that differ by less are equal."""
POINTS = 129
"""Quantiles that are kept of each member's scores of normal images."""


class RankAverage(Score):
    """The mean over members, or the highest, of where their score ranks among normal training images, 0..1; of one that
    is two-sided, how far from the middle.

    Beyond the highest of these a rank goes on rising with the score, by 1 for each range between their median and
    their 99th percentile (or, where these are equal, the highest), so that two images that no normal one reaches can be
    told apart. Where all of these are equal, anything else is 1 beyond.
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
    score = float(np.asarray(score, quantiles.dtype))  # rounded as what it is compared with
    low, high = float(quantiles[0]), float(quantiles[-1])
    inside = float(np.interp(score, quantiles, np.linspace(0, 1, len(quantiles))))
    if score > high:
        return 1 + _beyond(score - high, quantiles, 0.99, 1)
    if score < low:
        return -_beyond(low - score, quantiles, 0.01, 0)
    return inside


def _beyond(far: float, quantiles: NDArray[Any], *ends: float) -> float:
    """In units of the range between the median and the first of these ends that differs from it."""
    middle = float(np.median(quantiles))
    equal = LEAST * max(abs(middle), LEAST)
    ranges = (abs(float(np.quantile(quantiles, end)) - middle) for end in ends)
    return far / next((found for found in ranges if found > equal), max(far, equal))
