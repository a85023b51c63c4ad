"""Headers for highdicom, and the last touches to what it makes.

highdicom asks for attributes that real files lack, so it is given copies of the headers, normalised; the source itself
is never touched.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM, format_number_as_ds

from medae import __version__
from medae.image import Geometry, Image
from medae.io.answer import CodedTerm, Label
from medae.io.dicom_answer import (
    MANUFACTURER,
    Naming,
    declare_loss,
    frame_uid,
    processing_equipment,
    serial_number,
    stamp,
)
from medae.io.dicom_elements import without_pixel_facts
from medae.io.dicom_file import DicomSource
from medae.io.dicom_frames import functional_group, of_frame
from medae.io.dicom_references import as_slice, refer

# What a label is when its model does not say: something anatomical, some tissue (SNOMED CT).
_CATEGORY = CodedTerm(value="91723000", scheme="SCT", meaning="Anatomical Structure")
_TERM = CodedTerm(value="85756007", scheme="SCT", meaning="Tissue")

# PS3.3 type 2 attributes (present, maybe empty) that highdicom reads without asking
# fmt: off
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)
PATIENT_AND_STUDY = (
    *_TYPE_2, "SpecificCharacterSet", "StudyInstanceUID", "StudyDescription", "PatientAge", "PatientSize",
    "PatientWeight", "IssuerOfPatientID", "OtherPatientIDs", "EthnicGroup", "PatientComments", "BodyPartExamined",
    "PatientPosition",
)
"""What any answer in a study repeats of it."""
_WHO_AND_WHERE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows",
    "Columns", "PixelSpacing",
)
# fmt: on


def normalised(naming: Naming, image: Image) -> list[Dataset]:
    """A header for each slice of the image, as of a file of one frame, with all that highdicom takes for granted.

    What is made of them is given to `finish`, which makes it refer to the true files and frames.
    """
    source = naming.source
    planes = [_plane(source.datasets[file], frame) for file, frame in source.slices]
    headers = [_first(source.datasets[source.slices[0][0]])]
    # of the others highdicom asks only who and where they are
    headers += [_picked(source.datasets[file], _WHO_AND_WHERE) for file, _ in source.slices[1:]]
    in_space = image.geometry.unit == "mm" and all(planes)
    for number, (header, plane) in enumerate(zip(headers, planes, strict=True)):
        if in_space and plane is not None and planes[0] is not None:
            # real headers round the orientation of one series differently
            header.ImagePositionPatient, header.ImageOrientationPatient = plane[0], planes[0][1]
            _measure(header, source, image.geometry)
        else:
            _unplace(header)
        as_slice(header, number)
    return headers


def evidence(naming: Naming) -> list[Dataset]:
    """A header for each file of the source, with all that highdicom asks of the evidence of a report."""
    first, *others = naming.source.datasets
    return [_first(first), *(_picked(header, _WHO_AND_WHERE) for header in others)]


def _first(source: Dataset) -> Dataset:
    """The one that highdicom asks about patient and study."""
    first = without_pixel_facts(source, groups_of_frames=False)
    _normalise_patient_and_study(first)
    declare_loss(first, source)
    return first


def _plane(source: Dataset, frame: int) -> tuple[Any, Any] | None:
    """Position and orientation of a frame as its header has them, both or neither."""
    position = of_frame(source, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = of_frame(source, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    return (list(position), list(orientation)) if position and orientation else None


def _picked(source: Dataset, names: Sequence[str]) -> Dataset:
    picked = Dataset()
    for name in names:
        if name in source:
            setattr(picked, name, source[name].value)
    return picked


def _normalise_patient_and_study(header: Dataset) -> None:
    """Type 2 attributes present, empty where absent or malformed; highdicom does not know every character set."""
    for name in _TYPE_2:
        if name not in header:
            setattr(header, name, None)
    for name, valid in (("PatientBirthDate", DA), ("StudyDate", DA), ("StudyTime", TM)):
        try:
            valid(str(header[name].value or ""))
        except ValueError:
            header[name].value = None
    if str(header.PatientSex or "") not in ("", "M", "F", "O"):
        header.PatientSex = None
    if "SpecificCharacterSet" in header:  # texts are decoded by now, and UTF-8 takes them all
        header.SpecificCharacterSet = "ISO_IR 192"


def _measure(header: Dataset, source: DicomSource, geometry: Geometry) -> None:
    """The measures that highdicom needs of a slice in space; real headers miss some, or round them differently."""
    file, frame = source.slices[0]
    first = source.datasets[file]
    measures = functional_group(first, frame, "PixelMeasuresSequence") or first
    header.PixelSpacing = list(measures.get("PixelSpacing") or first.PixelSpacing)
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = frame_uid(first)
    step, row, column = (geometry.affine[:3, axis] for axis in range(3))
    # along the normal, also where a tilted gantry shifted the slices
    pitch = abs(float(np.linalg.det([step, row, column]))) / float(np.linalg.norm(np.cross(row, column)))
    if not header.get("SliceThickness"):
        header.SliceThickness = measures.get("SliceThickness") or format_number_as_ds(pitch)
    header.pop("SpacingBetweenSlices", None)
    if geometry.shape[0] > 1:
        header.SpacingBetweenSlices = format_number_as_ds(pitch)


def _unplace(header: Dataset) -> None:
    """A picture: its SEG lies on it pixel by pixel, and says nothing of a space."""
    for name in ("ImagePositionPatient", "ImageOrientationPatient"):
        header.pop(name, None)
    if "SliceThickness" not in header:  # readers, highdicom's too, take measures only with it
        header.pop("PixelSpacing", None)
    if header.get("Modality") in ("CT", "MR", "PT") and not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = frame_uid(header)  # these classes must have one


def made_by(naming: Naming) -> dict[str, Any]:
    """What every object of highdicom's is told of its series, its name and its maker."""
    algorithm = naming.algorithm
    return {
        "series_instance_uid": naming.series_uid,
        "series_number": naming.series_number,
        "series_description": f"{naming.kind} by {algorithm.name} (AI)"[:64],
        "sop_instance_uid": naming.uid(str(naming.source.datasets[0].SOPInstanceUID)),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": algorithm.name[:64],
        "software_versions": [__version__, algorithm.version[:64]],
        "device_serial_number": serial_number(algorithm),
    }


def finish(made: Dataset, naming: Naming, moment: datetime) -> None:
    """What highdicom draws at random or takes from the clock becomes a function of the answer and `moment`, and what
    was made of `normalised` headers refers to the files that they are of."""
    stamp(made, moment)
    if "PerFrameFunctionalGroupsSequence" in made:
        refer(made, naming.source)
    dimensions = naming.uid(made.SOPInstanceUID, "dimensions")
    for item in [*made.get("DimensionOrganizationSequence", ()), *made.get("DimensionIndexSequence", ())]:
        item.DimensionOrganizationUID = dimensions
    equipment = [*made.get("ContributingEquipmentSequence", ()), processing_equipment(naming.algorithm)]
    for item in equipment:
        item.pop("ContributionDateTime", None)
    made.ContributingEquipmentSequence = DicomSequence(equipment)


def category_of(label: Label) -> Code:
    """Its coded category, such as Anatomical Structure."""
    return _code(label.category or _CATEGORY)


def term_of(label: Label) -> Code:
    """Its coded term, such as Nucleus."""
    return _code(label.term or _TERM)


def _code(term: CodedTerm) -> Code:
    return Code(term.value, term.scheme, term.meaning)
