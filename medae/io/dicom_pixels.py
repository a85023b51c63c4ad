"""The pixels of one DICOM file, checked against its header before a decoder allocates anything."""

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medae.errors import UnreadableImage
from medae.io.dicom_decoder import Decoder
from medae.io.dicom_file import PALETTE, Slice, guarded, opened, read_dataset

_decoder = Decoder()


def stored_pixels(at: Slice) -> NDArray[Any]:
    """(channels, rows, columns) as stored, before any rescale; colour as RGB.

    The declared size has been checked against the limits; here it is checked against the pixels that came.
    """
    with opened(at.file) as stream:
        dataset = read_dataset(stream, pixels=True)
    if "PixelData" not in dataset:
        kind = "float pixels, which medae does not read" if "FloatPixelData" in dataset else "no pixel data"
        raise UnreadableImage(f"the DICOM file declares {at.rows} x {at.columns} pixels and has {kind}")
    with guarded("the DICOM pixel data is damaged"):
        _name_transfer_syntax(dataset)
        _require_whole(dataset, at)
        is_compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        pixels = _decoder.decode(at.file) if is_compressed else dataset.pixel_array
        if dataset.PhotometricInterpretation == PALETTE:
            pixels = _palette_to_rgb(pixels, dataset)
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if planes.shape != (at.channels, at.rows, at.columns):
        raise UnreadableImage(
            f"the DICOM header declares (channels, rows, columns) {(at.channels, at.rows, at.columns)}, "
            f"its pixel data holds {planes.shape}"
        )
    return planes.astype(planes.dtype.newbyteorder("="), copy=False)


def rescale(dataset: Dataset) -> tuple[float, float]:
    """(slope, intercept) of stored -> modality values; (1, 0) where the file gives none."""
    slope, intercept = (
        float(default if dataset.get(name) in (None, "") else dataset.get(name))
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise UnreadableImage("the DICOM header's rescale is not invertible: slope 0, or not numbers")
    return slope, intercept


def padding_values(dataset: Dataset) -> tuple[int, int] | None:
    """PixelPaddingValue and the other end of its range: stored values "outside the picture" (PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") in (None, ""):
        return None
    value = int(dataset.PixelPaddingValue)
    limit = dataset.get("PixelPaddingRangeLimit")
    limit = value if limit in (None, "") else int(limit)
    if dataset.PixelRepresentation == 1:  # often written as unsigned although pixels are signed
        half, full = 1 << (dataset.BitsAllocated - 1), 1 << dataset.BitsAllocated
        value, limit = (end - full if end >= half else end for end in (value, limit))
    return value, limit


def _name_transfer_syntax(dataset: FileDataset) -> None:
    """A file without file meta does not name its transfer syntax; how its header was encoded tells."""
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    if dataset["PixelData"].is_undefined_length:
        raise UnreadableImage("the pixels are compressed and the file does not say how: its file meta group is missing")
    is_implicit, is_little_endian = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit


def _require_whole(dataset: FileDataset, at: Slice) -> None:
    """Raises UnreadableImage unless the pixel data can be what the header declares, before a decoder allocates."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        samples = 2 if dataset.PhotometricInterpretation == "YBR_FULL_422" else int(dataset.get("SamplesPerPixel", 1))
        needed = at.rows * at.columns * samples * dataset.BitsAllocated // 8
        if len(dataset.PixelData) < needed:
            raise UnreadableImage(
                f"the DICOM header declares {needed} bytes of pixels, {len(dataset.PixelData)} came: "
                "the file is truncated, or its header is wrong"
            )
        return
    stream = _codestream(get_frame(dataset.PixelData, 0, number_of_frames=1))
    samples, most = int(dataset.get("SamplesPerPixel", 1)), int(dataset.BitsAllocated)
    if stream is not None and (stream[:3] != (at.rows, at.columns, samples) or not 1 <= stream[3] <= most):
        raise UnreadableImage(
            f"the DICOM header declares {at.rows} x {at.columns} pixels, {samples} samples of up to {most} bits; its "
            f"compressed picture {stream[0]} x {stream[1]}, {stream[2]} of {stream[3]}: one is wrong or forged"
        )


def _codestream(stream: bytes) -> tuple[int, int, int, int] | None:
    """(rows, columns, samples, bits) that JPEG, JPEG-LS or JPEG 2000 data declares for itself; None for RLE."""
    if stream[4:8] == b"jP  ":
        stream = stream[_codestream_of_jp2(stream) :]
    if stream[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ (ISO/IEC 15444-1 A.5.1)
        right, bottom, left, top = struct.unpack(">4I", stream[8:24])
        return bottom - top, right - left, int.from_bytes(stream[40:42], "big"), (stream[42] & 0x7F) + 1
    if stream[:2] != b"\xff\xd8":
        return None
    at = 2
    while stream[at] == 0xFF:  # JPEG segments up to a start of frame (ISO/IEC 10918-1 B.1, 14495-1)
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            bits, rows, columns, samples = struct.unpack(">BHHB", stream[at + 4 : at + 10])
            return rows, columns, samples, bits
        at += 1 if marker == 0xFF else 2 + length
    raise ValueError("no start of frame")


def _codestream_of_jp2(stream: bytes) -> int:
    """Where the code stream begins in a JP2 file; a box of no length would keep pydicom walking for ever."""
    at = 0
    while stream[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(stream[at : at + 4], "big")
        if length < 8:
            raise ValueError("a box without length")
        at += length
        if at >= len(stream):
            raise ValueError("no code stream")
    return at + 8


def _palette_to_rgb(indices: NDArray[Any], dataset: Dataset) -> NDArray[np.uint8]:
    colours: NDArray[Any] = apply_color_lut(indices, dataset)
    # tables of 16 bits hold 8-bit colours scaled up; what a screen shows is the high byte
    return (colours >> 8 if colours.dtype.itemsize > 1 else colours).astype(np.uint8)
