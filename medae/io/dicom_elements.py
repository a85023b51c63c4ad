"""Elements of DICOM answers: what a source's header lends them, and how they become bytes.

To decode an element and to encode it again costs pydicom a tenth of a millisecond, and a header has hundreds. So an
element that no one looks at stays the bytes that it was (pydicom's RawDataElement), and is written as it came.
"""

import copy
import struct

from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import correct_ambiguous_vr, write_data_element, write_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

# fmt: off
_DROPPED = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "IconImageSequence",
    "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "DataSetTrailingPadding",
    "PixelDataProviderURL", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DerivationCodeSequence",
)
# fmt: on
_DROPPED_TAGS = {Tag(name) for name in _DROPPED}
_GROUPS_OF_FRAMES = {Tag("SharedFunctionalGroupsSequence"), Tag("PerFrameFunctionalGroupsSequence")}
_REPEATING = (0x50, 0x60)  # curves, overlays
_EXPLICIT_LITTLE_ENDIAN = (False, True)
_UNDEFINED = 0xFFFFFFFF
_SHORT, _LONG = struct.Struct("<HH2sH"), struct.Struct("<HH2sHL")
"""Heads of elements (PS3.5 7.1.2): group, element, VR, and a length of two bytes, or of four behind two of nothing."""


def without_pixel_facts(source: Dataset, *, groups_of_frames: bool = True) -> Dataset:
    """A copy without what describes the old pixels only; what stays, and was not looked at, has the source's bytes.

    groups_of_frames: with the functional groups, which in large files take longer to copy than all else.
    """
    as_it_came = source.original_encoding == _EXPLICIT_LITTLE_ENDIAN
    kept: dict[BaseTag, DataElement | RawDataElement] = {}
    for tag in source.keys():  # noqa: SIM118  # to iterate over a data set is to decode it
        if tag & 0x10000 or tag >> 24 in _REPEATING or tag & 0xFFFF == 0 or tag in _DROPPED_TAGS:
            continue  # or private, or the length of a group
        if not groups_of_frames and tag in _GROUPS_OF_FRAMES:
            continue
        raw = source.get_item(tag)
        if as_it_came and isinstance(raw, RawDataElement) and _is_plain(raw):
            kept[tag] = raw
        elif (element := source[tag]).VR == "SQ":
            kept[tag] = element = copy.deepcopy(element)
            for item in element.value:
                item.remove_private_tags()
        else:
            kept[tag] = copy.copy(element)  # a plain value is replaced as a whole
    made = Dataset(kept)
    is_implicit, is_little_endian = source.original_encoding
    made.set_original_encoding(is_implicit, is_little_endian, source.original_character_set)
    return made


def _is_plain(raw: RawDataElement) -> bool:
    """Whether its bytes are a value that may be written as it is, with nothing private within."""
    return raw.VR is not None and raw.VR not in ("SQ", "UN") and len(raw.value or b"") % 2 == 0


def to_bytes(dataset: Dataset) -> bytes:
    """As a DICOM file in Explicit VR Little Endian, or compressed as its file meta says."""
    as_it_came = dataset.original_encoding == _EXPLICIT_LITTLE_ENDIAN
    if not as_it_came:
        dataset = correct_ambiguous_vr(dataset, True)
    buffer = DicomBytesIO()
    buffer.is_implicit_VR, buffer.is_little_endian = _EXPLICIT_LITTLE_ENDIAN
    buffer.write(bytes(128) + b"DICM")
    write_file_meta_info(buffer, FileMetaDataset(dataset.file_meta), enforce_standard=True)
    encodings = dataset.get("SpecificCharacterSet") or default_encoding
    for tag in sorted((tag for tag in dataset.keys() if tag & 0xFFFF), key=int):  # noqa: SIM118  # no lengths of groups
        element = dataset.get_item(tag) if as_it_came else dataset[tag]
        if isinstance(element, RawDataElement) and element.length != _UNDEFINED:
            value = element.value or b""
            assert element.VR is not None
            layout = _LONG if element.VR in EXPLICIT_VR_LENGTH_32 else _SHORT
            head = (tag >> 16, tag & 0xFFFF, element.VR.encode(), *((0,) if layout is _LONG else ()), len(value))
            buffer.write(layout.pack(*head) + value)
        else:
            write_data_element(buffer, element, encodings)
    return buffer.getvalue()
