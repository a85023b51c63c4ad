"""Colour pictures of an answer over its source, as DICOM secondary capture: for viewers that know nothing else.

One instance for each slice, where the slice lies, so that a viewer scrolls both together. The pictures are for people;
numbers are in the map, the SEG or the report.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.io.dicom_answer import (
    IMPLEMENTATION,
    MANUFACTURER,
    Naming,
    declare_loss,
    numbered,
    processed,
    processing_equipment,
    source_of,
    stamp,
)
from medae.io.dicom_elements import to_bytes
from medae.io.dicom_file import guarded
from medae.io.dicom_frames import functional_group
from medae.io.dicom_headers import PATIENT_AND_STUDY, normalised
from medae.io.dicom_references import reference

# fmt: off
_PLACE = (
    "FrameOfReferenceUID", "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient",
    "PixelSpacing", "SliceThickness",
)
# fmt: on


def display_window(image: Image) -> tuple[float, float] | None:
    """The values that the source's own window shows black and white, exchanged for MONOCHROME1; None without one."""
    source = source_of(image)
    file, frame = source.slices[0]
    photometric = source.datasets[file].PhotometricInterpretation
    with guarded("the source's window is damaged"):
        header = functional_group(source.datasets[file], frame, "FrameVOILUTSequence") or source.datasets[file]
        centre, width = (header.get(name) for name in ("WindowCenter", "WindowWidth"))
        if centre in (None, "") or width in (None, "") or image.channels != 1:
            return None
        middle, half = (float(np.atleast_1d(value)[0]) for value in (centre, width))
        half /= 2
        if not (np.isfinite([middle, half]).all() and half > 0):
            return None
        low, high = middle - half, middle + half
        return (high, low) if photometric == "MONOCHROME1" else (low, high)


def encode_overlay(
    image: Image,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    stem: str,
    algorithm: Algorithm,
    description: str,
    now: datetime | None = None,
) -> list[AnswerFile]:
    """`{stem}_overlay.dcm` for one slice, else `{stem}_overlay/0001.dcm` and on.

    pictures: of each slice of `image`, (rows, columns, 3). Raises OutputError where they do not fit the DICOM source.
    """
    stack = np.stack([np.asarray(picture, np.uint8) for picture in pictures])
    naming = Naming("overlay", source_of(image), stack, algorithm)
    with guarded("no overlay can be made for a source with this header; ask for map=seg"):
        moment = now or datetime.now()
        headers = normalised(naming, image)
        made = [_instance(naming, headers, index, stack[index], description, moment) for index in range(len(stack))]
        return numbered(f"{stem}_overlay", [to_bytes(one) for one in made])


def _instance(
    naming: Naming, headers: Sequence[Dataset], index: int, rgb: NDArray[np.uint8], description: str, moment: datetime
) -> Dataset:
    source, made = naming.source.datasets[naming.source.slices[index][0]], Dataset()
    for name in PATIENT_AND_STUDY:
        if name in headers[0]:
            made[name] = headers[0][name]
    for name in _PLACE:
        if name in headers[index]:
            made[name] = headers[index][name]
    _identify(made, naming, source, index, description)
    declare_loss(made, source)
    for name in ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if name in source and name not in made:
            made[name] = source[name]
    made.BurnedInAnnotation = source.get("BurnedInAnnotation") or "NO"
    stamp(made, moment)
    _set_pixels(made, rgb)
    return made


def _identify(made: Dataset, naming: Naming, source: Dataset, index: int, description: str) -> None:
    made.SOPClassUID = SecondaryCaptureImageStorage
    frame = f"{naming.source.slices[index][1]}" if naming.source.frames else ""
    made.SOPInstanceUID = naming.uid(str(source.SOPInstanceUID), frame)
    made.SeriesInstanceUID, made.SeriesNumber = naming.series_uid, naming.series_number
    made.SeriesDescription = f"{description} by {naming.algorithm.name} (AI)"[:64]
    made.InstanceNumber = index + 1
    made.Modality, made.ConversionType = "OT", "WSD"
    made.ImageType = ["DERIVED", "SECONDARY"]
    made.DerivationDescription = f"{description} by {naming.algorithm.name} {naming.algorithm.digest}"[:1024]
    made.Manufacturer = made.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    made.SecondaryCaptureDeviceManufacturerModelName = naming.algorithm.name[:64]
    made.SecondaryCaptureDeviceSoftwareVersions = naming.algorithm.version[:64]
    if "Laterality" in source or "BodyPartExamined" not in source:  # type 2C: empty where nobody said
        made.Laterality = source.get("Laterality")
    made.PatientOrientation = source.get("PatientOrientation")
    made.SourceImageSequence = DicomSequence([reference(naming.source, [index], processed())])
    made.ContributingEquipmentSequence = DicomSequence([processing_equipment(naming.algorithm)])


def _set_pixels(made: Dataset, rgb: NDArray[Any]) -> None:
    made.Rows, made.Columns = rgb.shape[:2]
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
    data = rgb.tobytes()
    made.add_new("PixelData", "OB", data + b"\0" * (len(data) % 2))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    made.file_meta.ImplementationClassUID = IMPLEMENTATION
