"""What MetaImage and NRRD have in common: a text header that declares a grid, and the bytes of its voxels.

Both are answered as NIfTI, which all their tools read, on the same grid and in the same type of voxels.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.errors import GeometryError, UnreadableImage, UnsupportedImage
from medae.image import Geometry, Image, Source
from medae.io.guard import Limits, inflate

HEADER_BYTES = 1 << 20
"""Of a text header at most; scanners' key/value pairs reach 100 kB."""

LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_FARTHEST_MM = 1e9
_LONGEST = 1 << 31


@dataclass(frozen=True)
class VolumeSource(Source):
    """A volume with a text header; format is metaimage or nrrd."""

    format: str = "nrrd"
    dtype: str = "int16"
    """Of its voxels: what a restored volume is rounded to."""


class Grid(NamedTuple):
    """What a header declares."""

    shape: tuple[int, int, int]
    """Slices, rows, columns."""
    volumes: int
    channels: int
    dtype: np.dtype[Any]
    """Of one voxel as stored, in its byte order."""
    is_interleaved: bool
    """Whether channels (or volumes) change fastest, and not slowest."""
    affine: NDArray[np.float64] | None
    """(slice, row, column) -> RAS+ mm; None where nothing is said of size or place."""
    is_compressed: bool

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.volumes * self.channels * self.dtype.itemsize


class Payload(NamedTuple):
    """Where the voxels are."""

    data: bytes
    """The file that holds them."""
    skip: int
    """Bytes before them; -1: they are the last of the file."""


def read_grid(grid: Grid, payload: Payload, kind: str, limits: Limits) -> Image:
    """Raises UnreadableImage, LimitExceeded or GeometryError."""
    slices, rows, columns = grid.shape
    voxel = grid.volumes * grid.channels * grid.dtype.itemsize
    limits.admit_grid(slices=slices, rows=rows, columns=columns, bytes_per_voxel=voxel, stored=len(payload.data))
    geometry = _geometry(grid)
    raw = _raw(grid, payload)
    values = np.frombuffer(raw, grid.dtype, grid.bytes // grid.dtype.itemsize)
    count = grid.volumes * grid.channels
    axes = (*grid.shape, count) if grid.is_interleaved else (count, *grid.shape)
    pixels = np.moveaxis(values.reshape(axes), -1, 0) if grid.is_interleaved else values.reshape(axes)
    native = np.ascontiguousarray(pixels.astype(grid.dtype.newbyteorder("="), copy=False))
    return Image(native, geometry, VolumeSource(kind, native.dtype.name), grid.volumes)


def _raw(grid: Grid, payload: Payload) -> "bytes | bytearray | memoryview":
    if payload.skip > len(payload.data):
        raise UnreadableImage("the header declares its voxels behind the end of the file; it is truncated")
    if grid.is_compressed:
        return inflate(payload.data[max(payload.skip, 0) :], grid.bytes)
    start = len(payload.data) - grid.bytes if payload.skip < 0 else payload.skip
    part = memoryview(payload.data)[max(start, 0) : max(start, 0) + grid.bytes]
    if start < 0 or len(part) < grid.bytes:
        raise UnreadableImage(f"the header declares {grid.bytes} bytes of voxels, {len(part)} came; it is truncated")
    return part


def _geometry(grid: Grid) -> Geometry:
    slices, rows, columns = grid.shape
    if grid.affine is None:
        return Geometry.picture(rows, columns, slices=slices)
    if not np.abs(grid.affine).max() < _FARTHEST_MM:
        raise GeometryError("the volume's place is not a number, or lies beyond any scanner; repair its header")
    return Geometry(grid.shape, grid.affine)


def affine_of(axes_RAS: NDArray[np.float64], origin_RAS: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the steps along (columns, rows, slices), one a row, as both formats have them."""
    affine = np.eye(4)
    affine[:3, :3] = axes_RAS[::-1].T
    affine[:3, 3] = origin_RAS
    return affine


def whole_numbers(text: str, what: str) -> list[int]:
    """Lengths of axes. Raises UnreadableImage."""
    words = text.split()
    if not words or not all(re.fullmatch(r"\d{1,10}", word) for word in words) or max(map(int, words)) >= _LONGEST:
        raise UnreadableImage(f"the header's {what} are no sizes; it is damaged")
    return [int(word) for word in words]


def real_numbers(text: str, count: int, what: str) -> NDArray[np.float64]:
    """Raises UnreadableImage unless there are `count` numbers."""
    try:
        values = np.array([float(word) for word in text.split()])
    except ValueError:
        values = np.empty(0)
    if len(values) != count:
        raise UnreadableImage(f"the header's {what} is not {count} numbers; it is damaged")
    return values


def file_beside(name: str, folder: Path | None, limits: Limits) -> bytes:
    """The data file that a header names, from the header's own folder and from nowhere else."""
    if folder is None:
        raise UnsupportedImage(
            "the voxels lie in another file than their header; send one file that holds both (.mha, .nrrd)"
        )
    base = folder.resolve()
    path = (base / name).resolve()
    if "\0" in name or not path.is_relative_to(base) or path == base:
        raise UnsupportedImage("the header names a data file outside of its folder; put both into one folder")
    try:
        limits.admit_bytes(path.stat().st_size)
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"the data file of the header cannot be read ({type(error).__name__})") from None
