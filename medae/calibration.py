"""Calibration: where a score lies in a frozen reference population. Pure arithmetic on numbers.

Split-conformal p-values (Vovk 2005, "Algorithmic Learning in a Random World"): with n reference scores of normal
images, p = (1 + number of references at least as high) / (n + 1). For a new normal image p <= alpha happens with a
probability of at most alpha, whatever the distribution.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from math import ceil
from typing import Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, model_validator

from medae.errors import UsageError
from medae.settings import Settings

FEWEST_REFERENCES = 10
"""Below this, a percentile says nothing."""


class Calibration(Settings):
    """Sorted reference scores of one model; re-made for a new site without touching the package."""

    format: Literal[1] = 1
    version: str = "1"
    package_digest: str
    """Of the package whose scores these are."""
    score: str
    """Which of the model's scores; higher is more anomalous."""
    reference: tuple[float, ...] = Field(min_length=FEWEST_REFERENCES)
    """Scores of normal images that were not trained on, ascending."""
    map_maximum: PositiveFloat = 1.0
    """The fixed upper end of the scale on which maps are drawn and stored as fractions."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if list(self.reference) != sorted(self.reference):
            raise ValueError("reference scores must be in ascending order")
        return self

    @classmethod
    def from_scores(
        cls, scores: Sequence[float], *, score: str, package_digest: str, map_maximum: float = 1.0
    ) -> "Calibration":
        """Raises UsageError for fewer than FEWEST_REFERENCES scores."""
        if len(scores) < FEWEST_REFERENCES:
            raise UsageError(
                f"{len(scores)} reference images are too few to calibrate; give at least {FEWEST_REFERENCES} normal "
                "images that the model was not trained on"
            )
        reference = tuple(float(value) for value in np.sort(np.asarray(scores, float)))
        return cls(package_digest=package_digest, score=score, reference=reference, map_maximum=map_maximum)

    def percentile(self, score: float) -> float:
        """0..100: how many per cent of the references are lower (ties count half)."""
        rank = (bisect_left(self.reference, score) + bisect_right(self.reference, score)) / 2
        return 100 * rank / len(self.reference)

    def p_value(self, score: float) -> float:
        """The split-conformal p-value, 1/(n+1)..1."""
        above = len(self.reference) - bisect_left(self.reference, score)
        return (1 + above) / (len(self.reference) + 1)

    def threshold(self, false_positive_rate: float) -> float:
        """The score above which an image is called anomalous at that rate of false alarms.

        score > threshold is the same as p_value(score) <= false_positive_rate.
        Raises UsageError for a rate outside 0..1 or below what this many references can tell.
        """
        count = len(self.reference)
        if not 0 < false_positive_rate < 1:
            raise UsageError(f"a false-positive rate lies between 0 and 1, got {false_positive_rate:g}")
        rank = max(ceil((count + 1) * (1 - false_positive_rate) - 1e-9), 1)
        if rank > count:
            raise UsageError(
                f"a false-positive rate of {false_positive_rate:g} cannot be told from {count} reference images; "
                f"the lowest is {1 / (count + 1):.3g}"
            )
        return self.reference[rank - 1]
