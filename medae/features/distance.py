"""Mean squared difference of features: one number, or one for each voxel."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional


class Features(nn.Module, ABC):
    """Fixed: nothing in them is trained, and they are the same whether a network trains or not."""

    @abstractmethod
    def layers(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, rows, columns) in the prepared range -> maps (B, C', rows', columns'), fine to coarse."""


class FeatureDistance(nn.Module):
    """Between images (B, C, *spatial) of the same shape; a volume is seen slice by slice.

    Of each layer the mean over channels of the squared difference; then the mean over layers.
    """

    def __init__(self, features: Features) -> None:
        super().__init__()
        self.features = features.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean over everything: a scalar."""
        with torch.no_grad():
            seen = list(self.features.layers(_slices(y)))
        pairs = zip(self.features.layers(_slices(x)), seen, strict=True)
        return torch.stack([functional.mse_loss(ours, theirs) for ours, theirs in pairs]).mean()

    def map(self, x: Tensor, y: Tensor) -> Tensor:
        """(B, 1, *spatial): the difference at each voxel, coarse layers enlarged linearly."""
        size = x.shape[-2:]
        total: Tensor | float = 0.0
        pairs = list(zip(self.features.layers(_slices(x)), self.features.layers(_slices(y)), strict=True))
        for ours, theirs in pairs:
            squared = (ours - theirs).square().mean(dim=1, keepdim=True)
            total = total + functional.interpolate(squared, size, mode="bilinear", align_corners=False)
        return _volumes(torch.as_tensor(total) / len(pairs), x)


def _slices(x: Tensor) -> Tensor:
    """(B, C, rows, columns) as it is; (B, C, slices, rows, columns) -> (B x slices, C, rows, columns)."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


def _volumes(y: Tensor, like: Tensor) -> Tensor:
    """Back from `_slices`."""
    return y if like.ndim == 4 else y.reshape(like.shape[0], like.shape[2], *y.shape[1:]).transpose(1, 2)
