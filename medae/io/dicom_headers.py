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
    "Columns", "ImagePositionPatient", "PixelSpacing",
)
# fmt: on


def normalised(naming: Naming, image: Image) -> list[Dataset]:
    """Copies of the source's headers with all that highdicom takes for granted."""
    sources = naming.source.datasets
    in_space = all(header.get("ImagePositionPatient") and header.get("ImageOrientationPatient") for header in sources)
    first = without_pixel_facts(sources[0])
    _normalise_patient_and_study(first)
    declare_loss(first, sources[0])
    # of the others highdicom asks only who and where they are
    headers = [first, *(_picked(source, _WHO_AND_WHERE) for source in sources[1:])]
    for header in headers:
        if in_space and image.geometry.unit == "mm":
            _place(header, sources[0], image.geometry)
        else:
            _unplace(header)
    return headers


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


def _place(header: Dataset, first: Dataset, geometry: Geometry) -> None:
    """What highdicom needs to know of a slice in space; real headers miss some, or round it differently."""
    header.ImageOrientationPatient = list(first.ImageOrientationPatient)
    header.PixelSpacing = list(first.PixelSpacing)
    if not header.get("FrameOfReferenceUID"):
        header.FrameOfReferenceUID = frame_uid(first)
    step, row, column = (geometry.affine[:3, axis] for axis in range(3))
    # along the normal, also where a tilted gantry shifted the slices
    pitch = abs(float(np.linalg.det([step, row, column]))) / float(np.linalg.norm(np.cross(row, column)))
    if not header.get("SliceThickness"):
        header.SliceThickness = format_number_as_ds(pitch)
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
    """What highdicom draws at random or takes from the clock becomes a function of the answer and `moment`."""
    stamp(made, moment)
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
