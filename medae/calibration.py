"""Calibration: where a score lies in a frozen reference population. Pure arithmetic on numbers.

Split-conformal p-values (Vovk 2005, "Algorithmic Learning in a Random World"): with n reference scores of normal
images, p = (1 + number of references at least as high) / (n + 1). For a new normal image p <= alpha happens with a
probability of at most alpha, whatever the distribution. Where a score is unlike in either direction, p is twice the
smaller of the two one-sided p-values, which keeps the same promise.
"""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping, Sequence
from math import floor, inf, isnan
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, PositiveFloat, model_validator

from medae.errors import UsageError
from medae.settings import Settings

logger = logging.getLogger(__name__)

FEWEST_REFERENCES = 100
"""Below this, a false-positive rate of 5 % may be 9 % in truth, so that a calibration is refused."""
ENOUGH_REFERENCES = 500
"""Below this, it is warned about: a rate of 5 % lies between 3.5 and 6.7 % with a probability of 90 %."""


class Interval(NamedTuple):
    """From low to high, both included."""

    low: float
    high: float


class References(Settings):
    """The scores of normal images that were not trained on: of one score, ascending."""

    values: tuple[float, ...] = Field(min_length=FEWEST_REFERENCES)
    two_sided: bool = False
    """Whether a low score is as anomalous as a high one."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.values) != sorted(self.values):
            raise ValueError("reference scores must be in ascending order")
        return self

    @classmethod
    def of(cls, scores: Sequence[float], *, two_sided: bool = False) -> "References":
        """Raises UsageError for fewer than FEWEST_REFERENCES scores."""
        if len(scores) < FEWEST_REFERENCES:
            raise UsageError(
                f"{len(scores)} reference images are too few to calibrate; give at least {FEWEST_REFERENCES} normal "
                "images that the model was not trained on"
            )
        return cls(values=tuple(np.sort(np.asarray(scores, float)).tolist()), two_sided=two_sided)

    def percentile(self, score: float) -> float:
        """0..100: how many per cent of the references are lower (ties count half). Raises UsageError for no number."""
        _require_number(score)
        rank = (bisect_left(self.values, score) + bisect_right(self.values, score)) / 2
        return 100 * rank / len(self.values)

    def p_value(self, score: float) -> float:
        """The split-conformal p-value, 1/(n+1)..1. Raises UsageError for no number, which is not usual but unknown."""
        _require_number(score)
        count = len(self.values)
        high = (1 + count - bisect_left(self.values, score)) / (count + 1)
        if not self.two_sided:
            return high
        low = (1 + bisect_right(self.values, score)) / (count + 1)
        return min(1.0, 2 * min(low, high))

    def usual(self, false_positive_rate: float) -> Interval:
        """The scores that are not called anomalous at that rate of false alarms: outside is p_value(score) <= rate.

        Raises UsageError for a rate outside 0..1 or below what this many references can tell.
        """
        beyond = self._beyond(false_positive_rate)
        low = self.values[beyond - 1] if self.two_sided else -inf
        high = self.values[len(self.values) - beyond]
        return Interval(low, high)

    def band(self, false_positive_rate: float, probability: float = 0.9) -> Interval:
        """Where the true rate of false alarms lies with `probability`, over draws of the references (a Beta).

        Raises UsageError as `usual`.
        """
        beyond = self._beyond(false_positive_rate) * (2 if self.two_sided else 1)
        return _band(len(self.values), min(beyond, len(self.values)), probability)

    def unlikeness(self, score: float) -> float:
        """Higher is more anomalous, beyond all references too: the score itself or, where two-sided, its distance from
        the references' median in half-widths of their middle 80 per cent on that side."""
        if not self.two_sided:
            return score
        low, middle, high = np.quantile(self.values, (0.1, 0.5, 0.9)).tolist()
        half = (high - middle) if score > middle else (middle - low)
        return abs(score - middle) / half if half > 0 else (0.0 if score == middle else inf)

    def _beyond(self, rate: float) -> int:
        """How many references are called anomalous on each side."""
        count, sides = len(self.values), 2 if self.two_sided else 1
        if not 0 < rate < 1:
            raise UsageError(f"a false-positive rate lies between 0 and 1, got {rate:g}")
        beyond = floor((count + 1) * rate / sides + 1e-9)
        if beyond < 1:
            raise UsageError(
                f"a false-positive rate of {rate:g} cannot be told from {count} reference images; "
                f"the lowest is {sides / (count + 1):.3g}"
            )
        return min(beyond, count)


class Calibration(Settings):
    """The reference scores of one model; re-made for a new site without touching the package."""

    format: Literal[2] = 2
    version: str = "1"
    package_digest: str
    """Of the package whose scores these are."""
    score: str
    """Which of the scores decides."""
    references: dict[str, References]
    """Of each of the model's scores, by name; of a gate also of the soft Dice of the model that it watches."""
    map_maximum: PositiveFloat = 1.0
    """The fixed upper end of the scale on which maps are drawn and stored as fractions."""
    images: str = ""
    """Which images these were, in words."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_1(cls, data: Any) -> Any:
        """Format 1 had one score, high is anomalous."""
        if not isinstance(data, Mapping) or data.get("format") != 1:
            return data
        kept = {name: value for name, value in data.items() if name != "reference"}
        return kept | {"format": 2, "references": {data.get("score"): {"values": data.get("reference")}}}

    @model_validator(mode="after")
    def _has_the_score(self) -> Self:
        if self.score not in self.references:
            raise ValueError(f"there are no references of the score {self.score}")
        return self

    @classmethod
    def from_scores(
        cls, scores: Mapping[str, Sequence[float]], *, two_sided: Collection[str] = (), **facts: Any
    ) -> "Calibration":
        """Of the scores of the same images by the scores' names; the first decides. facts: the other fields.

        Raises UsageError for fewer than FEWEST_REFERENCES images; warns of fewer than ENOUGH_REFERENCES.
        """
        references = {name: References.of(values, two_sided=name in two_sided) for name, values in scores.items()}
        calibration = cls(score=next(iter(scores)), references=references, **facts)
        count, (low, high) = len(calibration.deciding.values), calibration.deciding.band(0.05)
        if count < ENOUGH_REFERENCES:
            logger.warning(
                "calibrated on %d images: a false-positive rate of 5%% may in truth be %.1f to %.1f%%; take %d or more",
                *(count, 100 * low, 100 * high, ENOUGH_REFERENCES),
            )
        return calibration

    @property
    def deciding(self) -> References:
        """The references of the score that decides."""
        return self.references[self.score]


def _require_number(score: float) -> None:
    if isnan(score):
        raise UsageError("a score that is not a number has no place among references")


def benjamini_hochberg(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values of a set of images -> q-values, in the same order (Benjamini and Hochberg 1995).

    Calling those with q <= alpha anomalous keeps the expected share of false alarms among them at most alpha, where
    the p-values are independent or positively dependent, as conformal ones of one calibration are (Bates 2023).
    Raises UsageError for values outside 0..1 and for those that are no numbers.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise UsageError("p-values are numbers from 0 to 1, in one list")
    order = np.argsort(-p, kind="stable")  # from the highest, so that each q is at most those above
    q = np.empty_like(p)
    q[order] = np.minimum.accumulate(p[order] * len(p) / np.arange(len(p), 0, -1)) if len(p) else p
    return q


def _band(count: int, beyond: int, probability: float) -> Interval:
    """Of the true rate, where `beyond` of `count` + 1 gaps between references are called anomalous."""
    from scipy.stats import beta

    tail = (1 - probability) / 2
    low, high = beta.ppf([tail, 1 - tail], beyond, count + 1 - beyond).tolist()
    return Interval(low, high)
