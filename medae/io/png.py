"""PNG <-> samples (W3C PNG, third edition). libpng decodes, through imagecodecs, since Pillow reads 16-bit RGB as 8.

Only the chunks that make the picture reach libpng. A palette picture is a grey picture whose samples index a table:
the same data under another header; so labels are read, and written in colour, without a detour.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.errors import OutputError, UnreadableImage
from medae.io.guard import DEFLATE_RATIO, Limits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_SAMPLES = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), _GREY_ALPHA: (8, 16), _RGBA: (8, 16)}


Chunk = tuple[bytes, bytes | memoryview]


class _Header(NamedTuple):
    columns: int
    rows: int
    depth: int
    colour_type: int
    compression: int
    filter: int
    interlace: int


def decode(data: bytes, limits: Limits, *, as_labels: bool = False) -> tuple[NDArray[Any], bytes]:
    """(rows, columns, samples) uint8 or uint16, alpha still in it, and the Exif block (empty where there is none).

    1, 2 and 4-bit grey is stretched to 0..255 and palettes become RGB, unless `as_labels`: then samples are as stored.
    Raises UnreadableImage or LimitExceeded.
    """
    import imagecodecs

    chunks = list(_chunks(data))
    header = _header(chunks)
    parts = [body for kind, body in chunks if kind == b"IDAT"]
    _admit(header, sum(len(part) for part in parts), limits)
    exif = next((bytes(body) for kind, body in chunks if kind == b"eXIf"), b"")
    table = [(kind, body) for kind, body in chunks if kind == b"PLTE" and header.colour_type == _PALETTE]
    stored = as_labels and header.colour_type in (_GREY, _PALETTE)
    if stored:
        header, table = header._replace(colour_type=_GREY), []
    picture = _file([(b"IHDR", struct.pack(">IIBBBBB", *header)), *table, *((b"IDAT", part) for part in parts)])
    try:
        samples: NDArray[Any] = imagecodecs.png_decode(picture)
    except (imagecodecs.PngError, ValueError) as error:
        raise UnreadableImage(f"the PNG data is damaged or truncated ({type(error).__name__})") from None
    if stored and header.depth < 8:
        samples = samples // np.uint8(255 // (2**header.depth - 1))  # libpng stretched them
    return samples.reshape(header.rows, header.columns, -1), exif


def encode(
    picture: NDArray[Any],
    *,
    palette: Sequence[tuple[int, int, int]] | None = None,
    exif: bytes = b"",
    made_by: str = "medae",
) -> bytes:
    """(rows, columns) or (rows, columns, 1 or 3), uint8 or uint16. With `palette`, samples are uint8 indices into it.

    `made_by` is ASCII for the Software text.
    Raises OutputError for what a PNG cannot hold.
    """
    import imagecodecs

    if picture.dtype not in (np.uint8, np.uint16) or picture.shape[2:] not in ((), (1,), (3,)):
        raise OutputError(
            f"a PNG holds one or three channels of uint8 or uint16, got shape {picture.shape} of {picture.dtype}; "
            "write .tif or .nii.gz instead"
        )
    if picture.shape[2:] == (1,):
        picture = picture[..., 0]  # an axis of one may have any stride, and the encoder looks at it
    # fast: run lengths and one filter cost a tenth more bytes and half the time of zlib's level 1
    data = bytes(imagecodecs.png_encode(np.ascontiguousarray(picture), 1, strategy=3, filter=16))
    (_, header), *rest = _chunks(data)
    extra: list[Chunk] = [(b"tEXt", b"Software\0" + made_by.encode("ascii"))]
    if exif:
        extra.append((b"eXIf", exif))
    if palette is not None:
        header = memoryview(bytes([*header[:9], _PALETTE, *header[10:]]))
        extra.append((b"PLTE", bytes(value for colour in palette for value in colour)))
    return _file([(b"IHDR", header), *extra, *rest])


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Kind and body of each chunk before IEND. Raises UnreadableImage where the file ends first."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        if kind == b"IEND":
            return
        if at + 12 + length > len(data):
            break
        yield kind, view[at + 8 : at + 8 + length]
        at += 12 + length
    raise UnreadableImage(f"the PNG has no end: it is truncated after {len(data)} bytes")


def _header(chunks: Sequence[tuple[bytes, memoryview]]) -> _Header:
    if not chunks or chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise UnreadableImage("the PNG does not begin with its header; it is damaged")
    header = _Header(*struct.unpack(">IIBBBBB", chunks[0][1]))
    if header.depth not in _DEPTHS.get(header.colour_type, ()):
        raise UnreadableImage(f"no PNG has colour type {header.colour_type} with {header.depth} bits; it is damaged")
    if (header.compression, header.filter) != (0, 0) or header.interlace > 1:
        raise UnreadableImage("the PNG is packed in a way that does not exist; it is damaged")
    return header


def _admit(header: _Header, stored: int, limits: Limits) -> None:
    bits = header.depth * _SAMPLES[header.colour_type]
    limits.admit_grid(
        slices=1, rows=header.rows, columns=header.columns, bytes_per_voxel=max(bits // 8, 1), stored=stored
    )
    if header.rows * (header.columns * bits // 8) > DEFLATE_RATIO * stored:
        raise UnreadableImage(
            f"the header declares {header.rows} x {header.columns} pixels, but {stored} bytes came; it is truncated"
        )


def _file(chunks: Sequence[Chunk]) -> bytes:
    parts: list[bytes | memoryview] = [SIGNATURE]
    for kind, body in (*chunks, (b"IEND", b"")):
        parts += [struct.pack(">I4s", len(body), kind), body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))]
    return b"".join(parts)
