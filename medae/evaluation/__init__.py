"""Evaluation: a model on cases whose answers are known, through the Predictor, into a table and metrics.json."""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from medae.data import Case, Data, LoadedCase, Split
from medae.data.seen import corrupted
from medae.errors import InputError, MedaeError, UnfitImage, UsageError
from medae.evaluation.detection import Voxels, baseline_values, baselines_from, detection, plain_number, verdict
from medae.evaluation.doubt import answer_with_doubts, selection
from medae.evaluation.reading import described, normal_images, own_data, pseudonymous, to_read
from medae.evaluation.reference import calibrate
from medae.image import Image
from medae.io.answer import AnswerFile, write_files
from medae.metrics.fidelity import psnr, ssim
from medae.metrics.overlap import dice, iou
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.preparation import Intensity, Preparation
from medae.pseudonyms import Pseudonyms
from medae.record import recording
from medae.report import Gallery, report_file
from medae.scores.baselines import Baselines
from medae.tasks import Anomaly, Restoration, Segmentation, TaskConfig

__all__ = ["CaseResult", "Evaluation", "Headline", "Measured", "calibrate", "evaluate", "headline", "measure"]

if TYPE_CHECKING:
    from medae.backends.code_report import CodeReport

logger = logging.getLogger(__name__)

UNLIKE = "_unlikeness"
"""After the name of a two-sided score: its distance from the middle of the references."""


@dataclass(frozen=True)
class CaseResult:
    """One row of the table."""

    id: str
    label: str | None
    values: Mapping[str, float]
    reason: str | None = None
    """Why there are no values."""
    patient: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """How good a model is."""

    cases: tuple[CaseResult, ...]
    metrics: dict[str, Any]
    """Plain data, as in metrics.json; null where a number cannot be had."""


class Measured(NamedTuple):
    """One case: its numbers by name, and what a picture of it would show, by name."""

    values: dict[str, float]
    images: dict[str, Image]
    """input, output and, where there is one, target."""


class Headline(NamedTuple):
    """The one number by which a training chooses its best weights."""

    name: str
    higher_is_better: bool


def headline(task: TaskConfig) -> Headline:
    """dice, psnr, or (lower is better) how badly normal images are reconstructed."""
    if isinstance(task, Anomaly):
        return Headline(task.while_training.score_name, False)
    return Headline("dice" if isinstance(task, Segmentation) else "psnr", True)


def evaluate(
    package: ModelPackage | Predictor,
    cases: Data | Iterable[LoadedCase] | Path | None = None,
    out: Path | None = None,
    *,
    split: Split = "test",
    watch: Callable[[CaseResult], None] = lambda result: None,
    pseudonyms: Pseudonyms | None = None,
) -> Evaluation:
    """Measure a model.

    cases: data, of which `split` is taken; loaded cases; the path of a CSV list (its test split, or all where it has
    no splits); None: the data of the package's own experiment. out: where cases.csv, metrics.json, report.html and
    run.json go. watch: called after each case. pseudonyms: ids of cases and patients become keyed hashes.

    segmentation: Dice and IoU of each label and their mean. restoration: PSNR and SSIM of the output and of the input,
    against the target or, where the task has a corruption, of the clean image after that corruption, seeded by the
    case's place in the list. anomaly: AUROC and average precision of `label` not "normal", overall and for each label,
    of the scores and of what needs no learning, which is fitted on the normal training images of the package's own
    experiment where these can be read; and how well the map finds the targets, where cases have some. A variational
    autoencoder: what its code holds (`posterior`), with a warning where it has collapsed. A package with a gate, and a
    RepeatedPredictor: how well each doubt follows the error (`selection`).

    A case that cannot be measured is a row with its reason, and the others go on.
    Raises UsageError where there are no cases, SettingsError for a list that does not hold, OutputError.
    """
    predictor = package if isinstance(package, Predictor) else Predictor(package)
    task = predictor.package.card.task
    with recording(out, "evaluate", digests={"package": predictor.package.digest}) as run:
        run.facts |= predictor.package.calibrations
        results: list[CaseResult] = []
        gallery, voxels, code = Gallery(predictor.package), Voxels(), _code_report(predictor.package)
        fitted = _baselines(predictor.package) if isinstance(task, Anomaly) else None
        for index, (case, read) in enumerate(to_read(predictor.package, cases, split)):
            case = case if pseudonyms is None else pseudonymous(case, pseudonyms)
            result, images = _result(predictor, case, read, index, fitted)
            results.append(result)
            if images and code is not None:
                code.see(images["input"])
            if out is not None and images:
                gallery.see(result, images)
            if isinstance(task, Anomaly) and "target" in images:
                voxels.see(images["output"], images["target"])
            if results[-1].reason is None:
                run.done(case.id)
            else:
                run.failed(case.id, str(results[-1].reason))
            watch(results[-1])
        if not results:
            raise UsageError(f"there are no cases to evaluate on (split {split}); name others")
        metrics = summarise(task, results) | (code.summary() if code else {})
        evaluation = Evaluation(tuple(results), metrics | ({"voxels": found} if (found := voxels.summary()) else {}))
        if out is not None:
            report = report_file(predictor.package, results, evaluation.metrics, gallery, cases=described(cases, split))
            write_files([*_files(evaluation), report], out)
    return evaluation


def measure(predictor: Predictor, loaded: LoadedCase, index: int = 0, baselines: Baselines | None = None) -> Measured:
    """One case. Raises InputError where it cannot be measured."""
    task = predictor.package.card.task
    if isinstance(task, Segmentation):
        return _measure_labels(predictor, loaded, task)
    if isinstance(task, Restoration):
        return _measure_restored(predictor, loaded, task, index)
    prediction = predictor(loaded.image)
    scores = {score.key: prediction.scores[score.key] for score in task.scores}
    values = scores | _unlike(predictor.package, scores)
    images = {"input": loaded.image, "output": prediction.image}
    if loaded.target is not None:
        images["target"] = loaded.target
    return Measured(values | baseline_values(loaded.image, baselines), images)


def summarise(task: TaskConfig, results: Sequence[CaseResult]) -> dict[str, Any]:
    """All cases in one: plain data."""
    measured = [result for result in results if result.reason is None]
    summary: dict[str, Any] = {
        "task": task.kind,
        "cases": len(measured),
        "failed": len(results) - len(measured),
        **_over_cases(measured),
    }
    if isinstance(task, Anomaly):
        keys = _ranking(task, measured)
        summary["detection"] = detection(keys, measured)
        summary["verdict"] = verdict(keys, summary["detection"])
    elif found := selection([result.values for result in measured]):
        summary["selection"] = found
    return summary


def _unlike(package: ModelPackage, scores: Mapping[str, float]) -> dict[str, float]:
    """Two-sided scores as numbers of which higher is more anomalous; the calibration knows their middle."""
    references = package.calibration.references if package.calibration else {}
    return {
        f"{key}{UNLIKE}": references[key].unlikeness(score)
        for key, score in scores.items()
        if key in references and references[key].two_sided
    }


def _ranking(task: Anomaly, results: Sequence[CaseResult]) -> list[str]:
    """The columns by which the scores detect, the deciding one first."""
    known = {name for result in results for name in result.values}
    return [key + UNLIKE if key + UNLIKE in known else key for key in (score.key for score in task.scores)]


def _baselines(package: ModelPackage) -> Baselines | None:
    """What needs no learning, from the normal training images that the package names; None where they are not here."""
    try:
        return baselines_from(normal_images(own_data(package)))
    except MedaeError as error:
        logger.info("no fitted baselines: %s", error)
        return None


def damaged(clean: Image, preparation: Preparation, task: Restoration, seed: int) -> tuple[Image, Image]:
    """(noisy, clean) in the same units, float32: the task's corruption at the strength it has in training.

    The noise has its level in the range 0..1 that the preparation makes of the clean image; it is neither rounded nor
    cut to the range of the stored type.
    """
    assert task.corruption is not None
    return corrupted(clean, preparation, task.corruption, seed), corrupted(clean, preparation, None, seed)


def _code_report(package: ModelPackage) -> "CodeReport | None":
    from medae.backends.code_report import CodeReport  # which needs torch

    return CodeReport.of(package)


def _result(
    predictor: Predictor, case: Case, read: Callable[[], LoadedCase], index: int, baselines: Baselines | None
) -> tuple[CaseResult, Mapping[str, Image]]:
    try:
        measured = measure(predictor, read(), index, baselines)
    except InputError as error:
        return CaseResult(case.id, case.label, {}, str(error), case.patient), {}
    return CaseResult(case.id, case.label, measured.values, patient=case.patient), measured.images


def _measure_labels(predictor: Predictor, loaded: LoadedCase, task: Segmentation) -> Measured:
    target = _target(loaded, "a label image")
    prediction, doubts = answer_with_doubts(predictor, loaded.image)
    answer = prediction.image
    values: dict[str, float] = {}
    for name, overlap in (("dice", dice), ("iou", iou)):
        of_labels = {
            f"{name}_{label.name}": overlap(answer.pixels, target.pixels, number)
            for number, label in enumerate(task.labels, 1)
        }
        values |= {name: float(np.mean(list(of_labels.values())))} | (of_labels if len(of_labels) > 1 else {})
    return Measured(values | doubts, {"input": loaded.image, "target": target, "output": answer})


def _measure_restored(predictor: Predictor, loaded: LoadedCase, task: Restoration, index: int) -> Measured:
    preparation = predictor.package.card.preparation
    if task.corruption is not None:
        image, target = damaged(loaded.image, preparation, task, index)
    else:
        image, target = loaded.image, _target(loaded, "a clean image")
    prediction, doubts = answer_with_doubts(predictor, image)
    restored = prediction.image
    channels = restored.channels  # grey that was stored as colour is restored as grey
    lower, upper = _shown_range(preparation.intensity, target)
    reference, before, after = (
        np.clip(values.pixels[:channels].astype(np.float32), lower, upper)
        if preparation.intensity.kind == "window"  # what lies outside is not the model's to restore
        else values.pixels[:channels].astype(np.float32)
        for values in (target, image, restored)
    )
    values = {
        "psnr": psnr(after, reference, upper - lower),
        "ssim": ssim(after, reference, upper - lower),
        "psnr_input": psnr(before, reference, upper - lower),
        "ssim_input": ssim(before, reference, upper - lower),
    }
    return Measured(values | doubts, {"input": image, "target": target, "output": restored})


def _shown_range(intensity: Intensity, reference: Image) -> tuple[float, float]:
    """The data range of PSNR and SSIM: that of the type or window, else of the reference's own values."""
    if intensity.kind in ("full_range", "window"):
        return intensity.range_of(reference.pixels)
    lower, upper = float(reference.pixels.min()), float(reference.pixels.max())
    return lower, upper if upper > lower else lower + 1


def _target(loaded: LoadedCase, what: str) -> Image:
    if loaded.target is None:
        raise UnfitImage(f"this case has no target ({what}) to compare with; give one in the list of cases")
    return loaded.target


def _over_cases(results: Sequence[CaseResult]) -> dict[str, dict[str, float | None]]:
    """name -> mean, std, lowest and highest over the cases that have it."""
    over: dict[str, dict[str, float | None]] = {}
    for name in dict.fromkeys(name for result in results for name in result.values):
        values = np.array([result.values[name] for result in results if name in result.values])
        values = values[~np.isnan(values)]
        if values.size:
            finite = np.isfinite(values).all()  # restored without any error: an infinite PSNR
            numbers = {
                "mean": values.mean(),
                "std": values.std() if finite else math.nan,
                "lowest": values.min(),
                "highest": values.max(),
            }
            over[name] = {key: plain_number(float(number)) for key, number in numbers.items()}
    return over


def _files(evaluation: Evaluation) -> list[AnswerFile]:
    text = io.StringIO(newline="")
    names = list(dict.fromkeys(name for result in evaluation.cases for name in result.values))
    table = csv.DictWriter(text, ["id", "label", *names, "reason"], restval="")
    table.writeheader()
    for result in evaluation.cases:
        table.writerow({"id": result.id, "label": result.label, **result.values, "reason": result.reason})
    metrics = json.dumps(evaluation.metrics, indent=2, allow_nan=False) + "\n"
    return [
        AnswerFile("cases.csv", "text/csv", text.getvalue().encode()),
        AnswerFile("metrics.json", "application/json", metrics.encode()),
    ]
