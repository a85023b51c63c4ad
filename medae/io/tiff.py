"""TIFF <-> samples (TIFF 6.0, BigTIFF). Tags are read and checked first; only then is a pixel decoded.

Pages of one size and type are the slices of a stack; reduced copies of a page (thumbnails, pyramid levels) are left
out. Samples beyond grey or RGB are channels, unless they are alpha.

A resolution is believed where it was measured: finer than 10 um a pixel, which no screen or printer has, or written by
medae. 72 or 300 dots per inch are what programs write when they know nothing.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.errors import InputError, LimitExceeded, UnreadableImage, UnsupportedImage
from medae.io import jpeg
from medae.io.exif import ORIENTATION, valid_orientation
from medae.io.guard import Limits

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPage

logger = logging.getLogger(__name__)

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = 7
# each decodes into memory of the declared size and never beyond
_COMPRESSIONS = {1: "none", 5: "LZW", _JPEG: "JPEG", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "zstd"}
_MM_PER_UNIT = {2: 25.4, 3: 10.0}
_MEASURED_MM = 0.01


class Pages(NamedTuple):
    """What a TIFF holds, as stored: not yet turned upright."""

    pixels: NDArray[Any]
    """(channels, slices, rows, columns)."""
    orientation: int
    spacing_mm: tuple[float, float] | None
    """(row, column) spacing as stored; None where unknown."""


def decode(data: bytes, limits: Limits, *, as_labels: bool = False) -> Pages:
    """All pages. Bilevel samples become 0 and 255, palettes RGB, white-is-zero is inverted, unless `as_labels`.

    Raises UnreadableImage, UnsupportedImage or LimitExceeded.
    """
    with _opened(data) as tif:
        pages = _pages(tif, limits)
        first = pages[0]
        _require_kind(first)
        _require_alike(pages)
        for page in pages:
            _admit(page, len(pages), data, limits)
        planes = [page.asarray(squeeze=False, maxworkers=1) for page in pages]
        # (separate samples, depth, rows, columns, contiguous samples), one of the two sample axes being 1
        stack = np.stack([np.moveaxis(plane[:, 0], -1, 1).reshape(-1, *plane.shape[2:4]) for plane in planes], axis=1)
        pixels = stack if as_labels else _as_seen(stack, first)
        spacing = _spacing(first) if len(pages) == 1 else None
        return Pages(_without_alpha(pixels, first), valid_orientation(first.tags.valueof(ORIENTATION)), spacing)


def encode(
    pixels_CSRW: NDArray[Any],
    *,
    orientation: int = 1,
    spacing_mm: tuple[float, float] | None = None,
    made_by: str = "medae",
) -> bytes:
    """Pixels as stored, a page a slice. Three channels are RGB, other numbers of channels are planes of a page.

    `made_by` is the Software tag and begins with "medae"; `spacing_mm` as in Pages.
    """
    import tifffile

    out = BytesIO()
    is_rgb = len(pixels_CSRW) == 3
    options: dict[str, Any] = {"photometric": "rgb" if is_rgb else "minisblack", "software": made_by, "metadata": None}
    if len(pixels_CSRW) > 1:
        options["planarconfig"] = "contig" if is_rgb else "separate"
    if orientation != 1:
        options["extratags"] = [(ORIENTATION, 3, 1, orientation, True)]
    if spacing_mm is not None:
        row_mm, column_mm = spacing_mm
        options |= {"resolution": (10 / column_mm, 10 / row_mm), "resolutionunit": "centimeter"}
    if pixels_CSRW.dtype.kind in "bu":  # real numbers hardly shrink, and take ten times as long
        options |= {"compression": "zlib", "compressionargs": {"level": 1}, "predictor": is_rgb}
    with tifffile.TiffWriter(out, bigtiff=pixels_CSRW.nbytes > 0xF000_0000) as writer:
        for page in np.moveaxis(pixels_CSRW, 1, 0):
            plane = np.moveaxis(page, 0, -1) if is_rgb else page if len(page) > 1 else page[0]
            writer.write(np.ascontiguousarray(plane), maxworkers=1, **options)
    return out.getvalue()


@contextmanager
def _opened(data: bytes) -> "Iterator[TiffFile]":
    import tifffile

    # its log quotes tags, and tags may hold names
    tifffile.logger().setLevel(logging.CRITICAL + 1)
    try:
        with tifffile.TiffFile(BytesIO(data)) as tif:
            yield tif
    except (InputError, MemoryError):
        raise
    except Exception as error:  # from damaged bytes, tifffile and its decoders raise whatever comes up
        raise UnreadableImage(f"the TIFF is damaged or truncated ({type(error).__name__})") from None


def _pages(tif: "TiffFile", limits: Limits) -> "list[TiffPage]":
    from tifffile import TiffPage

    pages: list[TiffPage] = []
    offsets: set[int] = set()
    for page in islice(tif.pages, 2 * limits.frames + 1):
        if page.offset in offsets:
            raise UnreadableImage("the TIFF's pages point in a circle; it is damaged")
        offsets.add(page.offset)
        if isinstance(page, TiffPage) and not page.is_reduced:
            pages.append(page)
    if len(offsets) > 2 * limits.frames or len(pages) > limits.frames:
        raise LimitExceeded(f"the TIFF has more than {limits.frames} pages, the most that is allowed; split it")
    if not pages:
        raise UnreadableImage("the TIFF has no picture in full resolution; it is damaged")
    return pages


def _require_kind(page: "TiffPage") -> None:
    """Raises UnsupportedImage for colours, types and compressions that are not read."""
    if page.compression not in _COMPRESSIONS:
        allowed = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UnsupportedImage(f"this TIFF has compression {int(page.compression)}; save it with one of: {allowed}")
    photometric = page.photometric
    inverts = photometric == _MINISWHITE and (page.dtype is None or page.dtype.kind not in "bu")
    converts = photometric == _YCBCR and page.compression != _JPEG
    if photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _YCBCR) or inverts or converts:
        raise UnsupportedImage(
            f"this TIFF has the colours of photometric interpretation {int(photometric)}; grey, RGB and palette are "
            "read. Convert it to RGB."
        )
    if page.dtype is None or page.dtype.kind not in "buif" or page.dtype.itemsize > 8:
        raise UnsupportedImage(
            f"this TIFF has samples of {page.bitspersample} bits in format {page.sampleformat}; whole and real numbers "
            "of 8 to 64 bits are read"
        )
    if page.imagedepth != 1 or page.samplesperpixel < (3 if photometric in (_RGB, _YCBCR) else 1):
        raise UnsupportedImage(
            f"this TIFF has {page.samplesperpixel} samples a pixel and {page.imagedepth} layers a page in colours of "
            f"kind {int(photometric)}; save each layer as a page of its own"
        )


def _require_alike(pages: "Sequence[TiffPage]") -> None:
    kinds = dict.fromkeys((page.shape, str(page.dtype), int(page.photometric)) for page in pages)
    if len(kinds) > 1:
        sizes = ", ".join(" x ".join(str(length) for length in shape) + f" {dtype}" for shape, dtype, _ in kinds)
        raise UnsupportedImage(
            f"this TIFF holds {len(pages)} pictures of different kinds ({sizes}); a stack has pages of one size and "
            "type. Save the picture that you mean as a file of its own."
        )


def _admit(page: "TiffPage", slices: int, data: bytes, limits: Limits) -> None:
    """Declared sizes against the limits and against the bytes that are there, for the page and for one of its tiles."""
    extents = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    stored = sum(count for _, count in extents)
    assert page.dtype is not None
    per_pixel = page.samplesperpixel * page.dtype.itemsize
    rows, columns = page.imagelength, page.imagewidth
    limits.admit_grid(slices=slices, rows=rows, columns=columns, bytes_per_voxel=per_pixel, stored=stored * slices)
    if page.is_tiled:
        tile = {"rows": page.tilelength, "columns": page.tilewidth, "bytes_per_voxel": per_pixel}
        limits.admit_grid(slices=1, stored=stored, **tile)
    whole = page.is_contiguous or len(extents) >= math.prod(page.chunked)
    if not whole or any(count < 1 or offset + count > len(data) for offset, count in extents):
        raise UnreadableImage(f"strips or tiles of the TIFF are missing in its {len(data)} bytes; it is truncated")
    declared = rows * columns * page.samplesperpixel * page.bitspersample // 8
    if page.compression == 1 and stored < declared:
        raise UnreadableImage(f"the TIFF declares {declared} bytes of pixels and has {stored}; it is truncated")
    if page.compression == _JPEG:
        _admit_jpeg(page, extents, data)


def _admit_jpeg(page: "TiffPage", extents: Sequence[tuple[int, int]], data: bytes) -> None:
    """A JPEG tile declares its size once more, and libjpeg believes it."""
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    for offset, count in extents:
        frame = jpeg.read_frame(data[offset : offset + count])
        if frame.rows > rows or frame.columns > columns:
            raise UnreadableImage(
                f"a JPEG tile declares {frame.rows} x {frame.columns} pixels inside tiles of {rows} x {columns}; the "
                "TIFF is damaged"
            )


def _as_seen(stack_CSRW: NDArray[Any], page: "TiffPage") -> NDArray[Any]:
    """Brighter is more, colours are RGB."""
    if page.photometric == _PALETTE:
        table = (np.asarray(page.colormap) >> 8).astype(np.uint8)  # (3, colours) of 16 bits
        return table[:, stack_CSRW[0]]
    seen = stack_CSRW.astype(np.uint8) * np.uint8(255) if stack_CSRW.dtype.kind == "b" else stack_CSRW
    if page.photometric == _MINISWHITE:
        seen = np.iinfo(seen.dtype).max - seen
    return seen


def _without_alpha(pixels_CSRW: NDArray[Any], page: "TiffPage") -> NDArray[Any]:
    kept = len(pixels_CSRW)
    if page.photometric in (_RGB, _YCBCR):
        kept = 3
    elif page.photometric != _PALETTE:
        kept = max(kept - sum(kind in (1, 2) for kind in page.extrasamples), 1)
    if kept < len(pixels_CSRW):
        logger.warning("alpha was dropped: %d of %d samples a pixel", len(pixels_CSRW) - kept, len(pixels_CSRW))
    return pixels_CSRW[:kept]


def _spacing(page: "TiffPage") -> tuple[float, float] | None:
    unit_mm = _MM_PER_UNIT.get(int(page.tags.valueof(296, 2)))
    across, down = page.tags.valueof(282), page.tags.valueof(283)
    if unit_mm is None or not across or not down or 0 in (*across, *down):
        return None
    row_mm, column_mm = (unit_mm * denominator / numerator for numerator, denominator in (down, across))
    is_ours = str(page.tags.valueof(305, "")).startswith("medae")
    return (row_mm, column_mm) if is_ours or max(row_mm, column_mm) <= _MEASURED_MM else None
