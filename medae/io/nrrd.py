"""NRRD (.nrrd, .nhdr with its data file) -> Image; teem's format, of 3D Slicer among others (its NRRD0005 definition).

Axes are listed fastest first. Up to three lie in space; one more may hold colours or components of a vector (channels)
or a list of volumes (times, directions of diffusion).
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medae.errors import GeometryError, UnreadableImage, UnsupportedImage
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

MAGIC = b"NRRD000"

_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_IN_SPACE = ("domain", "space")
_LISTS = ("list", "time", "none", "???", "")
_SIGNS = {"right": 1, "left": -1, "anterior": 1, "posterior": -1, "superior": 1, "inferior": -1}
_SHORT = {
    "ras": "right-anterior-superior",
    "las": "left-anterior-superior",
    "lps": "left-posterior-superior",
}
_MM = {"mm": 1.0, "millimeter": 1.0, "um": 1e-3, "μm": 1e-3, "cm": 10.0, "m": 1000.0}
_VECTOR = re.compile(r"none|\(([^()]*)\)", re.IGNORECASE)


def read(data: bytes, limits: Limits, *, folder: Path | None = None) -> Image:
    """folder: where the header lies, for a data file beside it.

    Raises UnreadableImage, UnsupportedImage, LimitExceeded or GeometryError.
    """
    fields, end = _fields(data)
    grid = _grid(fields)
    name = fields.get("data file", fields.get("datafile"))
    if name is not None and (name.upper().startswith("LIST") or "%" in name):
        raise UnsupportedImage("the NRRD keeps its slices in many files; save it as one .nrrd file")
    content = data[end:] if name is None else file_beside(name, folder, limits)
    return read_grid(grid, Payload(content, _skip(fields, content, grid.is_compressed)), "nrrd", limits)


def _fields(data: bytes) -> tuple[dict[str, str], int]:
    """The header's fields, and where attached data begins: behind an empty line."""
    fields: dict[str, str] = {}
    at = data.find(b"\n") + 1
    while at:
        end = data.find(b"\n", at, HEADER_BYTES)
        line = data[at : len(data) if end < 0 else end].decode("utf-8", "replace").rstrip("\r")
        if end < 0 and len(data) > HEADER_BYTES:
            break
        if not line:
            return fields, len(data) if end < 0 else end + 1
        name, is_field, value = line.partition(":")
        if not line.startswith("#"):
            if not is_field:
                break
            if not value.startswith("="):  # key:=value is free text
                fields[name.strip().lower()] = value.strip()
        if end < 0:  # a detached header may end without an empty line
            return fields, len(data)
        at = end + 1
    raise UnreadableImage("the NRRD's header is damaged, or has no end")


def _skip(fields: dict[str, str], content: bytes, is_compressed: bool) -> int:
    """Bytes before the voxels in the file that holds them."""
    lines, count = (fields.get(name, fields.get(name.replace(" ", ""), "0")) for name in ("line skip", "byte skip"))
    if not lines.isdecimal() or not (count.isdecimal() or count == "-1") or len(lines) > 9:
        raise UnreadableImage("the NRRD's line skip or byte skip is no number; it is damaged")
    if is_compressed and (lines, count) != ("0", "0"):
        raise UnsupportedImage("the NRRD skips part of its compressed data; save it again")
    at = 0
    for _ in range(int(lines)):
        at = content.find(b"\n", at) + 1
        if at == 0:
            raise UnreadableImage("the NRRD skips more lines than came; it is damaged")
    return int(count) if count == "-1" else at + int(count)


def _grid(fields: dict[str, str]) -> Grid:
    sizes = whole_numbers(fields.get("sizes", ""), "sizes")
    if fields.get("dimension") != str(len(sizes)) or not 2 <= len(sizes) <= 4:
        raise UnsupportedImage(f"the NRRD has {len(sizes)} axes, or says otherwise; 2, 3 and 4 are read")
    kind = _TYPES.get(fields.get("type", "").lower())
    encoding = fields.get("encoding", "").lower()
    if kind is None or encoding not in ("raw", "gzip", "gz"):
        raise UnsupportedImage(
            "this NRRD's type or encoding is not read; whole and real numbers of 8 to 64 bits, raw or gzip, are"
        )
    other = _other_axis(fields, len(sizes))
    values = 1 if other is None else sizes.pop(other)
    kinds = fields.get("kinds", "").lower().split()
    is_list = other is not None and (kinds[other] if kinds else "") in _LISTS
    columns, rows, slices = [*sizes, 1][:3]
    if values < 1:
        raise UnreadableImage("the NRRD has an axis of no length; it is damaged")
    return Grid(
        shape=(slices, rows, columns),
        volumes=values if is_list else 1,
        channels=1 if is_list else values,
        dtype=np.dtype(("<" if fields.get("endian", "little").lower() == "little" else ">") + kind),
        is_interleaved=other == 0,
        affine=_affine(fields, other, len(sizes)),
        is_compressed=encoding != "raw",
    )


def _other_axis(fields: dict[str, str], axes: int) -> int | None:
    """The axis that does not lie in space, the fastest or the slowest, where there is one."""
    kinds = fields.get("kinds", "").lower().split()
    if kinds and len(kinds) != axes:
        raise UnreadableImage("the NRRD has other than one kind an axis; it is damaged")
    vectors = _VECTOR.findall(fields.get("space directions", ""))
    if "space directions" in fields and len(vectors) != axes:
        raise UnreadableImage("the NRRD has other than one direction an axis; it is damaged")
    others = [
        axis
        for axis in range(axes)
        if (vectors and not vectors[axis]) or (kinds and not vectors and kinds[axis] not in (*_IN_SPACE, *_LISTS[2:]))
    ]
    if not others and axes == 4:
        others = [3]
    if len(others) > 1 or axes - len(others) > 3 or (others and others[0] not in (0, axes - 1)):
        raise UnsupportedImage("the NRRD has axes that are not in space in an order, or a number, that is not read")
    return others[0] if others else None


def _affine(fields: dict[str, str], other: int | None, placed: int) -> NDArray[np.float64] | None:
    axes, origin = np.eye(3), np.zeros(3)
    if "space directions" in fields:
        is_flat = placed == 2 and fields.get("space dimension") == "2"  # ITK's pictures: a plane of its axes
        signs, length = (LPS_TO_RAS[:2], 2) if is_flat else (_signs(fields), 3)
        vectors = [vector for vector in _VECTOR.findall(fields["space directions"]) if vector]
        for axis, vector in enumerate(vectors):
            axes[axis, :length] = real_numbers(vector.replace(",", " "), length, "space directions") * signs
        if placed == 2:
            axes[2] = _normal(axes[0], axes[1])
        if (place := _VECTOR.fullmatch(fields.get("space origin", ""))) and place[1]:
            origin[:length] = real_numbers(place[1].replace(",", " "), length, "space origin") * signs
        unit = _unit(fields)
        return affine_of(axes * unit, origin * unit)
    if "spacings" in fields:  # sizes without a place: ITK's axes
        steps = np.ones(3)
        words = [word for axis, word in enumerate(fields["spacings"].split()) if axis != other]
        steps[:placed] = np.abs(real_numbers(" ".join(words), placed, "spacings"))
        return affine_of(np.diag(steps * LPS_TO_RAS), origin) if np.isfinite(steps).all() else None
    return None


def _normal(row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """A step of 1 mm off a plane."""
    normal = np.cross(row, column)
    length = np.linalg.norm(normal)
    if not 0 < length < np.inf:
        raise GeometryError("the NRRD's axes lie in one line; repair its space directions")
    return np.asarray(normal / length)


def _signs(fields: dict[str, str]) -> NDArray[np.float64]:
    """Of the space's axes, towards RAS."""
    space = fields.get("space", "").lower()
    signs = [_SIGNS.get(word, 0) for word in _SHORT.get(space, space).split("-")]
    words = _SHORT.get(space, space).split("-")
    if len(signs) != 3 or 0 in signs or [word in ("right", "left") for word in words] != [True, False, False]:
        raise UnsupportedImage(
            "the NRRD's space is not anatomical, so nobody knows where left is; right-anterior-superior, "
            "left-anterior-superior and left-posterior-superior are read"
        )
    return np.array(signs, float)


def _unit(fields: dict[str, str]) -> float:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    return _MM.get(units[0].lower(), 1.0) if units else 1.0
