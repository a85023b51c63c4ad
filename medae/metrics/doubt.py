"""Doubt about one segmentation from what costs no further answer: its own probabilities, and how strange its input is.

Neither is enough. A network can be sure of its answer to an image of a kind that it has never seen, and a damage that
everybody would notice can leave its answer as good as before.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, pi, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from medae.metrics.selection import UNCERTAINTY
from medae.settings import Settings

OF_SOFT_DICE, OF_GATE, COMBINED = f"{UNCERTAINTY}soft_dice", f"{UNCERTAINTY}gate", f"{UNCERTAINTY}combined"
"""Names among the scores of an answer."""
FEWEST = 5
"""Images; fewer do not say how far the usual ones spread."""
LEAST_SCORE, LEAST_SPREAD = 1e-3, 0.1


class SoftDice:
    """1 - Dice of labels with their probabilities (Borges 2024, https://arxiv.org/abs/2402.10665), put together part by
    part; of all labels together, so that small ones count little. Nothing found is 1, unless nothing is possible."""

    def __init__(self) -> None:
        self._both = self._sums = 0.0

    def add(self, labels: NDArray[Any], probabilities: NDArray[Any]) -> None:
        """labels (*spatial) of a part of the image, and the probabilities (labels, *spatial) of 1, 2, ..."""
        self._sums += float(probabilities.sum(dtype=np.float64)) + np.count_nonzero(labels)
        for number, soft in enumerate(probabilities, start=1):
            self._both += float(soft[labels == number].sum(dtype=np.float64))

    @property
    def disagreement(self) -> float:
        """0..1."""
        return float(1 - 2 * self._both / self._sums) if self._sums > 0 else 0.0


class Usual(Settings):
    """How a positive score is distributed over images that the model knows: log-logistic, so that its tails go on
    beyond the most unusual of these, where ranks would all be the same."""

    middle: PositiveFloat
    """The median."""
    spread: PositiveFloat
    """The standard deviation of the natural logarithms."""
    images: PositiveInt

    @classmethod
    def of(cls, scores: Sequence[float]) -> "Usual | None":
        """None for fewer than FEWEST."""
        if len(scores) < FEWEST:
            return None
        logs = np.log(np.maximum(scores, LEAST_SCORE))
        spread = max(float(logs.std()), LEAST_SPREAD)
        return cls(middle=float(np.exp(np.median(logs))), spread=spread, images=len(scores))

    def place(self, score: float) -> float:
        """0..1: which part of known images is expected to have a lower score."""
        away = (log(max(score, LEAST_SCORE)) - log(self.middle)) / self.spread
        return 1 / (1 + exp(-min(max(away * pi / sqrt(3), -700.0), 700.0)))


@dataclass(frozen=True)
class Doubt:
    """Where an answer lies between the usual and what the model has never seen, 0..1."""

    gate: Usual
    """Of the score of the model's gate, over its reference images."""
    soft_dice: Usual
    """Over images that the model has not learnt from."""

    def __call__(self, gate: float | None, soft_dice: float) -> float:
        """The mean of the two places. gate: None is an image that the gate cannot take, which nothing is beyond."""
        place = 1.0 if gate is None else self.gate.place(gate)
        return (place + self.soft_dice.place(soft_dice)) / 2
