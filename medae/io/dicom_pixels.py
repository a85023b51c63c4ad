"""The pixels of one DICOM file, checked against its header before a decoder allocates anything."""

import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import as_pixel_options, iter_pixels
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medae.errors import UnreadableImage, UnsupportedImage
from medae.io.dicom_decoder import Decoder, decodes
from medae.io.dicom_file import as_plain, guarded, opened, with_pixels
from medae.io.dicom_frames import FLOAT_BITS, PALETTE, Slice, frame_count, functional_group

_decoder = Decoder()
_HEAD_OF_PIXELS = 12
"""Bytes of the longest element head before pixel data: tag, VR and length."""


def stored_frames(slices: Sequence[Slice]) -> Iterator[NDArray[Any]]:
    """Of slices of one file, each its (channels, rows, columns) as stored, before any rescale; colour as RGB.

    The declared size has been checked against the limits; here it is checked against the pixels that came.
    """
    first = slices[0]
    with opened(first.file) as stream:
        if first.is_deflated:
            stream, _ = as_plain(stream, first.header_size + _HEAD_OF_PIXELS + first.stored_bytes)
        dataset = with_pixels(first.dataset, stream, first.header_size)
    if not any(name in dataset for name in ("PixelData", *FLOAT_BITS)):
        raise UnreadableImage(f"the DICOM file declares {first.rows} x {first.columns} pixels and has no pixel data")
    with guarded("the DICOM pixel data is damaged"):
        _name_transfer_syntax(dataset)
        _require_whole(dataset, first)
        is_compressed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
    decoded = (_decompressed if is_compressed else iter_pixels)(dataset, indices=[at.frame for at in slices])
    for at in slices:
        with guarded("the DICOM pixel data is damaged"):
            pixels = next(decoded)
            if dataset.PhotometricInterpretation == PALETTE:
                pixels = _palette_to_rgb(pixels, dataset)
        yield _planes(pixels, at)


def _decompressed(dataset: Dataset, *, indices: Sequence[int]) -> Iterator[NDArray[Any]]:
    options: dict[str, Any] = {**as_pixel_options(dataset), "number_of_frames": 1}
    options.pop("extended_offsets", None)
    options["transfer_syntax_uid"] = str(dataset.file_meta.TransferSyntaxUID)
    frames = _frames(dataset)
    held: dict[int, bytes] = {}  # those that come before they are wanted
    wanted = set(indices)
    count = 0
    for index in indices:
        while index not in held:
            frame = next(frames)
            if count in wanted:
                held[count] = frame
            count += 1
        yield _decoder.decode(held.pop(index), options)


def _frames(dataset: Dataset) -> Iterator[bytes]:
    """The compressed frames of a file."""
    table = [dataset.get(name) for name in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    offsets = (table[0], table[1]) if all(table) else None
    return generate_frames(dataset.PixelData, number_of_frames=frame_count(dataset), extended_offsets=offsets)


def _planes(pixels: NDArray[Any], at: Slice) -> NDArray[Any]:
    planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
    if planes.shape != (at.channels, at.rows, at.columns):
        raise UnreadableImage(
            f"the DICOM header declares (channels, rows, columns) {(at.channels, at.rows, at.columns)}, "
            f"its pixel data holds {planes.shape}"
        )
    return planes.astype(planes.dtype.newbyteorder("="), copy=False)


def modality_values(stored_RW: NDArray[Any], at: Slice) -> NDArray[Any]:
    """What the scanner measured: stored values through the modality table, or rescaled as this frame says.

    Never through the VOI table or a window, which are for eyes (PS3.3 C.11.1, C.11.2).
    """
    if "ModalityLUTSequence" in at.dataset:
        values: NDArray[Any] = apply_modality_lut(stored_RW, at.dataset)
        return values
    slope, intercept = rescale(at.dataset, at.frame)
    if shifts_exactly(slope, intercept, stored_RW.dtype):
        shifted: NDArray[Any] = stored_RW + np.float32(intercept)
        return shifted
    return stored_RW * slope + intercept  # float64 until it is stored


def shifts_exactly(slope: float, intercept: float, stored: np.dtype[Any]) -> bool:
    """Whether float32 holds every modality value of such samples to the last bit: as a rule that of CT."""
    return (
        slope == 1
        and intercept.is_integer()
        and abs(intercept) < 1 << 23
        and stored.kind in "iu"
        and stored.itemsize <= 2
    )


def value_type(stored: np.dtype[Any]) -> type[np.floating[Any]]:
    """What holds the modality values of such samples: float32 has 24 bits, which more than 16 may exceed."""
    return np.float64 if stored.itemsize > (4 if stored.kind == "f" else 2) else np.float32


def rescale(dataset: Dataset, frame: int = 0) -> tuple[float, float]:
    """(slope, intercept) of a frame's stored -> modality values; (1, 0) where the file gives none."""
    source = functional_group(dataset, frame, "PixelValueTransformationSequence") or dataset
    slope, intercept = (
        float(default if source.get(name) in (None, "") else source.get(name))
        for name, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if not np.isfinite([slope, intercept]).all() or slope == 0:
        raise UnreadableImage("the DICOM header's rescale is not invertible: slope 0, or not numbers")
    return slope, intercept


def padding_values(dataset: Dataset) -> tuple[float, float] | None:
    """PixelPaddingValue and the other end of its range: stored values "outside the picture" (PS3.3 C.7.5.1.1.2)."""
    is_real = dataset.get("PixelRepresentation") is None
    for kind in ("Float", "DoubleFloat") if is_real else ("",):
        value = dataset.get(f"{kind}PixelPaddingValue")
        if value in (None, ""):
            continue
        limit = dataset.get(f"{kind}PixelPaddingRangeLimit")
        limit = value if limit in (None, "") else limit
        if kind:
            return float(value), float(limit)
        return _signed(int(value), dataset), _signed(int(limit), dataset)
    return None


def _signed(value: int, dataset: Dataset) -> int:
    """Padding is often written as unsigned although pixels are signed."""
    is_wrong = dataset.PixelRepresentation == 1 and value >= 1 << (dataset.BitsAllocated - 1)
    return value - (1 << dataset.BitsAllocated) if is_wrong else value


def _name_transfer_syntax(dataset: Dataset) -> None:
    """A file without file meta does not name its transfer syntax; how its header was encoded tells."""
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    if "PixelData" in dataset and dataset["PixelData"].is_undefined_length:
        raise UnreadableImage("the pixels are compressed and the file does not say how: its file meta group is missing")
    is_implicit, is_little_endian = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if is_little_endian else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit


def _require_whole(dataset: Dataset, at: Slice) -> None:
    """Raises UnreadableImage unless the pixel data can be what the header declares, before a decoder allocates."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        is_halved = dataset.PhotometricInterpretation == "YBR_FULL_422"
        samples = 2 if is_halved else int(dataset.get("SamplesPerPixel", 1))
        needed = at.frames * at.rows * at.columns * samples * dataset.BitsAllocated // 8
        came = len(next(dataset[name].value for name in ("PixelData", *FLOAT_BITS) if name in dataset))
        if came < needed:
            raise UnreadableImage(
                f"the DICOM header declares {needed} bytes of pixels, {came} came: "
                "the file is truncated, or its header is wrong"
            )
        return
    if not decodes(syntax):
        raise UnsupportedImage(
            "the pixels are compressed in a way that is not read (video, or a rare one); JPEG, JPEG-LS, JPEG 2000, "
            "HTJ2K and RLE are. Store it in one of these (dcmconv, gdcmconv)"
        )
    for stream in _frames(dataset):
        _require_same_size(_codestream(stream), dataset, at)


def _require_same_size(stream: tuple[int, int, int, int] | None, dataset: Dataset, at: Slice) -> None:
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
