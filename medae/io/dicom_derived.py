"""Restored pixels -> a derived DICOM series: new instances of the source's class in the source's study.

PS3.3 C.7.6.1.1.3: pixels that were processed are another image, with UIDs of its own that point to the source.
What describes the old pixels only (statistics, icons, overlays, signatures, private groups) is dropped; place, rescale,
bit depth and padding are the source's.

UIDs are `2.25.<uuid5>` of the package, the source's UID, the kind of answer and its pixels: the same answer has the
same name, and other pixels (another threshold, another noise level) never share one. Dates and times are those of the
writing, so files of two runs differ there and nowhere else.
"""

import copy
import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from io import BytesIO
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ExplicitVRLittleEndian

from medae.errors import OutputError, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.io.dicom_file import DicomSource, guarded
from medae.io.dicom_pixels import padding_values, rescale

MEDIA_TYPE = "application/dicom"
MANUFACTURER = "medae"

Kind = Literal["restored", "labels", "map", "probabilities"]
SERIES_NUMBERS: dict[Kind, int] = {"restored": 9000, "labels": 9100, "map": 9200, "probabilities": 9300}
"""Added to the source's number, so that answers sort behind the scans and in their order."""

# medae's own name space for answers' UIDs; any constant would do, but it must stay
_ANSWERS = uuid.UUID("5f0d3a5e-9c1b-5a0e-8f43-6d65646165a1")
_IMPLEMENTATION = UID(f"2.25.{_ANSWERS.int}")

# fmt: off
_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_DROPPED = (
    "SmallestImagePixelValue", "LargestImagePixelValue", "SmallestPixelValueInSeries", "LargestPixelValueInSeries",
    "SmallestImagePixelValueInPlane", "LargestImagePixelValueInPlane", "IconImageSequence",
    "DigitalSignaturesSequence", "MACParametersSequence", "EncryptedAttributesSequence", "DataSetTrailingPadding",
    "PixelDataProviderURL", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "DerivationCodeSequence",
)
_PALETTE = (
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
    "PaletteColorLookupTableUID", "PixelPaddingValue", "PixelPaddingRangeLimit",
)
# fmt: on
# transfer syntaxes that always lose, with the method's name (PS3.3 C.7.6.1.1.5); JPEG 2000 (.91) may not, yet the
# claim "never lossy" would be a guess
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}


def encode_restored(
    image: Image, *, stem: str, algorithm: Algorithm, description: str, now: datetime | None = None
) -> list[AnswerFile]:
    """A derived series: `{stem}_restored.dcm` for one slice, else `{stem}_restored/0001.dcm` and on.

    image: float or integer modality values on the grid of its DicomSource, with its channels; they are rounded and
    clipped to the stored type. `now` is the date of the instances (default: the present).
    Raises OutputError for other grids or channels, UnsupportedImage for a source without UIDs to refer to.
    """
    source = source_of(image)
    with guarded("no derived series can be made for a source with this header"):
        naming = Naming("restored", source, image.pixels, algorithm)
        moment = now or datetime.now()
        answers = [_instance(image, index, naming, description, moment) for index in range(len(source.datasets))]
        encoded = [to_bytes(answer) for answer in answers]
    if len(encoded) == 1:
        return [AnswerFile(f"{stem}_restored.dcm", MEDIA_TYPE, encoded[0])]
    return [AnswerFile(f"{stem}_restored/{n:04}.dcm", MEDIA_TYPE, data) for n, data in enumerate(encoded, 1)]


class Naming:
    """UIDs, number and algorithm of one answer."""

    def __init__(self, kind: Kind, source: DicomSource, pixels: NDArray[Any], algorithm: Algorithm) -> None:
        self.kind, self.source, self.algorithm = kind, source, algorithm
        self._content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        number = int(source.datasets[0].get("SeriesNumber") or 0)
        self.series_number = SERIES_NUMBERS[kind] + max(number, 0) % 10_000 + 1
        self.series_uid = self.uid(str(source.datasets[0].SeriesInstanceUID))

    def uid(self, of: str, part: str = "") -> UID:
        """The answer's UID that stands for the source's UID `of`."""
        package = uuid.uuid5(_ANSWERS, self.algorithm.digest)
        return UID(f"2.25.{uuid.uuid5(package, f'{self.kind}:{part}:{self._content}:{of}').int}")


def frame_uid(source: Dataset) -> UID:
    """A frame of reference for a series whose headers forgot theirs; the same for all its answers."""
    return UID(f"2.25.{uuid.uuid5(_ANSWERS, f'frame of reference of {source.SeriesInstanceUID}').int}")


def source_of(image: Image) -> DicomSource:
    """The image's source, if a DICOM answer on its grid can be made."""
    source = image.source
    if not isinstance(source, DicomSource) or len(source.datasets) != image.geometry.shape[0]:
        raise OutputError("DICOM answers are made for images that came from DICOM, on the grid that they came on")
    with guarded("the source's DICOM header is damaged"):
        for dataset in source.datasets:
            if (dataset.Rows, dataset.Columns) != image.geometry.shape[1:]:
                raise OutputError(
                    f"the answer has {image.geometry.shape[1:]} (rows, columns), its DICOM source "
                    f"{(dataset.Rows, dataset.Columns)}; resample the answer onto the source first"
                )
            missing = [name for name in _IDENTITY if not dataset.get(name)]
            if missing:
                raise UnsupportedImage(
                    f"the DICOM source has no {', '.join(missing)}, so no DICOM answer can refer to it; "
                    "repair its header, or ask for labels-nifti or summary output"
                )
    return source


def to_bytes(dataset: Dataset) -> bytes:
    """As a DICOM file in Explicit VR Little Endian."""
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def code_item(value: str, scheme: str, meaning: str) -> Dataset:
    """A coded term (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def stamp(dataset: Dataset, moment: datetime) -> None:
    """The dates and times of an instance that is made at `moment`."""
    date, time = moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
    for name in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(dataset, name, date)
    for name in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(dataset, name, time)


def processing_equipment(algorithm: Algorithm) -> Dataset:
    """An item of ContributingEquipmentSequence for medae and its package."""
    from medae import __version__

    item = Dataset()
    item.Manufacturer = MANUFACTURER
    item.ManufacturerModelName = algorithm.name[:64]
    item.SoftwareVersions = [__version__, algorithm.version[:64]]
    item.DeviceSerialNumber = serial_number(algorithm)
    item.PurposeOfReferenceCodeSequence = DicomSequence([code_item("109102", "DCM", "Processing Equipment")])
    return item


def serial_number(algorithm: Algorithm) -> str:
    """The package's digest, which has just the 64 characters of a serial number without its prefix."""
    return algorithm.digest.removeprefix("sha256:")[:64]


def declare_loss(dataset: Dataset, source: Dataset) -> None:
    """Once lossy, always lossy: copied from the source, or known from its transfer syntax."""
    method = _LOSSY.get(str(source.file_meta.get("TransferSyntaxUID", ""))) if hasattr(source, "file_meta") else None
    if method and source.get("LossyImageCompression") in (None, ""):
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionMethod = method


def _instance(image: Image, index: int, naming: Naming, description: str, moment: datetime) -> Dataset:
    source = naming.source.datasets[index]
    answer = without_pixel_facts(source)
    answer.SOPInstanceUID = naming.uid(str(source.SOPInstanceUID))
    answer.SeriesInstanceUID = naming.series_uid
    answer.SeriesNumber = naming.series_number
    answer.SeriesDescription = f"{source.get('SeriesDescription') or ''} {description} (AI)".strip()[-64:]
    answer.ImageType = ["DERIVED", *_image_type(source)[1:]]
    algorithm = naming.algorithm
    made_by = f"{description} by {algorithm.name} {algorithm.version} {algorithm.digest}"
    answer.DerivationDescription = made_by[:1024]
    answer.SourceImageSequence = DicomSequence([_reference(source)])
    equipment = list(source.get("ContributingEquipmentSequence") or [])
    answer.ContributingEquipmentSequence = DicomSequence([*equipment, processing_equipment(algorithm)])
    declare_loss(answer, source)
    stamp(answer, moment)
    _set_pixels(answer, source, image.pixels[:, index], naming.source, index)
    answer.file_meta = FileMetaDataset()
    answer.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    answer.file_meta.MediaStorageSOPClassUID = answer.SOPClassUID
    answer.file_meta.MediaStorageSOPInstanceUID = answer.SOPInstanceUID
    answer.file_meta.ImplementationClassUID = _IMPLEMENTATION
    return answer


def without_pixel_facts(source: Dataset) -> Dataset:
    """A copy without what describes the old pixels only."""
    kept = Dataset()
    for element in source:
        repeating = element.tag.group & 0xFF00
        if not element.tag.is_private and repeating not in (0x5000, 0x6000) and element.keyword not in _DROPPED:
            # only what is nested can be changed from here; a plain value is replaced as a whole
            kept[element.tag] = copy.deepcopy(element) if element.VR == "SQ" else copy.copy(element)
    kept.remove_private_tags()  # those inside sequences
    return kept


def _image_type(source: Dataset) -> Sequence[str]:
    kinds = source.get("ImageType") or ()
    kinds = [kinds] if isinstance(kinds, str) else [str(kind) for kind in kinds]
    return kinds if len(kinds) > 1 else ["DERIVED", "SECONDARY"]


def _reference(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = DicomSequence(
        [code_item("121322", "DCM", "Source image for image processing operation")]
    )
    return item


def _set_pixels(answer: Dataset, source: Dataset, values_CRW: NDArray[Any], padded: DicomSource, index: int) -> None:
    is_grey = str(source.PhotometricInterpretation).startswith("MONOCHROME")
    if len(values_CRW) != (1 if is_grey else 3):
        raise OutputError(
            f"a derived DICOM series has the channels of its source, {1 if is_grey else 3}; the answer has "
            f"{len(values_CRW)}. Ask for another output, or give the image as PNG or TIFF"
        )
    if not np.isfinite(values_CRW).all():
        raise OutputError("the restored pixels contain NaN or infinity, which DICOM cannot store")
    if is_grey:
        stored = _grey(source, values_CRW[0], None if padded.padding is None else padded.padding[index])
    else:
        stored = _colour(answer, source, values_CRW)
    answer.add_new("PixelData", "OB" if stored.itemsize == 1 else "OW", _even(stored.tobytes()))


def _even(data: bytes) -> bytes:
    return data + b"\0" * (len(data) % 2)


def _grey(source: Dataset, values_RW: NDArray[Any], padding_RW: NDArray[np.bool_] | None) -> NDArray[Any]:
    if "ModalityLUTSequence" in source:
        raise OutputError(
            "the DICOM source has a modality table, which has no way back to stored values; ask for another output, or "
            "give the image in another format"
        )
    slope, intercept = rescale(source)
    bits, is_signed = int(source.BitsStored), int(source.PixelRepresentation) == 1
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if is_signed else (0, (1 << bits) - 1)
    stored = np.clip(np.rint((values_RW.astype(np.float64) - intercept) / slope), low, high)
    ends = padding_values(source)
    if padding_RW is not None and ends is not None:
        stored[padding_RW] = ends[0]
    return stored.astype(f"<{'i' if is_signed else 'u'}{int(source.BitsAllocated) // 8}")


def _colour(answer: Dataset, source: Dataset, values_CRW: NDArray[Any]) -> NDArray[Any]:
    is_palette = source.PhotometricInterpretation == "PALETTE COLOR"
    for name in _PALETTE if is_palette else ():
        if name in answer:
            delattr(answer, name)
    if is_palette:  # what was read, and so restored, are the colours of the table
        answer.BitsAllocated, answer.BitsStored, answer.HighBit, answer.PixelRepresentation = 8, 8, 7, 0
    answer.PhotometricInterpretation, answer.SamplesPerPixel, answer.PlanarConfiguration = "RGB", 3, 0
    stored = np.clip(np.rint(values_CRW), 0, (1 << int(answer.BitsStored)) - 1)
    return np.moveaxis(stored.astype(f"<u{int(answer.BitsAllocated) // 8}"), 0, -1)
