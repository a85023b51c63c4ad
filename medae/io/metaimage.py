"""MetaImage (.mha, .mhd with its data file) -> Image; the format of ITK (its MetaIO documentation).

Places are LPS, as ITK writes them; TransformMatrix has the direction of one axis after the other. 2-D images lie in an
axial plane; a fourth axis holds volumes.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medae.errors import UnreadableImage, UnsupportedImage
from medae.image import Image
from medae.io.guard import Limits
from medae.io.volume import (
    HEADER_BYTES,
    LPS_TO_RAS,
    Grid,
    Payload,
    affine_of,
    file_beside,
    read_grid,
    real_numbers,
    whole_numbers,
)

_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_LAST = "ElementDataFile"


def is_metaimage(head: bytes) -> bool:
    """By its first lines: a MetaImage says what it is, or how many axes it has."""
    lines = head[:512].split(b"\n")
    first = lines[0].replace(b" ", b"").strip()
    return first in (b"ObjectType=Image", b"NDims=2", b"NDims=3", b"NDims=4") or (
        first.startswith(b"Comment=") and b"ObjectType" in head[:512]
    )


def read(data: bytes, limits: Limits, *, folder: Path | None = None) -> Image:
    """folder: where the header lies, for a data file beside it.

    Raises UnreadableImage, UnsupportedImage, LimitExceeded or GeometryError.
    """
    fields, end = _fields(data)
    grid = _grid(fields)
    name = fields[_LAST]
    if name.upper() == "LOCAL":
        payload = Payload(data, end)
    elif name.upper().startswith("LIST") or "%" in name:
        raise UnsupportedImage("the MetaImage keeps its slices in many files; save it as one .mha file")
    else:
        skip = fields.get("HeaderSize", "0")
        if skip not in ("-1",) and not skip.isdecimal():
            raise UnreadableImage("the MetaImage's HeaderSize is no size; it is damaged")
        payload = Payload(file_beside(name, folder, limits), int(skip))
    return read_grid(grid, payload, "metaimage", limits)


def _fields(data: bytes) -> tuple[dict[str, str], int]:
    """The header's lines, and where its data begins."""
    fields: dict[str, str] = {}
    at = 0
    while _LAST not in fields:
        end = data.find(b"\n", at, HEADER_BYTES)
        if end < 0:
            end = len(data)
        key, is_field, value = data[at:end].decode("latin-1").partition("=")
        if not is_field:
            raise UnreadableImage("the MetaImage's header is damaged, or has no end")
        fields[key.strip()] = value.strip()
        at = end + 1
        if at > len(data) and _LAST not in fields:
            raise UnreadableImage(f"the MetaImage's header is truncated after {len(data)} bytes")
    return fields, at


def _grid(fields: dict[str, str]) -> Grid:
    if fields.get("ObjectType", "Image") != "Image" or not _is_true(fields.get("BinaryData", "True")):
        raise UnsupportedImage("MetaImages of binary voxels are read; this one holds text, or something else")
    sizes = whole_numbers(fields.get("DimSize", ""), "DimSize")
    axes = len(sizes)
    if not 2 <= axes <= 4 or fields.get("NDims", str(axes)) != str(axes):
        raise UnsupportedImage(f"the MetaImage has {axes} axes, or says otherwise; 2, 3 and 4 are read")
    kind = _TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise UnsupportedImage("the MetaImage's ElementType is not read; whole and real numbers of 8 to 64 bits are")
    is_big = _is_true(fields.get("ElementByteOrderMSB", fields.get("BinaryDataByteOrderMSB", "False")))
    (channels,) = whole_numbers(fields.get("ElementNumberOfChannels", "1"), "ElementNumberOfChannels")
    columns, rows, slices, volumes = [*sizes, 1, 1][:4] if axes < 4 else sizes
    if channels < 1 or volumes < 1 or (channels > 1 and volumes > 1):
        raise UnsupportedImage("the MetaImage has several volumes of several channels, or none; one of both is read")
    return Grid(
        shape=(slices, rows, columns),
        volumes=volumes,
        channels=channels,
        dtype=np.dtype((">" if is_big else "<") + kind),
        is_interleaved=channels > 1,
        affine=_affine(fields, axes),
        is_compressed=_is_true(fields.get("CompressedData", "False")),
    )


def _affine(fields: dict[str, str], axes: int) -> NDArray[np.float64] | None:
    spacing = _first(fields, "ElementSpacing", "ElementSize")
    if spacing is None:
        return None
    steps, directions, origin = np.ones(3), np.eye(3), np.zeros(3)
    placed = min(axes, 3)
    steps[:placed] = real_numbers(spacing, axes, "ElementSpacing")[:placed]
    if (matrix := _first(fields, "TransformMatrix", "Rotation", "Orientation")) is not None:
        whole = real_numbers(matrix, axes * axes, "TransformMatrix").reshape(axes, axes)
        directions[:placed, :placed] = whole[:placed, :placed]
    if (offset := _first(fields, "Offset", "Position", "Origin")) is not None:
        origin[:placed] = real_numbers(offset, axes, "Offset")[:placed]
    return affine_of(directions * steps[:, None] * LPS_TO_RAS, origin * LPS_TO_RAS)


def _first(fields: dict[str, str], *names: str) -> str | None:
    return next((fields[name] for name in names if name in fields), None)


def _is_true(value: str) -> bool:
    return value.strip().upper() in ("TRUE", "T", "1")
