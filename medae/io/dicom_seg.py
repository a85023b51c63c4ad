"""Labels, maps and probabilities -> DICOM SEG on the source's own slices, by highdicom.

BINARY for labels, FRACTIONAL for what is between 0 and 1. highdicom asks for attributes that real files lack, so it is
given copies of the headers, normalised; the source itself is never touched. Images without a position in space
(radiographs, secondary captures) get a SEG without one: its frame refers to the image, pixel by pixel.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.valuerep import DA, TM, format_number_as_ds

from medae import __version__
from medae.errors import OutputError
from medae.image import Geometry, Image
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Label
from medae.io.dicom_derived import (
    MANUFACTURER,
    MEDIA_TYPE,
    Kind,
    Naming,
    declare_loss,
    frame_uid,
    processing_equipment,
    serial_number,
    source_of,
    stamp,
    to_bytes,
    without_pixel_facts,
)
from medae.io.dicom_file import guarded

MAXIMUM = 255
"""Stored value of a FRACTIONAL SEG that stands for 1 (probabilities), or for the map's `maximum`."""

# What a label is when its model does not say: something anatomical, some tissue (SNOMED CT).
_CATEGORY = CodedTerm(value="91723000", scheme="SCT", meaning="Anatomical Structure")
_TERM = CodedTerm(value="85756007", scheme="SCT", meaning="Tissue")
_ANOMALY = Label(
    name="Anomaly score",
    colour=(255, 64, 0),
    category=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
    term=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
)

# PS3.3 type 2 attributes (present, maybe empty) that highdicom reads without asking
# fmt: off
_TYPE_2 = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)
_WHO_AND_WHERE = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality", "Rows",
    "Columns", "ImagePositionPatient", "PixelSpacing",
)
# fmt: on


def encode_labels(
    labels: Image, *, stem: str, labels_info: Sequence[Label], algorithm: Algorithm, now: datetime | None = None
) -> list[AnswerFile]:
    """`{stem}_seg.dcm`, BINARY: one segment for each of `labels_info`, in its order, also for labels that are absent.

    labels: whole numbers (1, slices, rows, columns), 0 background, n the n-th label.
    Raises OutputError for other pixels, UnsupportedImage for a source without UIDs to refer to.
    """
    pixels = labels.pixels
    if len(pixels) != 1 or pixels.dtype.kind not in "bu" or int(pixels.max()) > len(labels_info):
        raise OutputError(
            f"a label image has one channel of unsigned numbers up to {len(labels_info)} (its labels); "
            f"got {len(pixels)} channels of {pixels.dtype} up to {pixels.max()}"
        )
    segments = [_segment(number, label, algorithm) for number, label in enumerate(labels_info, 1)]
    return _answer("labels", labels, pixels[0], segments, f"{stem}_seg.dcm", algorithm, now)


def encode_map(
    map_: Image, *, stem: str, maximum: float, algorithm: Algorithm, now: datetime | None = None
) -> list[AnswerFile]:
    """`{stem}_map.dcm`, FRACTIONAL with one segment: 0 to `maximum` (fixed, above clipped) as 0 to 255.

    map_: (1, slices, rows, columns), at least 0. Raises as encode_labels does.
    """
    if len(map_.pixels) != 1 or not 0 < maximum < np.inf:
        raise OutputError(f"a map has one channel and a maximum above 0, got {len(map_.pixels)} and {maximum}")
    segment = _segment(1, _ANOMALY, algorithm)
    segment.SegmentDescription = f"{MAXIMUM} stands for a score of {maximum:g} or more"
    return _answer("map", map_, map_.pixels[0, ..., None] / maximum, [segment], f"{stem}_map.dcm", algorithm, now)


def encode_probabilities(
    probabilities: Image,
    *,
    stem: str,
    labels_info: Sequence[Label],
    algorithm: Algorithm,
    now: datetime | None = None,
) -> list[AnswerFile]:
    """`{stem}_probabilities.dcm`, FRACTIONAL: one segment for each of `labels_info`, 0 to 1 as 0 to 255.

    probabilities: (labels, slices, rows, columns), 0 to 1. Raises as encode_labels does.
    """
    if len(probabilities.pixels) != len(labels_info):
        raise OutputError(f"{len(labels_info)} labels need as many channels, got {len(probabilities.pixels)}")
    segments = [_segment(number, label, algorithm) for number, label in enumerate(labels_info, 1)]
    fractions = np.moveaxis(probabilities.pixels, 0, -1)
    name = f"{stem}_probabilities.dcm"
    return _answer("probabilities", probabilities, fractions, segments, name, algorithm, now)


def _answer(
    kind: Kind,
    image: Image,
    pixels: NDArray[Any],
    segments: Sequence[Dataset],
    name: str,
    algorithm: Algorithm,
    now: datetime | None,
) -> list[AnswerFile]:
    """pixels: (S, R, W) labels, or (S, R, W, segments) fractions."""
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise OutputError("the map or probabilities contain NaN or infinity, which DICOM SEG cannot store")
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
    naming = Naming(kind, source_of(image), pixels, algorithm)
    with guarded("no DICOM SEG can be made for a source with this header; ask for labels-nifti or summary output"):
        headers = _normalised(naming, image)
        for segment in segments:
            segment.TrackingUID = naming.uid(
                naming.source.datasets[0].SeriesInstanceUID, f"segment {segment.SegmentNumber}"
            )
            segment.TrackingID = f"{algorithm.name[:40]} {segment.SegmentLabel[:20]}"
        seg = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=pixels,
            segmentation_type="FRACTIONAL" if pixels.ndim == 4 else "BINARY",
            fractional_type="PROBABILITY",
            max_fractional_value=MAXIMUM,
            segment_descriptions=segments,
            series_instance_uid=naming.series_uid,
            series_number=naming.series_number,
            sop_instance_uid=naming.uid(str(headers[0].SOPInstanceUID)),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name[:64],
            software_versions=[__version__, algorithm.version[:64]],
            device_serial_number=serial_number(algorithm),
            content_label=kind.upper(),
            content_creator_name=None,
            series_description=f"{kind} by {algorithm.name} (AI)"[:64],
        )
        if "ImagePositionPatient" not in headers[0]:  # PS3.3 C.7.6.1: it says how it is turned, or says nothing
            seg.PatientOrientation = headers[0].get("PatientOrientation")
        _finish(seg, naming, now or datetime.now())
        return [AnswerFile(name, MEDIA_TYPE, to_bytes(seg))]


def _finish(seg: Dataset, naming: Naming, moment: datetime) -> None:
    """What highdicom draws at random or takes from the clock becomes a function of the answer and `moment`."""
    stamp(seg, moment)
    dimensions = naming.uid(seg.SOPInstanceUID, "dimensions")
    for item in [*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence]:
        item.DimensionOrganizationUID = dimensions
    equipment = [*seg.ContributingEquipmentSequence, processing_equipment(naming.algorithm)]
    for item in equipment:
        item.pop("ContributionDateTime", None)
    seg.ContributingEquipmentSequence = DicomSequence(equipment)


def _segment(number: int, label: Label, algorithm: Algorithm) -> Dataset:
    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        version=algorithm.version[:64],
        family=codes.cid7162.ArtificialIntelligence,
    )
    segment: Dataset = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=_code(label.category or _CATEGORY),
        segmented_property_type=_code(label.term or _TERM),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor.from_rgb(*label.colour),
    )
    return segment


def _code(term: CodedTerm) -> Code:
    return Code(term.value, term.scheme, term.meaning)


def _normalised(naming: Naming, image: Image) -> list[Dataset]:
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
