"""Limits, checked against what a file declares before any of it is decoded; and inflating that counts."""

import zlib

from pydantic import PositiveInt

from medae.errors import LimitExceeded, UnreadableImage
from medae.settings import Settings

PLAUSIBLE_RATIO = 100
"""Decoded bytes for one that came, of data that is packed as a whole; images of scanners and cameras reach 20."""

# Deflate cannot do better than 1032:1 (zlib's technical note: 258 bytes from 2 bits), so more is not whole.
DEFLATE_RATIO = 1032
_PIECE = 1 << 20
GZIP_MAGIC = b"\x1f\x8b"


class Limits(Settings):
    """How large an input may be. Judged by its header, so that refusing costs neither time nor memory."""

    bytes: PositiveInt = 1 << 32
    """Of what came in one call, and of what it becomes when decoded."""
    pixels: PositiveInt = 1 << 28
    """Rows x columns of one picture or slice."""
    voxels: PositiveInt = 1 << 29
    """Slices x rows x columns of a volume."""
    files: PositiveInt = 5000
    """Files of one series."""
    depth: PositiveInt = 1
    """Zips within one another where one zip is given for an image; 1: its files are no zips."""
    frames: PositiveInt = 5000
    """Frames, pages or slices of one volume."""
    inflate_ratio: PositiveInt = 1100
    """Decoded bytes per stored byte; only asked above `inflate_freely`."""
    inflate_freely: PositiveInt = 1 << 26
    """Decoded bytes that any input may become, however well it is compressed."""

    def admit_bytes(self, count: int) -> None:
        """Raises LimitExceeded for more input bytes than allowed."""
        if count > self.bytes:
            raise LimitExceeded(f"{count} bytes came, at most {self.bytes} are allowed; send less at once")

    def admit_files(self, count: int) -> None:
        """Raises LimitExceeded for more files than one series may have."""
        if count > self.files:
            raise LimitExceeded(f"more than {self.files} files came for one image; send one series at a time")

    def admit_grid(self, *, slices: int, rows: int, columns: int, bytes_per_voxel: int, stored: int) -> None:
        """The sizes that a header declares, for `stored` bytes of (compressed) pixels that really came.

        Raises LimitExceeded where a size is too large, or out of proportion to what came; UnreadableImage where
        one is not positive.
        """
        size = f"{slices} x {rows} x {columns} (slices, rows, columns)"
        if min(slices, rows, columns) < 1:
            raise UnreadableImage(f"the header declares {size}; each must be at least 1, so the file is damaged")
        for name, value, allowed in (
            ("pixels a slice", rows * columns, self.pixels),
            ("slices", slices, self.frames),
            ("voxels", slices * rows * columns, self.voxels),
            ("bytes decoded", slices * rows * columns * bytes_per_voxel, self.bytes),
        ):
            if value > allowed:
                raise LimitExceeded(
                    f"the header declares {size}: {value} {name}, at most {allowed} are allowed; "
                    "crop or split the image, or raise the limit"
                )
        decoded = slices * rows * columns * bytes_per_voxel
        if decoded > max(self.inflate_freely, self.inflate_ratio * stored):
            raise LimitExceeded(
                f"the header declares {size}: {decoded} bytes decoded from {stored} that came, more than "
                f"{self.inflate_ratio} for one; the header is forged or the file is damaged"
            )

    def admit_inflated(self, count: int, *, stored: int) -> None:
        """What `stored` bytes, packed as a whole, are about to become. Raises LimitExceeded where that is too much."""
        if count > max(self.inflate_freely, PLAUSIBLE_RATIO * stored):
            raise LimitExceeded(
                f"the header declares {count} bytes unpacked from {stored} that came, more than {PLAUSIBLE_RATIO} for "
                "one; send it unpacked"
            )


DEFAULT_LIMITS = Limits()


def inflate_head(data: bytes, count: int) -> bytes:
    """At most the first `count` bytes of what gzip `data` holds; fewer where it ends or is damaged."""
    try:
        return zlib.decompressobj(wbits=31).decompress(data[: count + 4096], count)
    except zlib.error:
        return b""


def inflate_raw(data: bytes, most: int) -> bytes:
    """At most the first `most` bytes of raw deflate `data`, as a deflated DICOM file has them.

    Raises UnreadableImage where the data is damaged, or ends early.
    """
    inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, most) if most else b""
    except zlib.error:
        raise UnreadableImage("the deflated data is damaged: it does not inflate") from None
    if len(plain) < most and not inflater.eof:
        raise UnreadableImage(f"the deflated data ends early, after {len(plain)} bytes; the file is truncated")
    return plain


def inflate(data: bytes, count: int) -> bytearray:
    """Exactly the first `count` bytes of what gzip (one or more members) or zlib `data` holds, and never more memory.

    The check sum of a member is verified where the member ends within `count`.
    Raises UnreadableImage where the data is damaged or ends early.
    """
    if count > DEFLATE_RATIO * len(data):
        raise UnreadableImage(
            f"the header declares {count} bytes, more than {len(data)} compressed ones can hold; the file is truncated"
        )
    out = bytearray(count)
    # one member that says it holds just this: libdeflate is 4 x as fast as zlib, and cannot write past `out`
    is_gzip = data.startswith(GZIP_MAGIC)
    if is_gzip and int.from_bytes(data[-4:], "little") == count % 2**32 and _inflate_at_once(data, out):
        return out
    try:
        filled = _inflate_members(data, memoryview(out), wbits=31 if is_gzip else 15)
    except zlib.error:
        raise UnreadableImage("the packed data is damaged: it does not inflate, or its check sum is wrong") from None
    if filled < count:
        raise UnreadableImage(f"the header declares {count} bytes, the file ends after {filled}; it is truncated")
    return out


def _inflate_at_once(data: bytes, out: bytearray) -> bool:
    import imagecodecs

    try:
        return len(imagecodecs.gzip_decode(data, out=out)) == len(out)
    except imagecodecs.DeflateError:
        return False  # several members, or damage that zlib will name


def _inflate_members(data: bytes, out: memoryview, wbits: int) -> int:
    """Fills `out` as far as the data goes; returns how far."""
    filled, rest = 0, memoryview(data)
    while filled < len(out) and rest:
        member = zlib.decompressobj(wbits)
        while rest and not member.eof:
            # zlib needs one byte of room beyond the last to meet the check sum behind it
            chunk = member.decompress(rest[:_PIECE], max(min(len(out) - filled, _PIECE), 1))
            if filled == len(out) and chunk:
                return filled  # padding behind the voxels: its own concern
            out[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
            rest = rest[min(_PIECE, len(rest)) - len(member.unconsumed_tail) - len(member.unused_data) :]
        if not member.eof:
            raise UnreadableImage(f"the packed data ends early, after {filled} inflated bytes; the file is truncated")
    return filled
