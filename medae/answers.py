"""Answers: a prediction as files, the same at every door."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

from medae import io, pictures
from medae.errors import UsageError
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile
from medae.package import ModelPackage
from medae.predictor import Prediction
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


def answer_files(
    prediction: Prediction, package: ModelPackage, *, stem: str, original: Image, output: str = "default"
) -> list[AnswerFile]:
    """The files of one answer, named `stem` + suffix.

    original: the image that was asked about; overlays show it. An anomaly answer begins with its summary.
    """
    wanted = check_output(output, package)
    if wanted == "summary":
        return [summary_file(prediction, stem=stem, files=[])]
    if wanted == "overlay":
        return [_overlay(prediction, package, stem, original)]
    if wanted == "probabilities":
        return _probabilities(prediction, package, stem)
    if wanted == "labels-nifti":
        return io.encode_labels_nifti(prediction.image, stem=stem)
    return _default(prediction, package, stem)


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
        "gate": None,
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


def _default(prediction: Prediction, package: ModelPackage, stem: str) -> list[AnswerFile]:
    task, algorithm = package.card.task, _algorithm(package)
    if isinstance(task, Segmentation):
        return io.encode_labels(prediction.image, stem=stem, labels_info=task.labels, algorithm=algorithm)
    if task.kind == "restoration":
        return io.encode_restored(prediction.image, stem=stem, algorithm=algorithm, description="restored")
    maps = io.encode_map(prediction.image, stem=stem, maximum=_map_maximum(package), algorithm=algorithm)
    return [summary_file(prediction, stem=stem, files=maps), *maps]


def _probabilities(prediction: Prediction, package: ModelPackage, stem: str) -> list[AnswerFile]:
    task = package.card.task
    assert isinstance(task, Segmentation), "check_output allows probabilities for segmentation only"
    if prediction.probabilities is None:
        raise UsageError("the prediction was made without probabilities; call the predictor with probabilities=True")
    return io.encode_probabilities(
        prediction.probabilities, stem=stem, labels_info=task.labels, algorithm=_algorithm(package)
    )


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
