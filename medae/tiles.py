"""Core + halo tiles: plan them, and put their cores back together. Pure arithmetic on shapes.

A tile is read with a halo as wide as the network sees; only its core, which saw all that the whole image would have
shown it, is written, once, in its final type. So tiles equal whole-image inference without blending. A network whose
norm sees the window has no finite halo: it gets the whole image, or, where that does not fit, blended overlaps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from medae.image import Shape3
from medae.settings import Settings

TILE_VOXELS = {2: 2**21, 3: 2**22}
"""A tile's voxels at most, by dims: 1448 x 1448 of a picture, 161 x 161 x 161 of a volume. The same at every door,
because the answer's last bits may follow from the shape of the tiles."""

BLEND_HALO = 32
"""Half the overlap of two windows, where windows must be blended."""

WASTE = 4
"""A plan that reads each voxel this often is not looked at."""

Box = tuple[slice, slice, slice]


class ReceptiveField(Settings):
    """What a network needs to see around a voxel; halo and padding follow from it."""

    dims: Literal[2, 3]
    """2: the slices of a volume are seen one by one; 3: the whole volume."""
    stride: PositiveInt
    """Sizes must be a multiple of it along each seen axis, and tiles must start on one."""
    radius: NonNegativeInt
    """An output voxel depends on inputs at most this far away along each axis."""
    tileable: bool = True
    """False where the whole window changes every voxel (instance norm): then there is no finite radius."""
    window: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(rows, columns) or (slices, rows, columns): the only size of image that it takes; None: any."""

    @property
    def halo(self) -> int:
        """The radius, rounded up to whole strides."""
        return -(-self.radius // self.stride) * self.stride


class Tile(NamedTuple):
    """One window to read and the part of it to write, both in voxels of the padded image."""

    window: Box
    core: Box

    @property
    def inner(self) -> Box:
        """The core, counted from the window's first voxel."""
        s, r, w = (slice(c.start - o.start, c.stop - o.start) for c, o in zip(self.core, self.window, strict=True))
        return s, r, w

    def inside(self, image: Shape3) -> Box:
        """`inner` without what lies beyond the image, where it was padded."""
        s, r, w = (
            slice(inner.start, inner.stop - max(0, core.stop - length))
            for inner, core, length in zip(self.inner, self.core, image, strict=True)
        )
        return s, r, w


@dataclass(frozen=True)
class TilePlan:
    """All windows have one shape; cores cover the padded image without overlap."""

    image: Shape3
    """(slices, rows, columns) of the image."""
    padded: Shape3
    """The image's shape, rounded up to whole strides."""
    shape: Shape3
    """Of every window."""
    tiles: tuple[Tile, ...]
    blend: int = 0
    """Half the overlap to blend; 0: cores are simply written."""

    @property
    def voxels(self) -> int:
        """What the network will see in all."""
        return len(self.tiles) * prod(self.shape)


@lru_cache(maxsize=64)
def plan_tiles(image: Shape3, field: ReceptiveField, tile_voxels: int | None = None) -> TilePlan:
    """The plan that sees the fewest voxels with tiles of at most `tile_voxels` (by default TILE_VOXELS).

    Where even the smallest tile (two halos and a stride) is larger, that one is taken.
    """
    strides = (field.stride if field.dims == 3 else 1, field.stride, field.stride)
    padded = tuple(_up(length, stride) for length, stride in zip(image, strides, strict=True))
    halo, blend = field.halo, 0
    tile_voxels = tile_voxels or TILE_VOXELS[field.dims]
    if not field.tileable:
        seen = prod(padded) if field.dims == 3 else padded[1] * padded[2]
        halo = blend = 0 if seen <= tile_voxels or field.window else _up(BLEND_HALO, field.stride)
        tile_voxels = seen if blend == 0 else tile_voxels
    halos = (halo if field.dims == 3 else 0, halo, halo)
    # a 2-D network sees one slice at a time, so the first axis is cut into single slices
    slices = [(1, padded[0])] if field.dims == 2 else _choices(padded[0], strides[0], halos[0])
    choices = [slices, *(_choices(padded[axis], strides[axis], halos[axis]) for axis in (1, 2))]
    best = min(product(*choices), key=lambda chosen: _cost(chosen, tile_voxels))
    axes = [_axis(padded[axis], size, count, strides[axis], halos[axis]) for axis, (size, count) in enumerate(best)]
    tiles = tuple(Tile((s[0], r[0], w[0]), (s[1], r[1], w[1])) for s, r, w in product(*axes))
    shape = tuple(size for size, _ in best)
    return TilePlan(image, _shape3(padded), _shape3(shape), tiles, blend)


def _cost(chosen: tuple[tuple[int, int], ...], tile_voxels: int) -> tuple[int, int, int]:
    size = prod(size for size, _ in chosen)
    count = prod(count for _, count in chosen)
    return max(size, tile_voxels), size * count, count


def _choices(length: int, stride: int, halo: int) -> list[tuple[int, int]]:
    """(size, count) of tiles along one axis that overlap by two halos.

    length 2048, stride 16, halo 96 -> (2048, 1), (1120, 2), (816, 3), ...
    """
    found: list[tuple[int, int]] = []
    for count in range(1, length // stride + 1):
        size = _up(-(-(length + 2 * halo * (count - 1)) // count), stride)
        if count > 1 and (size * count > WASTE * length or size < 2 * halo + stride):
            break
        if not found or size < found[-1][0]:
            found.append((size, count))
    return found


def _axis(length: int, size: int, count: int, stride: int, halo: int) -> list[tuple[slice, slice]]:
    """(window, core) of each tile along one axis.

    length 100, size 60, count 2, stride 4, halo 8 -> windows 0:60 and 40:100, cores 0:50 and 50:100
    """
    starts = [(length - size) * n // max(count - 1, 1) // stride * stride for n in range(count)]
    cuts = [0, *((first + size + second) // 2 for first, second in pairwise(starts)), length]
    windows = [slice(start, start + size) for start in starts]
    return list(zip(windows, (slice(a, b) for a, b in pairwise(cuts)), strict=True))


def _up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _shape3(lengths: tuple[int, ...]) -> Shape3:
    s, r, w = lengths
    return s, r, w


def read_tile(pixels_CSRW: NDArray[Any], window: Box) -> NDArray[Any]:
    """A window of an image; where it reaches beyond the far edges, the image is mirrored there."""
    tile = pixels_CSRW[(slice(None), *window)]
    missing = [side.stop - side.start - length for side, length in zip(window, tile.shape[1:], strict=True)]
    if any(missing):
        tile = np.pad(tile, [(0, 0), *((0, n) for n in missing)], mode="reflect")
    return tile


class CoreStitcher:
    """Writes each core once, in the type of the values it gets."""

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        self._whole: NDArray[Any] | None = None

    def write(self, tile: Tile, values_CSRW: NDArray[Any]) -> None:
        """values: (channels, *plan.shape); every tile the same channels and type."""
        if self._whole is None:
            self._whole = np.empty((values_CSRW.shape[0], *self._plan.padded), values_CSRW.dtype)
        self._whole[(slice(None), *tile.core)] = values_CSRW[(slice(None), *tile.inner)]

    def result(self) -> NDArray[Any]:
        """(channels, *plan.image), once every tile is written."""
        assert self._whole is not None, "no tile was written"
        return self._whole[_inside(self._plan)]


class BlendStitcher:
    """Averages overlapping windows, each weighted down towards its inner edges."""

    def __init__(self, plan: TilePlan, channels: int) -> None:
        self._plan = plan
        self._sum = np.zeros((channels, *plan.padded), np.float32)
        self._weight = np.zeros(plan.padded, np.float32)

    def write(self, tile: Tile, values_CSRW: NDArray[Any]) -> None:
        """values: (channels, *plan.shape), floats."""
        weight = np.ones(self._plan.shape, np.float32)
        for axis, (window, length) in enumerate(zip(tile.window, self._plan.padded, strict=True)):
            ramp = _ramp(window, length, self._plan.blend)
            weight *= ramp.reshape([-1 if axis == other else 1 for other in range(3)])
        self._sum[(slice(None), *tile.window)] += values_CSRW * weight
        self._weight[tile.window] += weight

    def result(self) -> NDArray[Any]:
        """(channels, *plan.image), float32."""
        return (self._sum / self._weight)[_inside(self._plan)]


def _inside(plan: TilePlan) -> tuple[slice, ...]:
    return (slice(None), *(slice(0, length) for length in plan.image))


def _ramp(window: slice, length: int, blend: int) -> NDArray[np.float32]:
    """1 inside, falling linearly over the overlap (2 x blend) towards an edge that has a neighbour."""
    size = window.stop - window.start
    at = np.arange(size) + 0.5
    to_edge = np.full(size, np.inf)
    if window.start > 0:
        to_edge = np.minimum(to_edge, at)
    if window.stop < length:
        to_edge = np.minimum(to_edge, size - at)
    return np.minimum(to_edge / (2 * blend), 1).astype(np.float32)


def batches(plan: TilePlan, size: int) -> Iterator[tuple[Tile, ...]]:
    """The plan's tiles in runs of at most `size`."""
    for start in range(0, len(plan.tiles), size):
        yield plan.tiles[start : start + size]
