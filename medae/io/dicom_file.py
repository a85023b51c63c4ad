"""One DICOM file: opened under limits, its data set as plain values.

pydicom raises and warns whatever comes; what leaves this module is one of our errors, and no text of the file with it.

A deflated file (PS3.5 A.5) is packed as a whole, so its size stands behind the packing. It is inflated here, counted:
a header to a fixed length, pixels as far as the header declares them. pydicom never sees a deflated file.
"""

import copy
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filebase import DicomBytesIO

# private: only pydicom's own reading of the file meta tells for sure whether pydicom would inflate the rest
from pydicom.filereader import _read_file_meta_info, data_element_generator, read_partial, read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medae.errors import UnreadableImage, UnsupportedImage
from medae.image import Source
from medae.io.guard import inflate_raw

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

HEADER_BYTES = 1 << 24
"""Of a deflated file, what may come before its pixels; headers of enhanced images with thousands of frames reach 8 MB.
"""

_MOST_ELEMENTS = 20_000
# two or three for each element, also in sequences: 5000 frames of an enhanced image make 600 000
_MOST_READS = 1_000_000
_PIXELS = range(0x7FE00008, 0x7FE00011)  # float, double float and integer pixel data

# PS3.5 6.2: the value representations with which the first element of a header can begin
_FIRST_ELEMENT_VR = re.compile(rb"(AE|AS|CS|DA|DT|IS|LO|OB|PN|SH|TM|UI|UL)")


@dataclass(frozen=True, eq=False)
class DicomSource(Source):
    """The headers that a DICOM answer refers to, in the order of the image's slices, without pixel data."""

    format: str = "dicom"
    datasets: tuple[Dataset, ...] = ()
    """One of each file: of single-frame files the n-th belongs to slice n."""
    padding: NDArray[np.bool_] | None = None
    """(slices, rows, columns): pixels that hold PixelPaddingValue, no measurement; None where there are none."""
    origins: tuple[tuple[int, int], ...] = ()
    """Of each dataset: which of the files that were read it is, and how many bytes its header has there."""
    frames: tuple[tuple[int, int], ...] = ()
    """Where a file has several frames: of each slice, its dataset and its frame there, both from 0. Else empty."""

    @property
    def slices(self) -> tuple[tuple[int, int], ...]:
        """Of each slice of the image, its dataset and its frame there, both from 0."""
        return self.frames or tuple((index, 0) for index in range(len(self.datasets)))

    @property
    def modality(self) -> str | None:
        """Of the first slice; a series has one."""
        return (str(self.datasets[0].get("Modality") or "") or None) if self.datasets else None


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


def read_header(file: Path | bytes, size: int) -> FileDataset:
    """The header of a file whose header is known to have `size` bytes (inflated, where it is deflated)."""
    with opened(file) as stream:
        plain, _ = as_plain(stream, size)
        return read_dataset(BytesIO(plain.read(size)), pixels=False)


def read_dataset(stream: BinaryIO, *, pixels: bool, tags: list[str] | None = None) -> FileDataset:
    """What stands before the pixels, or all up to their end, of a stream that is not deflated.

    A header of more elements than any has is not read to its end: 16 MB of zeros would be two million of them.
    Raises UnreadableImage.
    """
    metered = _Metered(stream)
    last = _PIXELS.stop if pixels else _PIXELS.start
    with guarded("the DICOM header is damaged"):
        wanted: list[BaseTag | int] | None = None if tags is None else [Tag(name) for name in tags]
        return read_partial(cast(BinaryIO, metered), metered.stops_at(last), force=True, specific_tags=wanted)


def with_pixels(header: FileDataset, stream: BinaryIO, begin: int) -> Dataset:
    """The data set of a header and of the pixels that begin there in the stream; the header is not read again."""
    with guarded("the DICOM pixel data is damaged"):
        is_implicit, is_little_endian = header.original_encoding
        whole = Dataset(dict(header.items()))  # not a copy, which would share its elements with the header
        whole.file_meta = copy.deepcopy(header.file_meta)
        whole.set_original_encoding(is_implicit, is_little_endian)
        metered = _Metered(stream)
        metered.seek(begin)
        stop = metered.stops_at(_PIXELS.stop)
        source = cast(BinaryIO, metered)
        for element in data_element_generator(source, bool(is_implicit), bool(is_little_endian), stop_when=stop):
            whole[element.tag] = element
        return whole


class _Metered:
    """A stream that gives up on a reader of too many elements."""

    def __init__(self, stream: BinaryIO) -> None:
        self._read, self._reads = stream.read, 0
        self.tell, self.seek = stream.tell, stream.seek

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > _MOST_READS:
            raise UnreadableImage("the DICOM header has more elements than any; it is damaged, or forged")
        return self._read(size)

    def stops_at(self, last: int) -> Callable[[BaseTag, str | None, int], bool]:
        """pydicom's `stop_when`: before the first element from `last` on; it sees those at the top of the header."""
        elements = 0

        def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
            nonlocal elements
            elements += 1
            if elements > _MOST_ELEMENTS:
                raise UnreadableImage("the DICOM header has more elements than any; it is damaged, or forged")
            return int.__ge__(tag, last)  # pydicom's own comparison costs as much as its reading

        return stop


def as_plain(stream: BinaryIO, most: int) -> tuple[BinaryIO, bool]:
    """The stream itself or, of a deflated file, its first `most` bytes as they are without packing; and which it was.

    Raises UnreadableImage where the deflated data is damaged.
    """
    with guarded("the DICOM header is damaged"):
        read_preamble(stream, force=True)
        meta = _read_file_meta_info(stream)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            stream.seek(0)
            return stream, False
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        plain = DicomBytesIO()
        plain.write(bytes(128) + b"DICM")
        write_file_meta_info(plain, meta, enforce_standard=False)
    packed = stream.read()
    plain.write(inflate_raw(packed, max(most - plain.tell(), 0)))
    return BytesIO(plain.getvalue()), True
