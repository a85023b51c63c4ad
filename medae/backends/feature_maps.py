"""Features of an image place by place, and how far they are from those of normal images: (B, 1, *spatial)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from medae.networks import Latent, Output
from medae.networks.base import crop
from medae.scores import Mahalanobis, Neighbours, Texture


class Features(nn.Module, ABC):
    """The image and its code -> (B, features, *places)."""

    @abstractmethod
    def factors(self, x: Tensor, found: Tensor) -> list[int]:
        """How many voxels of the image along each axis a place of its features stands for."""

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

    def factors(self, x: Tensor, found: Tensor) -> list[int]:
        return code_factors(x, found, self.stride)

    def forward(self, x: Tensor, latent: Latent | None) -> Tensor:
        assert latent is not None, "the experiment has checked that the network goes through a code"
        return latent.point().z


class TextureFeatures(Features):
    """(B, C, *spatial) -> (B, features, [slices,] cells, cells), within slices; edges are continued to whole cells."""

    def __init__(self, settings: Texture) -> None:
        super().__init__()
        self.settings = settings

    def factors(self, x: Tensor, found: Tensor) -> list[int]:
        return [1] * (x.ndim - 4) + [self.settings.cell] * 2

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
        found = self.features(x, said.latent).float()
        with torch.autocast(x.device.type, enabled=False):  # a whitening takes small differences of large numbers
            away = self.distance(found)
        return enlarged(away, self.features.factors(x, found), x)


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


def code_factors(x: Tensor, code: Tensor, stride: int) -> list[int]:
    """How many voxels of the image a place of the code stands for: the stride or, of a flat code, all of them."""
    return [-(-full // stride) * stride // small for full, small in zip(x.shape[2:], code.shape[2:], strict=True)]


def enlarged(values: Tensor, factors: Sequence[int], like: Tensor) -> Tensor:
    """(B, C, *places) -> (B, C, *spatial) of `like`: each place is repeated over the voxels that it stands for."""
    if any(factor > 1 for factor in factors):
        values = functional.interpolate(values, scale_factor=[float(factor) for factor in factors])
    return crop(values, like)
