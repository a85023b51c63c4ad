"""Overlap of two label images."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def dice(prediction: NDArray[Any], reference: NDArray[Any], label: int) -> float:
    """2 |P and R| / (|P| + |R|) of one label, 0..1 (Dice 1945).

    Both arrays have the same shape and hold label values. Where neither has the label it is 1: nothing was there and
    nothing was found; so false alarms on empty cases count (MONAI's `ignore_empty=False`).
    """
    both, either = _common(prediction, reference, label)
    return 1.0 if either == 0 else 2 * both / (both + either)


def iou(prediction: NDArray[Any], reference: NDArray[Any], label: int) -> float:
    """|P and R| / |P or R| of one label, 0..1 (Jaccard 1912). 1 where neither has the label."""
    both, either = _common(prediction, reference, label)
    return 1.0 if either == 0 else both / either


def _common(prediction: NDArray[Any], reference: NDArray[Any], label: int) -> tuple[int, int]:
    if prediction.shape != reference.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {reference.shape}")
    predicted, referred = prediction == label, reference == label
    return int(np.count_nonzero(predicted & referred)), int(np.count_nonzero(predicted | referred))
