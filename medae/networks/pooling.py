"""Max-pooling by 2 that keeps one byte for where each maximum was, and the un-pooling that puts it back there.

Values, gradients and ties are those of `nn.MaxPool2d/3d(2, return_indices=True)` and `nn.MaxUnpool2d/3d(2)`, to the
bit: their kernels do the work. Their int64 indices, eight times as large, live only while one of them runs; what is
kept for the decoder and for the backward pass is the place within each block of 2 x 2 (x 2).
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

POOLS = {2: functional.max_pool2d_with_indices, 3: functional.max_pool3d_with_indices}
UNPOOLS = {2: functional.max_unpool2d, 3: functional.max_unpool3d}


def pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, *spatial) -> the maxima of blocks of 2, (B, C, *spatial // 2), and their places in them, uint8.

    Places count rows before columns: 0..3 in 2-D, 0..7 in 3-D. A last odd row or column is left out.
    """
    maxima, places = _Pool.apply(x)  # type: ignore[no-untyped-call]
    return maxima, places


def unpool(values: Tensor, places: Tensor, size: Sequence[int] | None = None) -> Tensor:
    """Each value where its maximum was, zeros elsewhere: (B, C, *size), by default twice the size of `values`."""
    size = tuple(size) if size is not None else tuple(2 * length for length in values.shape[2:])
    placed: Tensor = _Place.apply(values, places, size)  # type: ignore[no-untyped-call]
    return placed


class _Pool(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        maxima, indices = POOLS[x.ndim - 2](x, (2,) * (x.ndim - 2))
        ctx.size = tuple(x.shape[2:])
        places = _places(indices, ctx.size)
        ctx.save_for_backward(places)
        ctx.mark_non_differentiable(places)
        return maxima, places

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> Any:
        return _Place.apply(gradient, ctx.saved_tensors[0], ctx.size)  # type: ignore[no-untyped-call]


class _Place(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, size: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(places)
        return UNPOOLS[len(size)](values, _indices(places, size), (2,) * len(size), output_size=size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Take.apply(gradient, ctx.saved_tensors[0]), None, None  # type: ignore[no-untyped-call]


class _Take(Function):
    """The values at the places: the gradient of `_Place`, as that is the gradient of this."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = tuple(x.shape[2:])
        indices = _indices(places, ctx.size)
        return x.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _Place.apply(gradient, ctx.saved_tensors[0], ctx.size), None  # type: ignore[no-untyped-call]


def _places(indices: Tensor, size: Sequence[int]) -> Tensor:
    """torch's indices into the flattened image -> the place in its block, a bit an axis."""
    *strides, _ = _strides(size)
    within = (indices - _corners(indices, size)).to(torch.int32)
    places: Tensor | None = None
    for stride in strides:
        second = (within >= stride).to(torch.uint8)
        within.sub_(second, alpha=stride)
        places = second if places is None else places << 1 | second
    assert places is not None
    return places << 1 | within.to(torch.uint8)


def _indices(places: Tensor, size: Sequence[int]) -> Tensor:
    """The inverse of `_places`."""
    indices = _corners(places, size) + places
    for bit, stride in enumerate(reversed(_strides(size))):
        if bit:
            # `places` counts this bit as 2, 4: the image as a whole row, slice
            indices.add_(places >> bit & 1, alpha=stride - 2**bit)
    return indices


def _strides(size: Sequence[int]) -> list[int]:
    """How far apart neighbours along each axis are in the flattened image."""
    return [prod(size[axis + 1 :]) for axis in range(len(size))]


def _corners(pooled: Tensor, size: Sequence[int]) -> Tensor:
    """The index at which each block begins, (*spatial) of `pooled`, int64."""
    axes = [torch.arange(0, 2 * length, 2, device=pooled.device) for length in pooled.shape[2:]]
    strided = [axis * stride for axis, stride in zip(axes, _strides(size), strict=True)]
    return sum(torch.meshgrid(*strided, indexing="ij"), start=torch.zeros((), dtype=torch.int64, device=pooled.device))
