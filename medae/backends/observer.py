"""The observer: one small module around a network that says, beside its output, what anomaly scores need to know.

Everything leaves as full-size channels in the order in which the task asks, so that tiles, stitching and every door
stay as they are. What is fitted comes from the package's weights under `scores.KEY.`; the network's own keep their
names.
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medae.backends.feature_maps import (
    FeatureMap,
    MahalanobisDistance,
    NeighbourDistance,
    code_factors,
    enlarged,
    features_of,
    planes,
    unplaned,
)
from medae.errors import PackageError
from medae.features import FeatureDistance, FilterFeatures
from medae.features.filters import SCALES, smooth
from medae.networks import Codes, Gaussian, Output, run
from medae.networks.base import pad
from medae.networks.blocks import ConvNormReLU, convolution
from medae.networks.prior import Prior
from medae.package import Card
from medae.scores import (
    SSIM,
    CodeLikelihood,
    Mahalanobis,
    MapScore,
    Neighbours,
    PerceptualMap,
    Restoration,
    VarianceHead,
    parts_of,
)
from medae.tasks import Anomaly

HEAD_WIDTH = 16
HEAD_LOG_VARIANCE = (-12.0, 6.0)


class Observer(nn.Module):
    """(B, C, *spatial) -> (B, evidence, *spatial). A part takes the image and what the network says of it."""

    def __init__(self, network: nn.Module, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(parts)
        self.parts = nn.ModuleList(parts.values())

    def forward(self, x: Tensor) -> Tensor:
        said = run(self.network, x)
        return torch.cat([part(x, said) for part in self.parts], dim=1)


def observed(
    network: nn.Module, card: Card, weights: Mapping[str, NDArray[Any]], prior: Callable[[], Prior]
) -> nn.Module:
    """The network as the card's task needs it: itself, or with an observer around it.

    prior: builds the package's, where a score asks for it.

    Raises PackageError where a fitted part is missing.
    """
    if not isinstance(card.task, Anomaly):
        return network
    needed = card.task.evidence(card.channels_in)
    if list(needed) == ["reconstruction"]:
        return network
    observers = {score.key: score for score in card.task.mapped}
    parts = {
        name: CodesUnlikely(prior(), getattr(network, "stride", 1))
        if isinstance(observers.get(name), CodeLikelihood)
        else _part(name, observers, weights, card.receptive_field.dims, network)
        for name in needed
    }
    return Observer(network, parts)


def _part(
    name: str, scores: Mapping[str, MapScore], weights: Mapping[str, NDArray[Any]], dims: int, network: nn.Module
) -> nn.Module:
    stride: int = getattr(network, "stride", 1)
    if name in SHARED:
        return SHARED[name](stride)
    score, fitted = scores[name], parts_of(weights, name)
    try:
        if isinstance(score, SSIM):
            return SSIMMap(score)
        if isinstance(score, PerceptualMap):
            return FeatureDifference()
        if isinstance(score, Restoration):
            return Restored(network, score)
        if isinstance(score, VarianceHead):
            return Head.of(fitted, dims, stride)
        if isinstance(score, Mahalanobis):
            return FeatureMap(MahalanobisDistance(fitted), features_of(score, stride))
        assert isinstance(score, Neighbours), f"no observer of {score.kind}"
        return FeatureMap(NeighbourDistance(fitted, score.count), features_of(score, stride))
    except (KeyError, RuntimeError):
        raise PackageError(
            f"the score {name} has no fitted parts among the weights, or parts that do not fit: the package is not "
            "complete. Fit its scores with `medae rescore`, or train it again."
        ) from None


class Shared(nn.Module):
    """Evidence that several scores may need. stride: voxels along a side that a place of the code stands for."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride


class Reconstruction(Shared):
    """What the network makes of the image."""

    def forward(self, x: Tensor, said: Output) -> Tensor:
        return said.prediction


class LogVariance(Shared):
    """What the decoder says of its variance."""

    def forward(self, x: Tensor, said: Output) -> Tensor:
        assert said.log_variance is not None, "the experiment has checked that the decoder says a variance"
        return said.log_variance


class KLMap(Shared):
    """KL to the standard normal prior, in nats, each place's spread evenly over the voxels it stands for."""

    def forward(self, x: Tensor, said: Output) -> Tensor:
        latent = said.latent
        assert isinstance(latent, Gaussian), "the experiment has checked that the code is a distribution"
        nats = 0.5 * (latent.mean.square() + latent.log_variance.exp() - 1 - latent.log_variance)
        factors = code_factors(x, nats, self.stride)
        return enlarged(nats.sum(1, keepdim=True) / prod(factors), factors, x)


SHARED: Mapping[str, type[Shared]] = {
    "reconstruction": Reconstruction,
    "log_variance": LogVariance,
    "kl": KLMap,
}
"""By the name that scores ask for."""


def _grey(x: Tensor) -> Tensor:
    """Within slices, (B, 1, rows, columns); in single precision, which small differences of squares need."""
    return planes(x).float().mean(1, keepdim=True)


class SSIMMap(nn.Module):
    """1 - SSIM within slices (Wang 2004, Gaussian window, K1 .01, K2 .03, range 1), of the mean over channels."""

    def __init__(self, score: SSIM) -> None:
        super().__init__()
        at = torch.arange(-score.reach, score.reach + 1, dtype=torch.float32)
        window = torch.exp(-0.5 * (at / score.window) ** 2)
        self.weights: list[float] = (window / window.sum()).tolist()

    def forward(self, x: Tensor, said: Output) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            one, other = _grey(x), _grey(said.prediction)
            # both squares as one: the windows are most of the work
            moments = (one, other, one * one + other * other, one * other)
            mean, mean_other, squares, product = (smooth(moment, self.weights) for moment in moments)
            c1, c2 = 0.01**2, 0.03**2
            means, both = mean * mean_other, torch.addcmul(mean * mean, mean_other, mean_other)
            alike = product.sub_(means).mul_(2).add_(c2).mul_(means.mul_(2).add_(c1))
            at_most = squares.sub_(both).add_(c2).mul_(both.add_(c1))
        return unplaned(1 - alike.div_(at_most), x)


class FeatureDifference(nn.Module):
    """Squared differences of fixed features, the mean over them; of the mean over channels, from half its resolution
    on: the filters cost several times what a small network does at full resolution and in every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.distance = FeatureDistance(FilterFeatures(SCALES - 1))

    def forward(self, x: Tensor, said: Output) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            found = self.distance.map(*(_halved(pad(_grey(seen), 2)) for seen in (x, said.prediction)))
        return enlarged(unplaned(found, x), [1] * (x.ndim - 4) + [2, 2], x)


def _halved(plane: Tensor) -> Tensor:
    """The mean of each 2 x 2, row by row: sooner than pooling."""
    rows = plane[..., ::2, :] + plane[..., 1::2, :]
    return (rows[..., ::2] + rows[..., 1::2]) / 4


class CodesUnlikely(nn.Module):
    """-ln P of each code, in nats, spread evenly over the voxels it stands for."""

    def __init__(self, prior: Prior, stride: int) -> None:
        super().__init__()
        self.prior, self.stride = prior, stride

    def forward(self, x: Tensor, said: Output) -> Tensor:
        latent = said.latent
        assert isinstance(latent, Codes), "the experiment has checked that there is a code book"
        nats = -self.prior.log_likelihood(latent.indices)[:, None]
        factors = code_factors(x, nats, self.stride)
        return enlarged(nats / prod(factors), factors, x)


class Restored(nn.Module):
    """How far each voxel moves until the network reproduces the image."""

    def __init__(self, network: nn.Module, score: Restoration) -> None:
        super().__init__()
        self.network, self.score = [network], score  # in a list: it is no part of this module

    def forward(self, x: Tensor, said: Output) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            original = x.float().clone()
            change = torch.zeros_like(original, requires_grad=True)
            optimizer = torch.optim.Adam([change], lr=self.score.rate)
            for _ in range(self.score.steps):
                loss = self._energy(original, change)
                (change.grad,) = torch.autograd.grad(loss, [change])
                optimizer.step()
        return change.detach().abs().mean(1, keepdim=True)

    def _energy(self, original: Tensor, change: Tensor) -> Tensor:
        """The sum over voxels, so that a step does not depend on how large the image is."""
        moved = original + change
        said = run(self.network[0], moved)
        energy = (moved - said.prediction).square().sum()
        energy = energy + self.score.variation * sum(
            change.diff(dim=axis).abs().sum() for axis in range(2, change.ndim)
        )
        if isinstance(said.latent, Gaussian):
            mean, log_variance = said.latent.mean, said.latent.log_variance
            nats = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
            energy = energy + self.score.divergence * nats.sum()
        return energy


class Head(nn.Module):
    """The logarithm of the variance to expect, from the reconstruction and the code; at a fourth of the resolution.

    Two convolutions with norm and ReLU: a linear head is not enough.
    """

    def __init__(self, dims: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.factor = stride, min(4, stride)
        self.layers = nn.Sequential(
            ConvNormReLU(dims, channels, HEAD_WIDTH, "batch"),
            ConvNormReLU(dims, HEAD_WIDTH, HEAD_WIDTH, "batch"),
            convolution(dims, HEAD_WIDTH, 1, kernel=1),
        )

    @classmethod
    def of(cls, fitted: Mapping[str, NDArray[Any]], dims: int, stride: int) -> "Head":
        """A fitted one."""
        head = cls(dims, fitted["layers.0.0.weight"].shape[1], stride)
        head.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in fitted.items()})
        return head

    def forward(self, x: Tensor, said: Output) -> Tensor:
        return enlarged(self.says(self.seen(said)), [self.factor] * (x.ndim - 2), x)

    def says(self, seen: Tensor) -> Tensor:
        """(B, channels, *blocks) -> (B, 1, *blocks), natural logarithm."""
        log_variance: Tensor = self.layers(seen)
        return log_variance.clamp(*HEAD_LOG_VARIANCE)

    def blocks(self, values: Tensor) -> Tensor:
        """The mean of each block of voxels that shares a variance."""
        whole = pad(values, self.factor)
        pool = functional.avg_pool2d if whole.ndim == 4 else functional.avg_pool3d
        return pool(whole, self.factor)

    def seen(self, said: Output) -> Tensor:
        """What it looks at, (B, channels, *spatial / factor): never the image itself."""
        assert said.latent is not None, "the experiment has checked that the network goes through a code"
        pooled, code = self.blocks(said.prediction), said.latent.point().z
        factors = [-(-full // small) for full, small in zip(pooled.shape[2:], code.shape[2:], strict=True)]
        return torch.cat([pooled, enlarged(code, factors, pooled)], dim=1)
