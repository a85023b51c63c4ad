"""How unlikely the image is to a model that says distributions. In nats per voxel, lower is likelier.

KL, NLL and ELBO: An and Cho 2015, "Variational Autoencoder based Anomaly Detection using Reconstruction Probability".
Variance: Mao 2020, "Abnormality Detection in Chest X-Ray Images Using Uncertainty Prediction Autoencoders" (AE-U),
https://arxiv.org/abs/2006.02562; a head for a network that is already trained does the same (see `fitting`).
"""

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveFloat

from medae.scores.base import Evidence, MapScore, Need, ObservedScore

LOG_TWO_PI = float(np.log(2 * np.pi))


class KL(MapScore):
    """How far the code is from its prior, spread over the voxels it stands for."""

    needs: ClassVar[frozenset[Need]] = frozenset({"code", "distribution"})

    kind: Literal["kl"] = "kl"

    def evidence(self, channels: int) -> dict[str, int]:
        return {"kl": 1}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        return evidence["kl"]


class NLL(MapScore):
    """-log p(x | code) of a decoder that says its variance, the sum over channels."""

    needs: ClassVar[frozenset[Need]] = frozenset({"code", "variance"})

    kind: Literal["nll"] = "nll"

    def evidence(self, channels: int) -> dict[str, int]:
        return {"reconstruction": channels, "log_variance": channels}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        log_variance = evidence["log_variance"]
        scaled = np.square(x - evidence["reconstruction"]) * np.exp(-log_variance)
        nats = 0.5 * (scaled + log_variance + LOG_TWO_PI)
        total: NDArray[Any] = nats.sum(axis=0, keepdims=True, dtype=np.float32)
        return total


class ELBO(MapScore):
    """-ELBO: -log p(x | code) + KL, with a variance that is the same everywhere."""

    needs: ClassVar[frozenset[Need]] = frozenset({"code", "distribution"})

    kind: Literal["elbo"] = "elbo"
    deviation: PositiveFloat = 0.1
    """Standard deviation of a voxel around its reconstruction, in the network's 0..1 range."""

    def evidence(self, channels: int) -> dict[str, int]:
        return {"reconstruction": channels, "kl": 1}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        squares = np.square(x - evidence["reconstruction"]).sum(axis=0, keepdims=True, dtype=np.float32)
        constant = len(x) * (0.5 * LOG_TWO_PI + np.log(self.deviation))
        nats: NDArray[Any] = squares / np.float32(2 * self.deviation**2) + np.float32(constant) + evidence["kl"]
        return nats


class CodeLikelihood(ObservedScore):
    """-ln P of each code where it stands, by the prior over the codes, spread over the voxels it stands for.

    Marimont 2021, "Anomaly detection through latent space restoration using vector quantized variational
    autoencoders", https://arxiv.org/abs/2012.06765. What is likely depends on where the prior begins to read, so that
    the image must be seen whole.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"codes", "prior"})
    fits: ClassVar[bool] = True

    kind: Literal["code_likelihood"] = "code_likelihood"

    @property
    def whole(self) -> bool:
        return True


class Variance(MapScore):
    """Squared residual by the variance that is expected there: what always reconstructs badly does not count.

    The variance is the decoder's own (`decoder: gaussian`).
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"code", "variance"})

    kind: Literal["variance"] = "variance"

    def evidence(self, channels: int) -> dict[str, int]:
        return {"reconstruction": channels, "log_variance": channels}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        return weighted(evidence["reconstruction"], evidence["log_variance"], x)


class VarianceHead(MapScore):
    """As `variance`, for any autoencoder: a small head, fitted once the network is trained, says the variance.

    It sees what the decoder made, never the image, so that it cannot excuse what is not normal.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"code"})
    fits: ClassVar[bool] = True

    kind: Literal["variance_head"] = "variance_head"

    @property
    def radius(self) -> int:
        return 16  # two convolutions of 3 at a fourth of the resolution

    def evidence(self, channels: int) -> dict[str, int]:
        return {"reconstruction": channels, self.key: 1}

    def map(self, evidence: Evidence, x: NDArray[Any]) -> NDArray[Any]:
        return weighted(evidence["reconstruction"], evidence[self.key], x)


def weighted(reconstruction: NDArray[Any], log_variance: NDArray[Any], x: NDArray[Any]) -> NDArray[Any]:
    """The mean over channels of the squared residual by its variance: 1 where all is as expected."""
    squares = np.square(x - reconstruction) * np.exp(-log_variance)
    mean: NDArray[Any] = squares.mean(axis=0, keepdims=True, dtype=np.float32)
    return mean
