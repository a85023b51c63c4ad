"""Doubt: what is known of an answer before anyone has seen the truth, and how well it follows the error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medae.image import Image
from medae.metrics.selection import GATE, UNCERTAINTY, Values, doubts_of, risk_coverage, risk_of
from medae.predictor import Prediction, Predictor
from medae.tasks import Segmentation
from medae.uncertainty import RepeatedPredictor

SOFTMAX = f"{UNCERTAINTY}softmax"
FEWEST = 3
"""Cases; fewer have no order to speak of."""


def answer_with_doubts(predictor: Predictor, image: Image) -> tuple[Prediction, dict[str, float]]:
    """The answer, and each doubt about it: higher is less sure.

    `gate_percentile` of a calibrated gate; the uncertainties of a RepeatedPredictor, beside which stands
    `uncertainty_softmax`, 1 minus the mean probability of the label given: what costs nothing.
    """
    soft = isinstance(predictor, RepeatedPredictor) and isinstance(predictor.package.card.task, Segmentation)
    prediction = predictor(image, probabilities=soft)
    doubts = {name: value for name, value in prediction.scores.items() if name.startswith(UNCERTAINTY)}
    if prediction.probabilities is not None:
        doubts[SOFTMAX] = 1 - _mean_probability(prediction.probabilities)
    if prediction.gate is not None and prediction.gate.percentile is not None:
        doubts[GATE] = prediction.gate.percentile
    return prediction, doubts


def _mean_probability(probabilities: Image) -> float:
    """Of the label, or background, that is the most probable one."""
    pixels = probabilities.pixels
    return float(np.maximum(pixels.max(0), 1 - pixels.sum(0)).mean(dtype=np.float64))


def selection(cases: Sequence[Values]) -> dict[str, Any]:
    """Doubt -> Spearman's correlation with the risk and the area under the risk-coverage curve; beside them the mean
    risk, which is the area of a doubt that says nothing. Empty without doubts or with fewer than FEWEST cases."""
    from scipy.stats import spearmanr

    found: dict[str, Any] = {}
    for name in doubts_of(cases):
        known = [values for values in cases if name in values]
        if len(known) < FEWEST:
            continue
        doubt, risk = [values[name] for values in known], [risk_of(values) for values in known]
        varied = len(set(doubt)) > 1 and len(set(risk)) > 1
        found[name] = {
            "area": risk_coverage(doubt, risk).area,
            "mean_risk": float(np.mean(risk)),
            "spearman": float(spearmanr(doubt, risk).statistic) if varied else None,
            "cases": len(known),
        }
    return found
