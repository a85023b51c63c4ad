"""Which way up a picture is stored: Exif tag 274, Orientation (CIPA DC-008-2023, 4.6.5.1.6).

The network must see a picture the way people do; the answer must lie on the file that came. So pictures are turned
upright when read, and answers are turned back when written and get the same tag: whoever honours the tag, and whoever
ignores it, finds answer and picture on top of each other.
"""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

ORIENTATION = 274
_TRANSPOSED = (5, 6, 7, 8)
# after transposing, the axes that are still mirrored: -1 columns, -2 rows
_MIRRORED: dict[int, tuple[int, ...]] = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}


def upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(..., rows, columns) as stored -> as people see it."""
    seen = np.swapaxes(pixels, -1, -2) if orientation in _TRANSPOSED else pixels
    return np.flip(seen, _MIRRORED.get(orientation, ()))


def as_stored(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The way back from `upright`."""
    flipped = np.flip(pixels, _MIRRORED.get(orientation, ()))
    return np.swapaxes(flipped, -1, -2) if orientation in _TRANSPOSED else flipped


def orientation_of(exif: bytes) -> int:
    """1 (upright) to 8 from an Exif block; 1 where it says nothing valid."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(order + "I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (count,) = struct.unpack_from(order + "H", exif, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", exif, entry)
        if tag == ORIENTATION and kind == 3:
            return valid_orientation(struct.unpack_from(order + "H", exif, entry + 8)[0])
    return 1


def valid_orientation(value: object) -> int:
    """`value` where it is one of 1 to 8, else 1."""
    return int(value) if isinstance(value, int) and 1 <= value <= 8 else 1


def exif_block(orientation: int) -> bytes:
    """An Exif block that says only this; empty for upright pictures."""
    if orientation == 1:
        return b""
    return b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
