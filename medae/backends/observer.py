"""The observer: one small module around a network that says, beside its output, what anomaly scores need to know.

Everything leaves as full-size channels in the order in which the task asks, so that tiles, stitching and every door
stay as they are. What is fitted comes from the package's weights under `scores.KEY.`; the network's own keep their
names.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medae.errors import PackageError
from medae.networks import Gaussian, Latent, Output, run
from medae.networks.base import crop, pad
from medae.networks.blocks import ConvNormReLU, convolution
from medae.package import Card
from medae.scores import (
    SSIM,
    Mahalanobis,
    MapScore,
    Neighbours,
    Texture,
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


def observed(network: nn.Module, card: Card, weights: Mapping[str, NDArray[Any]]) -> nn.Module:
    """The network as the card's task needs it: itself, or with an observer around it.

    Raises PackageError where a fitted part is missing.
    """
    if not isinstance(card.task, Anomaly):
        return network
    needed = card.task.evidence(card.channels_in)
    if list(needed) == ["reconstruction"]:
        return network
    stride: int = getattr(network, "stride", 1)
    observers = {score.key: score for score in card.task.mapped}
    parts = {name: _part(name, observers, weights, card.receptive_field.dims, stride) for name in needed}
    return Observer(network, parts)


def _part(
    name: str, scores: Mapping[str, MapScore], weights: Mapping[str, NDArray[Any]], dims: int, stride: int
) -> nn.Module:
    if name in SHARED:
        return SHARED[name](stride)
    score, fitted = scores[name], parts_of(weights, name)
    try:
        if isinstance(score, SSIM):
            return SSIMMap(score)
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
        dims = x.ndim - 2
        return enlarged(nats.sum(1, keepdim=True) / self.stride**dims, [self.stride] * dims, x)


SHARED: Mapping[str, type[Shared]] = {
    "reconstruction": Reconstruction,
    "log_variance": LogVariance,
    "kl": KLMap,
}
"""By the name that scores ask for."""


class SSIMMap(nn.Module):
    """1 - SSIM within slices (Wang 2004, Gaussian window, K1 .01, K2 .03, range 1), the mean over channels."""

    def __init__(self, score: SSIM) -> None:
        super().__init__()
        at = torch.arange(-score.reach, score.reach + 1, dtype=torch.float32)
        window = torch.exp(-0.5 * (at / score.window) ** 2)
        self.register_buffer("window", window / window.sum())

    def forward(self, x: Tensor, said: Output) -> Tensor:
        one, other = planes(x), planes(said.prediction)
        # all moments in one pass: the window is most of the work
        moments = torch.stack([one, other, one * one, other * other, one * other]).flatten(0, 2)[:, None]
        means = self._smooth(moments).view(5, *one.shape)
        mean, mean_other, square, square_other, product = means
        variance, variance_other = square - mean**2, square_other - mean_other**2
        covariance = product - mean * mean_other
        c1, c2 = 0.01**2, 0.03**2
        similarity = ((2 * mean * mean_other + c1) * (2 * covariance + c2)) / (
            (mean**2 + mean_other**2 + c1) * (variance + variance_other + c2)
        )
        return unplaned(1 - similarity.mean(1, keepdim=True), x)

    def _smooth(self, values: Tensor) -> Tensor:
        """(N, 1, rows, columns); edges are continued."""
        window: Tensor = self.window  # type: ignore[assignment]
        reach = len(window) // 2
        padded = functional.pad(values, (reach, reach, reach, reach), mode="replicate")
        along_rows = functional.conv2d(padded, window.view(1, 1, -1, 1))
        return functional.conv2d(along_rows, window.view(1, 1, 1, -1))


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
        return torch.cat([pooled, enlarged(code, [self.stride // self.factor] * (code.ndim - 2), pooled)], dim=1)


class Features(nn.Module, ABC):
    """The image and its code -> (B, features, *places)."""

    @abstractmethod
    def factors(self, dims: int) -> list[int]:
        """How many voxels along each axis a place stands for."""

    @abstractmethod
    def forward(self, x: Tensor, latent: Latent | None) -> Tensor: ...


def features_of(score: Mahalanobis | Neighbours, stride: int) -> Features:
    """What the score compares. stride: of the network's code."""
    if isinstance(score.features, Texture):
        return TextureFeatures(score.features)
    return CodeFeatures(stride)


class CodeFeatures(Features):
    """The code's point."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def factors(self, dims: int) -> list[int]:
        return [self.stride] * dims

    def forward(self, x: Tensor, latent: Latent | None) -> Tensor:
        assert latent is not None, "the experiment has checked that the network goes through a code"
        return latent.point().z


class TextureFeatures(Features):
    """(B, C, *spatial) -> (B, features, [slices,] cells, cells), within slices; edges are continued to whole cells."""

    def __init__(self, settings: Texture) -> None:
        super().__init__()
        self.settings = settings

    def factors(self, dims: int) -> list[int]:
        return [1] * (dims - 2) + [self.settings.cell] * 2

    def forward(self, x: Tensor, latent: Latent | None) -> Tensor:
        values = planes(x)
        if self.settings.standardise:
            centred = values - values.mean((2, 3), keepdim=True)
            values = centred / (centred.square().mean((2, 3), keepdim=True).sqrt() + 1e-3)
        rows, columns = (-length % self.settings.cell for length in values.shape[2:])
        values = functional.pad(values, (0, columns, 0, rows), mode="replicate")
        found: list[Tensor] = []
        cell: int = self.settings.cell
        if self.settings.intensity:
            found.append(_pooled(values, cell))
        for _ in range(self.settings.scales):
            laplacian, gradient = _edges(values)
            found += [torch.log(_pooled(energy, cell) + 1e-3) for energy in (laplacian, gradient)]
            if cell == 1:
                break
            values, cell = _pooled(values, 2), cell // 2
        return unplaned(torch.cat(found, dim=1), x)


def _pooled(values: Tensor, factor: int) -> Tensor:
    return functional.avg_pool2d(values, factor) if factor > 1 else values


def _edges(values: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute value of the four neighbours' Laplacian, and the sum of the absolute differences across a voxel."""
    around = functional.pad(values, (1, 1, 1, 1), mode="replicate")
    up, down = around[..., :-2, 1:-1], around[..., 2:, 1:-1]
    left, right = around[..., 1:-1, :-2], around[..., 1:-1, 2:]
    return (up + down + left + right - 4 * values).abs(), 0.5 * ((down - up).abs() + (right - left).abs())


class FeatureMap(nn.Module):
    """Features -> their distance, as large as the image."""

    def __init__(self, distance: nn.Module, features: Features) -> None:
        super().__init__()
        self.distance, self.features = distance, features

    def forward(self, x: Tensor, said: Output) -> Tensor:
        distance = self.distance(self.features(x, said.latent).float())
        return enlarged(distance, self.features.factors(x.ndim - 2), x)


class MahalanobisDistance(nn.Module):
    """(B, F, *places) -> (B, 1, *places): squared distance by the number of features."""

    def __init__(self, fitted: Mapping[str, NDArray[Any]]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(np.array(fitted["mean"], np.float32)))
        self.register_buffer("whitening", torch.from_numpy(np.array(fitted["whitening"], np.float32)))

    def forward(self, found: Tensor) -> Tensor:
        mean: Tensor = self.mean  # type: ignore[assignment]
        whitening: Tensor = self.whitening  # type: ignore[assignment]
        if mean.ndim == 1:  # one Gaussian for all places
            away = found - mean.view(1, -1, *[1] * (found.ndim - 2))
            white = torch.einsum("fg,bg...->bf...", whitening, away)
        else:  # (F, *places) and (*places, F, F)
            white = torch.einsum("...fg,bg...->bf...", whitening, found - mean)
        return white.square().mean(1, keepdim=True)


class NeighbourDistance(nn.Module):
    """(B, F, *places) -> (B, 1, *places): mean squared distance to the nearest of the bank, by the number of features.

    bank: (n, F): of places; (n, F, *places): of images, of which the same are nearest for all places.
    """

    def __init__(self, fitted: Mapping[str, NDArray[Any]], count: int) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("mean", torch.from_numpy(np.array(fitted["mean"], np.float32)))
        self.register_buffer("deviation", torch.from_numpy(np.array(fitted["deviation"], np.float32)))
        self.register_buffer("bank", torch.from_numpy(np.array(fitted["bank"], np.float32)))

    def forward(self, found: Tensor) -> Tensor:
        mean: Tensor = self.mean  # type: ignore[assignment]
        deviation: Tensor = self.deviation  # type: ignore[assignment]
        bank: Tensor = self.bank  # type: ignore[assignment]
        extra = found.ndim - 1 - mean.ndim
        scaled = (found - mean.view(*mean.shape, *[1] * extra)) / deviation.view(*mean.shape, *[1] * extra)
        count = min(self.count, len(bank))
        if bank.ndim == 2:
            flat = scaled.flatten(2).transpose(1, 2)  # (B, places, F)
            nearest = torch.cdist(flat, bank).topk(count, largest=False).values.square().mean(2)
            return nearest.view(found.shape[0], 1, *found.shape[2:]) / found.shape[1]
        away = torch.cdist(scaled.flatten(1), bank.flatten(1)).topk(count, largest=False).indices
        squares = (bank[away] - scaled[:, None]).square()  # (B, count, F, *places)
        return squares.mean((1, 2))[:, None]


def planes(x: Tensor) -> Tensor:
    """(B, C, rows, columns) as it is; (B, C, slices, rows, columns) -> slices as images."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


def unplaned(values: Tensor, like: Tensor) -> Tensor:
    """The way back of `planes`, whatever the channels and the size of the slices are now."""
    if like.ndim == 4:
        return values
    return values.view(like.shape[0], like.shape[2], *values.shape[1:]).transpose(1, 2)


def enlarged(values: Tensor, factors: Sequence[int], like: Tensor) -> Tensor:
    """(B, C, *places) -> (B, C, *spatial) of `like`: each place is repeated over the voxels that it stands for."""
    if any(factor > 1 for factor in factors):
        values = functional.interpolate(values, scale_factor=[float(factor) for factor in factors])
    return crop(values, like)
