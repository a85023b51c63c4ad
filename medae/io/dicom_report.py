"""Numbers of an answer as DICOM structured report: Imaging Measurement Report, PS3.16 TID 1500, by highdicom.

A group for each label (its size, and the segment that was measured), one for the image (scores, percentile, p-value,
decision), one for the gate (its verdict, percentile and reasons). Codes are standard ones (SNOMED CT, DICOM, UCUM,
NCIt); where there is none, the scheme is 99MEDAE.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from io import BytesIO
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, Findings, LabelSize
from medae.io.dicom_answer import MANUFACTURER, MEDIA_TYPE, SCHEME, Naming, serial_number, source_of
from medae.io.dicom_elements import to_bytes
from medae.io.dicom_file import guarded
from medae.io.dicom_headers import category_of, evidence, finish, made_by, term_of
from medae.verdict import Verdict

PERCENTILE = Code("percentile", SCHEME, "Percentile among the model's reference images")
P_VALUE = Code("C44185", "NCIt", "P-Value")
VOXELS = Code("voxels", SCHEME, "Number of voxels")
DECISION = Code("decision", SCHEME, "Decision at the caller's false-positive rate")
GATE = Code("gate", SCHEME, "Whether the model knows images like this one")
REASON = Code("gate-reason", SCHEME, "Reason of the verdict")
VERDICTS = {
    "ok": Code("gate-ok", SCHEME, "OK: the model knows images like this one"),
    "review": Code("gate-review", SCHEME, "Review: at the edge of what the model knows"),
    "reject": Code("gate-reject", SCHEME, "Reject: unlike what the model knows"),
}
_DECISIONS = {"normal": codes.SCT.Normal, "anomalous": codes.SCT.Abnormal}
_IMAGING = Code("363679005", "SCT", "Imaging procedure")
_MILLILITRE = Code("mL", "UCUM", "milliliter")
_SEG_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")


def encode_report(
    image: Image,
    findings: Findings,
    *,
    stem: str,
    algorithm: Algorithm,
    answers: Sequence[AnswerFile] = (),
    now: datetime | None = None,
) -> AnswerFile:
    """`{stem}_report.dcm`, about the DICOM source of `image`.

    answers: the other files of this answer; the DICOM ones are evidence, and a SEG's segments are those measured.
    Raises OutputError and UnsupportedImage as source_of does.
    """
    made_before = [_opened(file) for file in answers if file.media_type == MEDIA_TYPE]
    said = repr((findings, [str(one.SOPInstanceUID) for one in made_before]))
    naming = Naming("report", source_of(image), np.frombuffer(said.encode(), np.uint8), algorithm)
    with guarded("no report can be made for a source with this header; ask for summary output"):
        seg = next((one for one in made_before if one.SOPClassUID in _SEG_CLASSES), None)
        made = hd.sr.Comprehensive3DSR(
            evidence=[*evidence(naming), *made_before],
            content=_content(findings, naming, seg),
            is_complete=True,
            **made_by(naming),
        )
        made.CodingSchemeIdentificationSequence = DicomSequence([_scheme()])
        finish(made, naming, now or datetime.now())
        return AnswerFile(f"{stem}_report.dcm", MEDIA_TYPE, to_bytes(made))


def _opened(file: AnswerFile) -> Dataset:
    return dcmread(BytesIO(file.data), stop_before_pixels=True)


def _scheme() -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator, item.CodingSchemeName = SCHEME, "medae"
    item.CodingSchemeResponsibleOrganization = MANUFACTURER
    return item


def _content(findings: Findings, naming: Naming, seg: Dataset | None) -> Dataset:
    algorithm = naming.algorithm
    device = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=naming.uid(algorithm.digest, "device"),
        name=algorithm.name[:64],
        manufacturer_name=MANUFACTURER,
        model_name=algorithm.name[:64],
        serial_number=serial_number(algorithm),
    )
    groups = [_of_label(size, naming, seg) for size in findings.labels]
    if findings.scores or findings.decision:
        groups.append(_of_image(findings, naming))
    if findings.gate is not None:
        groups.append(_of_gate(findings.gate, naming))
    report: Dataset = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(
            observer_device_context=hd.sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=_IMAGING,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )[0]
    return report


def _of_label(size: LabelSize, naming: Naming, seg: Dataset | None) -> Any:
    """TID 1411 about a segment; TID 1501 where nothing was segmented that could be referred to."""
    told = {
        "finding_type": term_of(size.label),
        "finding_category": category_of(size.label),
        "algorithm_id": _algorithm(naming),
        "measurements": list(_measured(size)),
    }
    if seg is None or not size.voxels:
        tracked = _tracked(naming, size.label.name, f"label {size.number}")
        return hd.sr.MeasurementsAndQualitativeEvaluations(tracked, **told)
    (segment,) = [item for item in seg.SegmentSequence if item.SegmentNumber == size.number]
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        hd.sr.TrackingIdentifier(segment.TrackingUID, segment.TrackingID),
        referenced_segment=hd.sr.ReferencedSegment(
            seg.SOPClassUID,
            seg.SOPInstanceUID,
            size.number,
            source_series=hd.sr.SourceSeriesForSegmentation(naming.source.datasets[0].SeriesInstanceUID),
        ),
        **told,
    )


def _measured(size: LabelSize) -> Iterator[Any]:
    yield hd.sr.Measurement(VOXELS, size.voxels, codes.UCUM.NoUnits)
    if size.mm3 is not None:
        yield hd.sr.Measurement(codes.SCT.Volume, size.mm3, codes.UCUM.CubicMillimeter)
        yield hd.sr.Measurement(codes.SCT.Volume, size.mm3 / 1000, _MILLILITRE)
    if size.mm2 is not None:
        yield hd.sr.Measurement(codes.SCT.Area, size.mm2, codes.UCUM.SquareMillimeter)


def _of_image(findings: Findings, naming: Naming) -> Any:
    measured = [
        hd.sr.Measurement(Code(name[:16], SCHEME, f"Score {name}"[:64]), value, codes.UCUM.NoUnits)
        for name, value in findings.scores.items()
    ]
    if findings.percentile is not None:
        measured.append(hd.sr.Measurement(PERCENTILE, findings.percentile, codes.UCUM.Percent))
    if findings.p_value is not None:
        measured.append(hd.sr.Measurement(P_VALUE, findings.p_value, codes.UCUM.NoUnits))
    decided = _DECISIONS.get(findings.decision or "")
    return hd.sr.MeasurementsAndQualitativeEvaluations(
        _tracked(naming, "Image", "image"),
        algorithm_id=_algorithm(naming),
        measurements=measured,
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(DECISION, decided)] if decided else None,
    )


def _of_gate(gate: Verdict, naming: Naming) -> Any:
    measured = [] if gate.percentile is None else [hd.sr.Measurement(PERCENTILE, gate.percentile, codes.UCUM.Percent)]
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        _tracked(naming, "Gate", "gate"),
        measurements=measured,
        qualitative_evaluations=[hd.sr.QualitativeEvaluation(GATE, VERDICTS[gate.verdict])],
    )
    contains = hd.sr.RelationshipTypeValues.CONTAINS
    for reason in gate.reasons:
        group[0].ContentSequence.append(hd.sr.TextContentItem(REASON, reason, contains))
    return group


def _tracked(naming: Naming, name: str, part: str) -> hd.sr.TrackingIdentifier:
    return hd.sr.TrackingIdentifier(naming.uid(naming.source.datasets[0].SeriesInstanceUID, part), name)


def _algorithm(naming: Naming) -> hd.sr.AlgorithmIdentification:
    algorithm = naming.algorithm
    return hd.sr.AlgorithmIdentification(
        algorithm.name, algorithm.version, [algorithm.digest], codes.cid7162.ArtificialIntelligence, MANUFACTURER
    )
