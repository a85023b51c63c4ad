"""What the code of a variational autoencoder holds: nats and activity of each dimension, and whether it is used at all.

A dimension of a spatial code is a channel, at all places.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

ACTIVE = 0.01
"""A dimension is active whose mean varies by more, from image to image (Burda 2016,
https://arxiv.org/abs/1509.00519)."""
FEWEST_ACTIVE, FEWEST_NATS = 0.1, 0.1
"""A code has collapsed with a smaller part of its dimensions active, or fewer nats about an image."""


class Posterior:
    """Collects distributions; `summary` says what they tell about their images."""

    def __init__(self) -> None:
        self._images = self._means = 0
        self._sum = self._squares = self._nats = np.zeros(())

    def see(self, mean: NDArray[Any], log_variance: NDArray[Any]) -> None:
        """Posteriors of some images, both (N, dimensions, *places)."""
        mean, log_variance = (
            values.astype(np.float64).reshape(*values.shape[:2], -1) for values in (mean, log_variance)
        )
        nats = 0.5 * (np.square(mean) + np.exp(log_variance) - 1 - log_variance)
        self._images += len(mean)
        self._means += len(mean) * mean.shape[2]
        self._nats = self._nats + nats.sum((0, 2))
        self._sum, self._squares = self._sum + mean.sum((0, 2)), self._squares + np.square(mean).sum((0, 2))

    def summary(self) -> dict[str, Any]:
        """Plain data; empty where nothing was seen.

        kl_nats: KL(posterior || N(0, 1)) of one image's whole code, the mean over images; kl_per_dimension: its parts.
        active_units: dimensions whose mean has a variance above .01. collapsed: hardly any, or hardly a nat.
        """
        if not self._images:
            return {}
        variance = self._squares / self._means - np.square(self._sum / self._means)
        per_dimension = self._nats / self._images
        active, count = int((variance > ACTIVE).sum()), len(per_dimension)
        total = float(per_dimension.sum())
        return {
            "dimensions": count,
            "active_units": active,
            "kl_nats": total,
            "kl_per_dimension": [round(float(nats), 6) for nats in per_dimension],
            "collapsed": active / count < FEWEST_ACTIVE or total < FEWEST_NATS,
        }


def alarm(summary: dict[str, Any]) -> str | None:
    """What to say of a collapsed code; None of one that is in use."""
    if not summary.get("collapsed"):
        return None
    return (
        f"posterior collapse: {summary['active_units']} of {summary['dimensions']} dimensions of the code are active "
        f"and it holds {summary['kl_nats']:.3g} nats about an image, so the decoder answers nearly the same for all. "
        "Lower the beta of kl, or give it warm_up, cycles or free_bits"
    )
