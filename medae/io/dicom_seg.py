"""Labels, maps and probabilities -> DICOM SEG on the source's own slices, by highdicom.

BINARY (or LABELMAP, on request) for labels, FRACTIONAL for what is between 0 and 1. Images without a position in space
(radiographs, secondary captures) get a SEG without one: its frame refers to the image, pixel by pixel.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medae.errors import OutputError
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Label
from medae.io.dicom_answer import (
    MEDIA_TYPE,
    Kind,
    Naming,
    source_of,
)
from medae.io.dicom_elements import to_bytes
from medae.io.dicom_file import guarded
from medae.io.dicom_headers import category_of, finish, made_by, normalised, term_of
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.io.dicom_references import is_pile, piled, unpile

MAXIMUM = 255
"""Stored value of a FRACTIONAL SEG that stands for 1 (probabilities), or for the map's `maximum`."""

_ANOMALY = Label(
    name="Anomaly score",
    colour=(255, 64, 0),
    category=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
    term=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
)


def encode_labels(
    labels: Image,
    *,
    stem: str,
    labels_info: Sequence[Label],
    algorithm: Algorithm,
    dicom: DicomAnswers = DEFAULT_DICOM,
    now: datetime | None = None,
) -> list[AnswerFile]:
    """`{stem}_seg.dcm`: one segment for each of `labels_info`, in its order, also for labels that are absent.

    labels: whole numbers (1, slices, rows, columns), 0 background, n the n-th label.
    dicom: BINARY, or LABELMAP (PS3.3 A.101, one number a pixel).
    Raises OutputError for other pixels, UnsupportedImage for a source without UIDs to refer to.
    """
    pixels = labels.pixels
    if len(pixels) != 1 or pixels.dtype.kind not in "bu" or int(pixels.max()) > len(labels_info):
        raise OutputError(
            f"a label image has one channel of unsigned numbers up to {len(labels_info)} (its labels); "
            f"got {len(pixels)} channels of {pixels.dtype} up to {pixels.max()}"
        )
    segments = [_segment(number, label, algorithm) for number, label in enumerate(labels_info, 1)]
    return _answer("labels", labels, pixels[0], segments, f"{stem}_seg.dcm", algorithm, dicom, now)


def encode_map(
    map_: Image,
    *,
    stem: str,
    maximum: float,
    algorithm: Algorithm,
    dicom: DicomAnswers = DEFAULT_DICOM,
    now: datetime | None = None,
) -> list[AnswerFile]:
    """`{stem}_map.dcm`, FRACTIONAL with one segment: 0 to `maximum` (fixed, above clipped) as 0 to 255.

    map_: (1, slices, rows, columns), at least 0. Raises as encode_labels does.
    """
    if len(map_.pixels) != 1 or not 0 < maximum < np.inf:
        raise OutputError(f"a map has one channel and a maximum above 0, got {len(map_.pixels)} and {maximum}")
    segment = _segment(1, _ANOMALY, algorithm)
    segment.SegmentDescription = f"{MAXIMUM} stands for a score of {maximum:g} or more"
    fractions = map_.pixels[0, ..., None] / maximum
    return _answer("map", map_, fractions, [segment], f"{stem}_map.dcm", algorithm, dicom, now)


def encode_probabilities(
    probabilities: Image,
    *,
    stem: str,
    labels_info: Sequence[Label],
    algorithm: Algorithm,
    dicom: DicomAnswers = DEFAULT_DICOM,
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
    return _answer("probabilities", probabilities, fractions, segments, name, algorithm, dicom, now)


def _answer(
    kind: Kind,
    image: Image,
    pixels: NDArray[Any],
    segments: Sequence[Dataset],
    name: str,
    algorithm: Algorithm,
    dicom: DicomAnswers,
    now: datetime | None,
) -> list[AnswerFile]:
    """pixels: (S, R, W) labels, or (S, R, W, segments) fractions."""
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            raise OutputError("the map or probabilities contain NaN or infinity, which DICOM SEG cannot store")
        pixels = np.clip(pixels, 0, 1).astype(np.float32)
    form = "FRACTIONAL" if pixels.ndim == 4 else dicom.seg.upper()
    naming = Naming(kind, source_of(image), pixels, algorithm, variant=_variant(form, dicom))
    with guarded("no DICOM SEG can be made for a source with this header; ask for labels-nifti or summary output"):
        headers = normalised(naming, image)
        for segment in segments:
            segment.TrackingUID = naming.uid(
                naming.source.datasets[0].SeriesInstanceUID, f"segment {segment.SegmentNumber}"
            )
            segment.TrackingID = f"{algorithm.name[:40]} {segment.SegmentLabel[:20]}"
        in_pile = is_pile(headers)
        seg = hd.seg.Segmentation(
            source_images=piled(headers) if in_pile else headers,
            pixel_array=pixels,
            segmentation_type=form,
            fractional_type="PROBABILITY",
            max_fractional_value=MAXIMUM,
            omit_empty_frames=not dicom.empty_frames,
            segment_descriptions=segments,
            content_label=kind.upper(),
            content_creator_name=None,
            **made_by(naming),
        )
        if "ImagePositionPatient" not in headers[0]:  # PS3.3 C.7.6.1: it says how it is turned, or says nothing
            seg.PatientOrientation = headers[0].get("PatientOrientation")
        if in_pile:
            unpile(seg, headers, naming.source)
        finish(seg, naming, now or datetime.now())
        return [AnswerFile(name, MEDIA_TYPE, to_bytes(seg))]


def _variant(form: str, dicom: DicomAnswers) -> str:
    """Of the same labels, another kind of object is another instance; none for the usual one."""
    return " ".join([*(["labelmap"] if form == "LABELMAP" else []), *(["empty frames"] if dicom.empty_frames else [])])


def _segment(number: int, label: Label, algorithm: Algorithm) -> Dataset:
    identification = hd.AlgorithmIdentificationSequence(
        name=algorithm.name[:64],
        version=algorithm.version[:64],
        family=codes.cid7162.ArtificialIntelligence,
    )
    segment: Dataset = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=category_of(label),
        segmented_property_type=term_of(label),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor.from_rgb(*label.colour),
    )
    return segment
