"""What all DICOM answers share: their names, who made them and when, and what of the source they keep.

UIDs are `2.25.<uuid5>` of the package, the source's UID, the kind of answer and its pixels: the same answer has the
same name, and other pixels (another threshold, another noise level) never share one. Dates and times are those of the
writing, so files of two runs differ there and nowhere else.
"""

import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID

from medae.errors import OutputError, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.io.dicom_file import DicomSource, guarded

MEDIA_TYPE = "application/dicom"
MANUFACTURER = "medae"

SCHEME = "99MEDAE"
"""Designator of the codes that no standard scheme has (PS3.3 8.2)."""

Kind = Literal["restored", "labels", "map", "probabilities", "parametric", "overlay", "report"]
SERIES_NUMBERS: dict[Kind, int] = {
    "restored": 9000,
    "labels": 9100,
    "map": 9200,
    "probabilities": 9300,
    "parametric": 9400,
    "overlay": 9500,
    "report": 9600,
}
"""Added to the source's number, so that answers sort behind the scans and in their order."""

# medae's own name space for answers' UIDs; any constant would do, but it must stay
_ANSWERS = uuid.UUID("5f0d3a5e-9c1b-5a0e-8f43-6d65646165a1")
IMPLEMENTATION = UID(f"2.25.{_ANSWERS.int}")

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# transfer syntaxes that always lose, with the method's name (PS3.3 C.7.6.1.1.5); JPEG 2000 (.91, .203) may not, yet the
# claim "never lossy" would be a guess
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
    "1.2.840.10008.1.2.4.203": "ISO_15444_15",
}


class Naming:
    """UIDs, number and algorithm of one answer. `variant` tells apart what was made of the same pixels."""

    def __init__(
        self, kind: Kind, source: DicomSource, pixels: NDArray[Any], algorithm: Algorithm, *, variant: str = ""
    ) -> None:
        self.kind, self.source, self.algorithm = kind, source, algorithm
        # of several volumes in one file, each has answers of its own
        frames = f"{source.frames}" if source.frames else ""
        self._content = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest() + frames + variant
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
    if not isinstance(source, DicomSource) or len(source.slices) != image.geometry.shape[0]:
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


def numbered(name: str, encoded: Sequence[bytes]) -> list[AnswerFile]:
    """`{name}.dcm` for one instance, else `{name}/0001.dcm` and on."""
    if len(encoded) == 1:
        return [AnswerFile(f"{name}.dcm", MEDIA_TYPE, encoded[0])]
    return [AnswerFile(f"{name}/{number:04}.dcm", MEDIA_TYPE, data) for number, data in enumerate(encoded, 1)]


def processed() -> Dataset:
    """An item of SourceImageSequence that says what the source was for; `reference` says which it is."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = DicomSequence(
        [code_item("121322", "DCM", "Source image for image processing operation")]
    )
    return item


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
