"""Detection of anomalous images by a score, and the trivial statistics that every score must be shown beside."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL = "normal"
"""The label of a case that shows nothing abnormal."""

TRIVIAL = ("intensity_mean", "intensity_std", "sharpness")
"""The trivial statistics by name: what every anomaly score is reported beside."""


def auroc(scores: ArrayLike, anomalous: Sequence[bool]) -> float:
    """Area under the ROC curve: how often an anomalous image scores above a normal one; ties count half.

    Not a number unless both kinds are present.
    """
    from sklearn.metrics import roc_auc_score

    truth = np.asarray(anomalous, bool)
    if truth.all() or not truth.any():
        return float("nan")
    return float(roc_auc_score(truth, np.asarray(scores, float)))


def average_precision(scores: ArrayLike, anomalous: Sequence[bool]) -> float:
    """Average precision; its value by chance is the share of anomalous images. Not a number unless both are present."""
    from sklearn.metrics import average_precision_score

    truth = np.asarray(anomalous, bool)
    if truth.all() or not truth.any():
        return float("nan")
    return float(average_precision_score(truth, np.asarray(scores, float)))


def trivial_statistics(pixels_CSRW: NDArray[Any]) -> dict[str, float]:
    """What any script can measure: mean and standard deviation of the values, and sharpness.

    Sharpness is the variance of the 4-neighbour Laplacian within slices. A model that does not beat these has learnt
    nothing that one line of code does not know.
    """
    values = pixels_CSRW.astype(np.float64)
    return {
        "intensity_mean": float(values.mean()),
        "intensity_std": float(values.std()),
        "sharpness": float(_laplacian(values).var()),
    }


def _laplacian(values_CSRW: NDArray[np.float64]) -> NDArray[np.float64]:
    padded = np.pad(values_CSRW, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    centre = padded[..., 1:-1, 1:-1]
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    result: NDArray[np.float64] = around - 4 * centre
    return result
