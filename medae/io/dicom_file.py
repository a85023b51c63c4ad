"""One DICOM file: opened under limits, its header as plain values.

pydicom raises and warns whatever comes; what leaves this module is one of our errors, and no text of the file with it.
"""

import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError

# private: only pydicom's own reading of the file meta tells for sure whether pydicom would inflate the rest
from pydicom.filereader import _read_file_meta_info, read_preamble
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medae.errors import GeometryError, UnreadableImage, UnsupportedImage
from medae.image import Source
from medae.io.guard import Limits

logger = logging.getLogger(__name__)

# Both libraries log values of tags (pydicom every warning, highdicom names of patients): none may reach our handlers.
for _name in ("pydicom", "highdicom"):
    logging.getLogger(_name).addHandler(logging.NullHandler())
    logging.getLogger(_name).propagate = False

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom, its decoders and highdicom raise on damaged files."""

# fmt: off
MODALITIES = frozenset((
    "CR", "CT", "DX", "ES", "GM", "IO", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX", "RF", "RG", "SC", "SM", "US",
    "XA", "XC",
))
# fmt: on
"""Modalities that messages name; any other value could be anything, so it is called "other"."""

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
PALETTE = "PALETTE COLOR"

_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
# fmt: off
_SLICE_TAGS = [
    "SOPClassUID", "Modality", "ImageType", "SeriesInstanceUID", "FrameOfReferenceUID", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
    "ModalityLUTSequence",
]
# fmt: on
# PS3.5 6.2: the value representations with which the first element of a header can begin
_FIRST_ELEMENT_VR = re.compile(rb"(AE|AS|CS|DA|DT|IS|LO|OB|PN|SH|TM|UI|UL)")


@dataclass(frozen=True, eq=False)
class DicomSource(Source):
    """The headers that a DICOM answer refers to, in the order of the image's slices, without pixel data."""

    format: str = "dicom"
    datasets: tuple[Dataset, ...] = ()
    padding: NDArray[np.bool_] | None = None
    """(slices, rows, columns): pixels that hold PixelPaddingValue, no measurement; None where there are none."""
    origins: tuple[tuple[int, int], ...] = ()
    """Of each dataset: which of the files that were read it is, and how many bytes its header has there."""

    @property
    def modality(self) -> str | None:
        """Of the first slice; a series has one."""
        return (str(self.datasets[0].get("Modality") or "") or None) if self.datasets else None


@dataclass(frozen=True, eq=False)
class Slice:
    """One single-frame image by its header. Lengths in mm, directions and positions in DICOM's LPS axes."""

    file: Path | bytes
    size: int
    """Bytes of the file."""
    header_size: int
    """Those before its pixels."""
    dataset: Dataset
    series: str
    modality: str
    rows: int
    columns: int
    channels: int
    position: NDArray[np.float64] | None
    """Of the centre of the first pixel."""
    directions: NDArray[np.float64] | None
    """(2, 3) unit vectors: where rows run (column index grows), where columns run (row index grows)."""
    spacing: tuple[float, float] | None
    """Between rows, between columns."""
    frame_of_reference: str | None
    is_localiser: bool
    kind: tuple[str | int, ...]
    """What the slices of one volume have in common, beside their directions and spacing."""

    @property
    def in_space(self) -> bool:
        return self.position is not None and self.directions is not None and self.spacing is not None

    @property
    def normal(self) -> NDArray[np.float64]:
        assert self.directions is not None
        return np.cross(*self.directions)


class NoPicture(UnsupportedImage):
    """A DICOM object of another kind: a report, a plan, a directory."""


@contextmanager
def guarded(problem: str) -> Iterator[None]:
    """Turns what pydicom raises into UnreadableImage("`problem` (kind of error)"), and its warnings into a count."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except DAMAGE as error:
            raise UnreadableImage(f"{problem} ({type(error).__name__})") from None
    if caught:
        logger.debug("%d warnings of the DICOM library while reading or writing", len(caught))


def is_dicom(head: bytes) -> bool:
    """Whether `head` (the first 132 bytes or more) begins a DICOM file.

    Files without the preamble are recognised by a plausible first element of group 0002 or 0008.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    little, big = struct.unpack("<HH", head[:4]), struct.unpack(">HH", head[:4])
    for group, element in (little, big):
        if group in (0x0002, 0x0008) and element <= 0x0070 and _FIRST_ELEMENT_VR.match(head[4:6]):
            return True
    # implicit VR has only the length to go by: the first elements of group 0008 are short
    return little[0] == 0x0008 and little[1] <= 0x0070 and int.from_bytes(head[4:8], "little") <= 64


def read_slice(file: Path | bytes, limits: Limits, *, whole: bool = True) -> Slice:
    """The header of one single-frame image, or just what a Slice says of it; pixels stay undecoded.

    Raises UnreadableImage, UnsupportedImage (NoPicture for other DICOM objects), GeometryError or LimitExceeded.
    """
    with opened(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        limits.admit_bytes(size)
        dataset = read_dataset(stream, pixels=False, tags=None if whole else _SLICE_TAGS)
        header_size = stream.tell()
    with guarded("the DICOM header is damaged"):
        _require_picture(dataset)
        return _slice(file, size, header_size, dataset)


@contextmanager
def opened(file: Path | bytes) -> Iterator[BinaryIO]:
    """A stream at the start of what looks like DICOM. Raises UnreadableImage or UnsupportedImage."""
    try:
        stream: BinaryIO = BytesIO(file) if isinstance(file, bytes) else file.open("rb")
    except OSError as error:
        raise UnreadableImage(f"the file cannot be opened ({type(error).__name__}); check that it exists") from None
    with stream:
        head = stream.read(132)
        stream.seek(0)
        if not head:
            raise UnreadableImage("the file is empty; a DICOM file was expected")
        if not is_dicom(head):
            raise UnsupportedImage("this is not a DICOM file; a series consists of DICOM files only")
        yield stream


def read_dataset(stream: BinaryIO, *, pixels: bool, tags: list[str] | None = None) -> FileDataset:
    """The header, or all of it, without ever inflating. Raises UnreadableImage or UnsupportedImage."""
    with guarded("the DICOM header is damaged"):
        read_preamble(stream, force=True)
        syntax = _read_file_meta_info(stream).get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            # pydicom inflates all of it before it shows anything: 1 MB can become 1 GB
            raise UnsupportedImage(
                "the whole DICOM file is deflated, so its size cannot be checked before it is unpacked; "
                "store it in another transfer syntax first (dcmconv +te)"
            )
        stream.seek(0)
        return dcmread(stream, force=True, stop_before_pixels=not pixels, specific_tags=tags)


def _require_picture(dataset: Dataset) -> None:
    """Raises UnsupportedImage unless this is one grey or colour picture of 8 or 16 bits."""
    kind = _NOT_PICTURES.get(str(dataset.get("SOPClassUID", "")))
    if kind is not None:
        raise UnsupportedImage(f"this DICOM file is {kind}, not an image; give the images that it was made from")
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise NoPicture(
            "this DICOM file holds no picture (a report, plan, waveform or directory, or an image cut short); "
            "give the image files"
        )
    frames = dataset.get("NumberOfFrames")
    if frames not in (None, "") and int(frames) != 1:
        raise UnsupportedImage(
            f"this DICOM file holds {int(frames)} frames; one frame a file is read: convert it to single-frame files"
        )
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    if allocated not in (8, 16) or not 1 <= stored <= allocated or dataset.get("HighBit", stored - 1) != stored - 1:
        raise UnsupportedImage(
            f"the pixels have {stored} of {allocated} bits; 8 and 16 bits allocated, low bits stored, are read"
        )
    if "ModalityLUTSequence" in dataset:
        raise UnsupportedImage("the pixels have a modality look-up table; a rescale slope and intercept is read")


def _slice(file: Path | bytes, size: int, header_size: int, dataset: Dataset) -> Slice:
    position, directions = _vectors(dataset)
    modality = str(dataset.get("Modality", ""))
    kinds = dataset.get("ImageType") or ()
    is_localiser = not isinstance(kinds, str) and "LOCALIZER" in [str(kind).strip() for kind in kinds]
    frame = str(dataset.get("FrameOfReferenceUID") or "")
    rows, columns, channels = int(dataset.Rows), int(dataset.Columns), _channels(dataset)
    sop_class, bits = str(dataset.get("SOPClassUID", "")), int(dataset.BitsAllocated)
    return Slice(
        file=file,
        size=size,
        header_size=header_size,
        dataset=dataset,
        series=str(dataset.get("SeriesInstanceUID", "")),
        modality=modality if modality in MODALITIES else "other",
        rows=rows,
        columns=columns,
        channels=channels,
        position=position,
        directions=directions,
        spacing=_spacing(dataset, in_space=position is not None),
        frame_of_reference=frame or None,
        is_localiser=is_localiser,
        kind=(sop_class, modality, frame, rows, columns, channels, bits, is_localiser),
    )


def _channels(dataset: Dataset) -> int:
    photometric, samples = str(dataset.PhotometricInterpretation), int(dataset.get("SamplesPerPixel", 1))
    if photometric in GREY and samples == 1:
        return 1
    if (photometric in COLOUR and samples == 3) or (photometric == PALETTE and samples == 1):
        return 3
    raise UnsupportedImage(
        f"the pixels have {samples} samples in a colour space that is not read; "
        "grey (MONOCHROME1, MONOCHROME2), RGB, YBR and PALETTE COLOR are"
    )


def _vectors(dataset: Dataset) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Position and (2, 3) directions in LPS, both or neither. Raises GeometryError where they are no frame."""
    position, orientation = dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")
    if not position or not orientation:
        return None, None
    origin = np.array([float(value) for value in position])
    directions = np.array([float(value) for value in orientation])
    if origin.shape != (3,) or directions.shape != (6,) or not np.isfinite([*origin, *directions]).all():
        raise GeometryError("the DICOM position needs 3 and the orientation 6 finite numbers; this header has others")
    directions = directions.reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    # two-digit direction cosines are met in practice; beyond a hundredth the angle would shift the picture's rim
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(directions[0] @ directions[1])) > 1e-2:
        raise GeometryError(
            f"the DICOM orientation is not two perpendicular unit vectors: lengths {lengths.round(3).tolist()}, "
            f"dot product {float(directions[0] @ directions[1]):.3g} (at most 0.01 off is allowed)"
        )
    return origin, directions / lengths[:, None]


def _spacing(dataset: Dataset, *, in_space: bool) -> tuple[float, float] | None:
    # a projection's detector spacing is the best there is for a picture; for a slice in space it would be wrong
    names = ["PixelSpacing"] if in_space else ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"]
    for name in names:
        values = dataset.get(name)
        if values:
            between_rows, between_columns = (float(value) for value in values)
            if not (0 < between_rows < np.inf and 0 < between_columns < np.inf):
                raise GeometryError(
                    f"the DICOM pixel spacing is {between_rows:g} x {between_columns:g} mm; both must be above 0"
                )
            return between_rows, between_columns
    return None
