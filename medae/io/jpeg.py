"""JPEG -> samples (ITU-T T.81). Baseline, extended and progressive, 8 bits, grey or colour.

libjpeg fills a truncated picture with grey and says nothing; so the markers are walked to the end before it may decode.
"""

import re
import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.errors import LimitExceeded, UnreadableImage, UnsupportedImage
from medae.io.guard import Limits

_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES_READ = (0xC0, 0xC1, 0xC2)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD9)}
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# a progressive picture of three channels needs about 10 scans; each costs a pass over the whole picture
_MOST_SCANS = 100


class Frame(NamedTuple):
    """What a JPEG stream declares."""

    rows: int
    columns: int
    channels: int
    exif: bytes
    scans: int


def decode(data: bytes, limits: Limits) -> tuple[NDArray[np.uint8], bytes]:
    """(rows, columns, 1 or 3) and the Exif block. Raises UnreadableImage, UnsupportedImage or LimitExceeded."""
    import imagecodecs

    frame = read_frame(data)
    if not frame.scans:
        raise UnreadableImage("the JPEG has no picture data; it is damaged")
    limits.admit_grid(
        slices=1, rows=frame.rows, columns=frame.columns, bytes_per_voxel=frame.channels, stored=len(data)
    )
    try:
        samples: NDArray[Any] = imagecodecs.jpeg8_decode(data)
    except (imagecodecs.Jpeg8Error, ValueError) as error:
        raise UnreadableImage(f"the JPEG data is damaged ({type(error).__name__})") from None
    return samples.reshape(frame.rows, frame.columns, frame.channels), frame.exif


def read_frame(data: bytes) -> Frame:
    """Walks all markers, decoding nothing.

    Raises UnreadableImage where the stream is damaged or ends early, UnsupportedImage for CMYK, 12 bits, lossless and
    arithmetic coding.
    """
    frame: Frame | None = None
    exif, scans, at = b"", 0, 2
    while True:
        marker, body, at = _segment(data, at)
        if marker == _EOI:
            break
        if marker in _FRAMES and frame is None:
            frame = _frame(marker, body)
        elif marker == _APP1 and body[:6] == b"Exif\0\0" and not exif:
            exif = body[6:]
        elif marker == _SOS:
            scans += 1
            at = _end_of_scan(data, at)
    if frame is None:
        raise UnreadableImage("the JPEG has no frame header; it is damaged")
    if scans > _MOST_SCANS:
        raise LimitExceeded(f"the JPEG has {scans} scans, at most {_MOST_SCANS} are allowed; save it as baseline JPEG")
    return frame._replace(exif=exif, scans=scans)


def _segment(data: bytes, at: int) -> tuple[int, bytes, int]:
    """Marker, its body, and where the next one begins."""
    while data[at : at + 2] == b"\xff\xff":  # fill bytes
        at += 1
    if len(data) < at + 2:
        raise _truncated(data)
    if data[at] != 0xFF:
        raise UnreadableImage("the JPEG's markers are damaged")
    marker = data[at + 1]
    if marker == _EOI or marker in _ALONE:
        return marker, b"", at + 2
    if len(data) < at + 4:
        raise _truncated(data)
    (length,) = struct.unpack_from(">H", data, at + 2)
    if length < 2:
        raise UnreadableImage("the JPEG's markers are damaged")
    if len(data) < at + 2 + length:
        raise _truncated(data)
    return marker, data[at + 4 : at + 2 + length], at + 2 + length


def _end_of_scan(data: bytes, at: int) -> int:
    found = _MARKER_IN_SCAN.search(data, at)
    if found is None:
        raise _truncated(data)
    return found.start()


def _truncated(data: bytes) -> UnreadableImage:
    return UnreadableImage(f"the JPEG has no end: it is truncated after {len(data)} bytes")


def _frame(marker: int, body: bytes) -> Frame:
    if len(body) < 6:
        raise UnreadableImage("the JPEG's frame header is damaged")
    bits, rows, columns, channels = struct.unpack_from(">BHHB", body)
    if marker not in _FRAMES_READ or bits != 8:
        raise UnsupportedImage(
            f"this JPEG has {bits} bits and coding process {marker - 0xC0}; baseline, extended and progressive ones of "
            "8 bits are read. Save it as PNG."
        )
    if channels not in (1, 3):
        raise UnsupportedImage(f"this JPEG has {channels} channels (CMYK?); grey and RGB are read. Convert it to RGB.")
    return Frame(rows, columns, channels, b"", 0)
