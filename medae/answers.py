"""Answers: a prediction as files, the same at every door."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from medae import io, pictures
from medae.errors import UsageError
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, Findings, LabelSize
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.package import ModelPackage
from medae.predictor import Prediction
from medae.pseudonyms import Pseudonyms
from medae.tasks import Segmentation

Output = Literal["default", "probabilities", "labels-nifti", "summary", "overlay"]
"""What a caller can ask for; `default` follows from the input's format."""


def check_output(output: str, package: ModelPackage) -> Output:
    """Raises UsageError for an unknown output, or one that this model's task does not have."""
    segments = isinstance(package.card.task, Segmentation)
    allowed = [name for name in get_args(Output) if segments or name not in ("probabilities", "labels-nifti")]
    if output not in allowed:
        raise UsageError(
            f"output {output!r} is not one of {', '.join(allowed)} (this model does {package.card.task.kind})"
        )
    return output  # type: ignore[return-value]  # checked against its own list


def check_dicom(dicom: DicomAnswers, package: ModelPackage, pseudonyms: Pseudonyms | None = None) -> None:
    """Raises UsageError for words about DICOM answers that this model's answers have no place for, and for
    de-identification without a key."""
    if dicom.deidentify and pseudonyms is None:
        raise UsageError(
            "deidentify needs the key of the site, under which UIDs are replaced: --id-key FILE on the command line, "
            "id_key in the service's or the batch's settings, pseudonyms=Pseudonyms.from_file(...) in Python"
        )
    task = package.card.task
    if dicom.seg != DEFAULT_DICOM.seg and not isinstance(task, Segmentation):
        raise UsageError(f"seg={dicom.seg} is about labels; this model does {task.kind}")
    if dicom.map != DEFAULT_DICOM.map and task.kind != "anomaly":
        raise UsageError(f"map={','.join(dicom.map)} is about maps of scores; this model does {task.kind}")


def answer_files(
    prediction: Prediction,
    package: ModelPackage,
    *,
    stem: str,
    original: Image,
    output: str = "default",
    dicom: DicomAnswers = DEFAULT_DICOM,
    pseudonyms: Pseudonyms | None = None,
) -> list[AnswerFile]:
    """The files of one answer, named `stem` + suffix.

    original: the image that was asked about; overlays show it. dicom: how answers to DICOM are written; de-identified
    ones need `pseudonyms`. An anomaly answer begins with its summary.
    """
    wanted = check_output(output, package)
    check_dicom(dicom, package, pseudonyms)
    if wanted == "summary":
        return [summary_file(prediction, stem=stem, files=[])]
    made = _made(prediction, package, stem, original, wanted, dicom)
    if original.source.format == "dicom":
        made = _dressed(made, prediction, package, stem, dicom, pseudonyms)
    if wanted == "default" and package.card.task.kind == "anomaly":
        return [summary_file(prediction, stem=stem, files=made), *made]
    return made


def summary(prediction: Prediction, *, id: str, files: Sequence[AnswerFile]) -> dict[str, Any]:
    """What a program wants to know about an answer; JSON-ready."""
    provenance = prediction.provenance
    return {
        "id": id,
        "task": prediction.task,
        "model": provenance["package"],
        "scores": prediction.scores,
        "percentile": prediction.percentile,
        "p_value": prediction.p_value,
        "decision": prediction.decision,
        "gate": prediction.gate.model_dump(mode="json") if prediction.gate is not None else None,
        "files": [
            {"name": file.name, "media_type": file.media_type, "sha256": hashlib.sha256(file.data).hexdigest()}
            for file in files
        ],
        "provenance": provenance,
    }


def summary_file(prediction: Prediction, *, stem: str, files: Sequence[AnswerFile]) -> AnswerFile:
    """The summary as {stem}_summary.json."""
    data = json.dumps(summary(prediction, id=stem, files=files), indent=2, allow_nan=False)
    return AnswerFile(f"{stem}_summary.json", "application/json", data.encode() + b"\n")


def _made(
    prediction: Prediction, package: ModelPackage, stem: str, original: Image, wanted: Output, dicom: DicomAnswers
) -> list[AnswerFile]:
    task, algorithm = package.card.task, _algorithm(package)
    if wanted == "overlay":
        return [_overlay(prediction, package, stem, original)]
    if wanted == "labels-nifti":
        return io.encode_labels_nifti(prediction.image, stem=stem)
    if isinstance(task, Segmentation):
        asked: dict[str, Any] = {"stem": stem, "labels_info": task.labels, "algorithm": algorithm, "dicom": dicom}
        if wanted == "default":
            return io.encode_labels(prediction.image, **asked)
        return io.encode_probabilities(_probabilities(prediction), **asked)
    if task.kind == "restoration":
        return io.encode_restored(prediction.image, stem=stem, algorithm=algorithm, description="restored")
    return _maps(prediction, package, stem, original, dicom)


def _probabilities(prediction: Prediction) -> Image:
    if prediction.probabilities is None:
        raise UsageError("the prediction was made without probabilities; call the predictor with probabilities=True")
    return prediction.probabilities


def _maps(
    prediction: Prediction, package: ModelPackage, stem: str, original: Image, dicom: DicomAnswers
) -> list[AnswerFile]:
    """The map in the input's format; to DICOM, as each of the objects asked for."""
    asked: dict[str, Any] = {"stem": stem, "algorithm": _algorithm(package)}
    maximum = _map_maximum(package)
    if original.source.format != "dicom":
        return io.encode_map(prediction.image, maximum=maximum, **asked)
    made: list[AnswerFile] = []
    if "seg" in dicom.map:
        made += io.encode_map(prediction.image, maximum=maximum, dicom=dicom, **asked)
    if "parametric" in dicom.map:
        from medae.io.dicom_map import encode_parametric

        made += encode_parametric(prediction.image, maximum=maximum, **asked)
    if "overlay" in dicom.map:
        from medae.io.dicom_overlay import display_window, encode_overlay

        low, high = display_window(original) or pictures.display_range(original)
        shown = [
            pictures.overlay_map(pictures.to_rgb(original.pixels[:, s], low, high), map_RW, maximum)
            for s, map_RW in enumerate(prediction.image.pixels[0])
        ]
        made += encode_overlay(prediction.image, shown, description="anomaly overlay", **asked)
    return made


def _dressed(
    made: list[AnswerFile],
    prediction: Prediction,
    package: ModelPackage,
    stem: str,
    dicom: DicomAnswers,
    pseudonyms: Pseudonyms | None,
) -> list[AnswerFile]:
    """With the report, de-identified, compressed: what may be asked of any answer to DICOM."""
    if dicom.report:
        from medae.io.dicom_report import encode_report

        found, algorithm = _findings(prediction, package), _algorithm(package)
        made = [*made, encode_report(prediction.image, found, stem=stem, algorithm=algorithm, answers=made)]
    if dicom.deidentify and pseudonyms is not None:
        from medae.io.dicom_deidentify import deidentified

        made = deidentified(made, pseudonyms)
    if dicom.compress != "none":
        from medae.io.dicom_compress import compressed

        made = compressed(made, dicom.compress)
    return made


def _findings(prediction: Prediction, package: ModelPackage) -> Findings:
    """What a report says: sizes of labels, or scores and where they lie."""
    task, scores = package.card.task, prediction.scores
    if not isinstance(task, Segmentation):
        placed = (prediction.percentile, prediction.p_value, prediction.decision)
        return Findings((), scores, *placed, gate=prediction.gate)
    sizes = [
        LabelSize(
            label,
            number,
            voxels=int(scores[f"{label.name}_voxels"]),
            mm3=scores.get(f"{label.name}_mm3"),
            mm2=scores.get(f"{label.name}_mm2"),
        )
        for number, label in enumerate(task.labels, 1)
    ]
    return Findings(tuple(sizes), gate=prediction.gate)


def overlay(prediction: Prediction, package: ModelPackage, original: Image) -> pictures.RGB:
    """The most telling slice: labels or heat over the image; for a restoration, before and after."""
    # of several volumes the first
    shown, answer = pictures.upright(original.volume(0)), pictures.upright(prediction.image.volume(0))
    low, high = pictures.display_range(shown)
    task = package.card.task
    weight = answer.pixels if task.kind != "restoration" else np.ones(answer.pixels.shape)
    at = _telling(weight)
    before = pictures.to_rgb(shown.pixels[:, at], low, high)
    if isinstance(task, Segmentation):
        picture = pictures.overlay_labels(before, answer.pixels[0, at], task.labels)
    elif task.kind == "anomaly":
        picture = pictures.overlay_map(before, answer.pixels[0, at], _map_maximum(package))
    else:
        after = pictures.to_rgb(answer.pixels[:, at], low, high)
        return pictures.compared(pictures.square_pixels(before, shown), pictures.square_pixels(after, shown))
    return pictures.square_pixels(picture, shown)


def _overlay(prediction: Prediction, package: ModelPackage, stem: str, original: Image) -> AnswerFile:
    data = io.encode_png(overlay(prediction, package, original))
    return AnswerFile(f"{stem}_overlay.png", "image/png", data)


def _telling(weight_CSRW: np.ndarray[Any, Any]) -> int:
    """The slice with the most in it; the middle one when all are alike."""
    each = weight_CSRW.astype(bool).sum((0, 2, 3)) if weight_CSRW.dtype.kind == "u" else weight_CSRW.sum((0, 2, 3))
    return int(np.argmax(each)) if each.max() > each.min() else len(each) // 2


def _algorithm(package: ModelPackage) -> Algorithm:
    return Algorithm(package.card.name, package.card.version, package.digest)


def _map_maximum(package: ModelPackage) -> float:
    """The fixed scale of maps; an uncalibrated model's residuals lie in the prepared range, at most 1."""
    return package.calibration.map_maximum if package.calibration else 1.0
