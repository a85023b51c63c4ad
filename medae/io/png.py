"""PNG <-> samples (W3C PNG, third edition). libpng decodes, through imagecodecs, since Pillow reads 16-bit RGB as 8.

Only the chunks that make the picture reach libpng, and only once they are known to be whole: imagecodecs (2026.3.6)
loses count of its references when libpng gives up, so that some thousand damaged files would end the process.
A palette picture is a grey picture whose samples index a table: the same data under another header; so labels are
read, and written in colour, without a detour.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.errors import LimitExceeded, OutputError, UnreadableImage
from medae.io.guard import DEFLATE_RATIO, Limits

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_LAST_FILTER = 4
_LONGEST = 1_000_000
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
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
    stream = b"".join(body for kind, body in chunks if kind == b"IDAT")
    _admit(header, len(stream), limits)
    # inflated by libdeflate, packed again without compression, and only then given to libpng: a quarter faster, too
    lines = imagecodecs.deflate_encode(_inflated(header, stream), 0)
    table = _palette(chunks) if header.colour_type == _PALETTE else []
    exif = next((bytes(body) for kind, body in chunks if kind == b"eXIf"), b"")
    is_stored = as_labels and header.colour_type in (_GREY, _PALETTE)
    if is_stored:
        header, table = header._replace(colour_type=_GREY), []
    picture = _file([(b"IHDR", struct.pack(">IIBBBBB", *header)), *table, (b"IDAT", bytes(lines))])
    samples = 3 if table else _SAMPLES[header.colour_type]
    shape = (header.rows, header.columns) if samples == 1 else (header.rows, header.columns, samples)
    out = np.empty(shape, np.uint16 if header.depth == 16 else np.uint8)
    try:
        imagecodecs.png_decode(picture, out=out)
    except (imagecodecs.PngError, ValueError) as error:
        raise UnreadableImage(f"the PNG data is damaged ({type(error).__name__})") from None
    if is_stored and header.depth < 8:
        out //= np.uint8(255 // (2**header.depth - 1))  # libpng stretched them
    return out.reshape(header.rows, header.columns, -1), exif


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
    """Kind and body of each chunk before IEND. Raises UnreadableImage where the file ends first or a sum is wrong."""
    view, at = memoryview(data), len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IEND":
            return
        body = view[at + 8 : at + 8 + length]
        at += 12 + length
        if at > len(data):
            break
        # the data proper has a check sum of its own
        if (
            kind in (b"IHDR", b"PLTE")
            and zlib.crc32(body, zlib.crc32(kind)) != struct.unpack_from(">I", data, at - 4)[0]
        ):
            raise UnreadableImage("a check sum in the PNG is wrong; it is damaged")
        yield kind, body
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


def _palette(chunks: Sequence[tuple[bytes, memoryview]]) -> list[Chunk]:
    body = next((body for kind, body in chunks if kind == b"PLTE"), b"")
    if len(body) % 3 or not 3 <= len(body) <= 768:
        raise UnreadableImage(f"the PNG's palette has {len(body)} bytes; 1 to 256 colours of 3 are needed")
    return [(b"PLTE", body)]


def _admit(header: _Header, stored: int, limits: Limits) -> None:
    bits = header.depth * _SAMPLES[header.colour_type]
    rows, columns = header.rows, header.columns
    limits.admit_grid(slices=1, rows=rows, columns=columns, bytes_per_voxel=max(bits // 8, 1), stored=stored)
    if max(rows, columns) > _LONGEST:
        raise LimitExceeded(f"the PNG is {rows} x {columns}; libpng reads up to {_LONGEST} along a side. Split it.")
    if rows * (columns * bits // 8) > DEFLATE_RATIO * stored:
        raise UnreadableImage(
            f"the header declares {rows} x {columns} pixels, but {stored} bytes came; the PNG is truncated"
        )


def _inflated(header: _Header, stream: bytes) -> bytearray:
    """All lines, still filtered. Raises UnreadableImage unless they are just what is declared, check sum included."""
    import imagecodecs

    bits = header.depth * _SAMPLES[header.colour_type]
    starts = np.concatenate([[0], np.cumsum(1 + -(-_lines(header) * bits // 8))])
    lines = bytearray(int(starts[-1]))
    try:
        filled = len(imagecodecs.deflate_decode(stream, out=lines))
    except imagecodecs.DeflateError:
        filled = -1
    if filled != len(lines) or (np.frombuffer(lines, np.uint8)[starts[:-1]] > _LAST_FILTER).any():
        raise UnreadableImage("the PNG data is damaged: it does not inflate to the declared size")
    return lines


def _lines(header: _Header) -> NDArray[np.int64]:
    """Columns of each line in the order of the file."""
    if not header.interlace:
        return np.full(header.rows, header.columns)
    passes = []
    for row, column, row_step, column_step in _ADAM7:
        rows, columns = len(range(row, header.rows, row_step)), len(range(column, header.columns, column_step))
        passes.append(np.full(rows if columns else 0, columns))
    return np.concatenate(passes)


def _file(chunks: Sequence[Chunk]) -> bytes:
    parts: list[bytes | memoryview] = [SIGNATURE]
    for kind, body in (*chunks, (b"IEND", b"")):
        parts += [struct.pack(">I4s", len(body), kind), body, struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))]
    return b"".join(parts)
