"""Evaluation: a model on cases whose answers are known, through the Predictor, into a table and metrics.json."""

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from medae.data import Case, Data, DataConfig, LoadedCase, Split
from medae.data.cases import CaseList, read_cases, with_labels
from medae.errors import InputError, UnfitImage, UsageError
from medae.image import Image
from medae.io.answer import AnswerFile, write_files
from medae.metrics.detection import NORMAL, TRIVIAL, auroc, average_precision, trivial_statistics
from medae.metrics.fidelity import psnr, ssim
from medae.metrics.overlap import dice, iou
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.preparation import Intensity, Preparation, stretched
from medae.record import recording
from medae.report import Gallery, report_file
from medae.tasks import Anomaly, Restoration, Segmentation, TaskConfig

if TYPE_CHECKING:
    from medae.backends.code_report import CodeReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseResult:
    """One row of the table."""

    id: str
    label: str | None
    values: Mapping[str, float]
    reason: str | None = None
    """Why there are no values."""


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
    """dice, psnr, or (lower is better) the score of normal images."""
    if isinstance(task, Anomaly):
        return Headline(task.score_name, False)
    return Headline("dice" if isinstance(task, Segmentation) else "psnr", True)


def evaluate(
    package: ModelPackage | Predictor,
    cases: Data | Iterable[LoadedCase] | Path | None = None,
    out: Path | None = None,
    *,
    split: Split = "test",
    watch: Callable[[CaseResult], None] = lambda result: None,
) -> Evaluation:
    """Measure a model.

    cases: data, of which `split` is taken; loaded cases; the path of a CSV list (its test split, or all where it has
    no splits); None: the data of the package's own experiment. out: where cases.csv, metrics.json, report.html and
    run.json go. watch: called after each case.

    segmentation: Dice and IoU of each label and their mean. restoration: PSNR and SSIM of the output and of the input,
    against the target or, where the task has a corruption, of the clean image after that corruption, seeded by the
    case's place in the list. anomaly: AUROC and average precision of `label` not "normal", overall and for each label,
    for the score and for trivial statistics. A variational autoencoder: what its code holds (`posterior`), with a
    warning where it has collapsed.

    A case that cannot be measured is a row with its reason, and the others go on.
    Raises UsageError where there are no cases, SettingsError for a list that does not hold, OutputError.
    """
    predictor = package if isinstance(package, Predictor) else Predictor(package)
    task = predictor.package.card.task
    with recording(out, "evaluate", digests={"package": predictor.package.digest}) as run:
        results: list[CaseResult] = []
        gallery, code = Gallery(predictor.package), _code_report(predictor.package)
        for index, (case, read) in enumerate(_to_read(predictor.package, cases, split)):
            result, images = _result(predictor, case, read, index)
            results.append(result)
            if images and code is not None:
                code.see(images["input"])
            if out is not None and images:
                gallery.see(result, images)
            if results[-1].reason is None:
                run.done(case.id)
            else:
                run.failed(case.id, str(results[-1].reason))
            watch(results[-1])
        if not results:
            raise UsageError(f"there are no cases to evaluate on (split {split}); name others")
        evaluation = Evaluation(tuple(results), summarise(task, results) | (code.summary() if code else {}))
        if out is not None:
            report = report_file(
                predictor.package, results, evaluation.metrics, gallery, cases=_described(cases, split)
            )
            write_files([*_files(evaluation), report], out)
    return evaluation


def measure(predictor: Predictor, loaded: LoadedCase, index: int = 0) -> Measured:
    """One case. Raises InputError where it cannot be measured."""
    task = predictor.package.card.task
    if isinstance(task, Segmentation):
        return _measure_labels(predictor, loaded, task)
    if isinstance(task, Restoration):
        return _measure_restored(predictor, loaded, task, index)
    prediction = predictor(loaded.image)
    values = {task.score_name: prediction.scores[task.score_name], **trivial_statistics(loaded.image.pixels)}
    return Measured(values, {"input": loaded.image, "output": prediction.image})


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
        summary["detection"] = _detection(task.score_name, measured)
    return summary


def damaged(clean: Image, preparation: Preparation, task: Restoration, seed: int) -> tuple[Image, Image]:
    """(noisy, clean) in the same units, float32: the task's corruption at the strength it has in training.

    The noise has its level in the range 0..1 that the preparation makes of the clean image; it is neither rounded nor
    cut to the range of the stored type.
    """
    assert task.corruption is not None
    lower, scale = preparation.range_of(clean.pixels)
    x = stretched(clean.pixels, lower, scale)
    noisy = task.corruption.add_to(x, seed)
    if preparation.intensity.kind == "full_range":  # real numbers in 0..1 are what it takes as they are
        return clean.with_pixels(noisy), clean.with_pixels(x)
    in_units = [(values * np.float32(scale) + np.float32(lower)).astype(np.float32) for values in (noisy, x)]
    return clean.with_pixels(in_units[0]), clean.with_pixels(in_units[1])


def _to_read(
    package: ModelPackage, cases: Data | Iterable[LoadedCase] | Path | None, split: Split
) -> Iterator[tuple[Case, Callable[[], LoadedCase]]]:
    """Each case and how to read it, so that one that cannot be read costs only itself."""
    task = package.card.task
    labels = len(task.labels) if isinstance(task, Segmentation) else None
    data: Data
    if isinstance(cases, Path):
        data = CaseList(path=cases)
        listed = [case for case in read_cases(cases) if case.split in (split, None)]
    elif cases is None or isinstance(cases, Data):
        data = _own_data(package) if cases is None else cases
        listed = data.cases(split)
    else:
        yield from ((loaded.case, partial(with_labels, loaded, labels)) for loaded in cases)
        return
    yield from ((case, partial(data.read, case, labels=labels)) for case in listed)


def _own_data(package: ModelPackage) -> Data:
    settings = package.card.experiment.get("data")
    if settings is None:
        raise UsageError("this package does not say which data it was made from; name the cases to evaluate on")
    data: Data = TypeAdapter[Any](DataConfig).validate_python(settings)
    return data


def _code_report(package: ModelPackage) -> "CodeReport | None":
    from medae.backends.code_report import CodeReport  # which needs torch

    return CodeReport.of(package)


def _described(cases: Data | Iterable[LoadedCase] | Path | None, split: Split) -> str:
    """Where the cases came from, for the report."""
    if cases is None or isinstance(cases, Data):
        return f"{split} cases of {'its own experiment' if cases is None else 'the given data'}"
    return f"cases of {cases.name}" if isinstance(cases, Path) else "cases given by a program"


def _result(
    predictor: Predictor, case: Case, read: Callable[[], LoadedCase], index: int
) -> tuple[CaseResult, Mapping[str, Image]]:
    try:
        measured = measure(predictor, read(), index)
    except InputError as error:
        return CaseResult(case.id, case.label, {}, str(error)), {}
    return CaseResult(case.id, case.label, measured.values), measured.images


def _measure_labels(predictor: Predictor, loaded: LoadedCase, task: Segmentation) -> Measured:
    target = _target(loaded, "a label image")
    answer = predictor(loaded.image).image
    values: dict[str, float] = {}
    for name, overlap in (("dice", dice), ("iou", iou)):
        of_labels = {
            f"{name}_{label.name}": overlap(answer.pixels, target.pixels, number)
            for number, label in enumerate(task.labels, 1)
        }
        values |= {name: float(np.mean(list(of_labels.values())))} | (of_labels if len(of_labels) > 1 else {})
    return Measured(values, {"input": loaded.image, "target": target, "output": answer})


def _measure_restored(predictor: Predictor, loaded: LoadedCase, task: Restoration, index: int) -> Measured:
    preparation = predictor.package.card.preparation
    if task.corruption is not None:
        image, target = damaged(loaded.image, preparation, task, index)
    else:
        image, target = loaded.image, _target(loaded, "a clean image")
    restored = predictor(image).image
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
    return Measured(values, {"input": image, "target": target, "output": restored})


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
            over[name] = {key: _plain(float(number)) for key, number in numbers.items()}
    return over


def _detection(score: str, results: Sequence[CaseResult]) -> dict[str, Any]:
    """How well the score, and each trivial statistic, tells labelled abnormal cases from normal ones.

    `auroc` is for "higher is abnormal". For a trivial statistic nobody knows the sign beforehand, so `auroc_reversed`
    says the same for "lower is abnormal".
    """
    labelled = [result for result in results if result.label is not None]
    kinds = sorted({str(result.label) for result in labelled} - {NORMAL})
    groups = {"all": labelled} | {
        kind: [result for result in labelled if result.label in (kind, NORMAL)] for kind in kinds
    }
    found: dict[str, Any] = {}
    for group, members in groups.items():
        abnormal = [result.label != NORMAL for result in members]
        found[group] = {"normal": abnormal.count(False), "abnormal": abnormal.count(True)}
        for name in (score, *TRIVIAL):
            values = np.array([result.values[name] for result in members])
            found[group][name] = _detected_by(values, abnormal, both_signs=name in TRIVIAL)
    overall = found["all"][score]["auroc"]
    if overall is not None and overall < 0.5:
        logger.warning("the score ranks abnormal images below normal ones (AUROC %.3f): it must not be used", overall)
    return found


def _detected_by(values: NDArray[np.float64], abnormal: Sequence[bool], *, both_signs: bool) -> dict[str, Any]:
    detected = {"auroc": auroc(values, abnormal), "average_precision": average_precision(values, abnormal)}
    if both_signs:
        detected["auroc_reversed"] = auroc(-values, abnormal)
        detected["average_precision_reversed"] = average_precision(-values, abnormal)
    return {name: _plain(value) for name, value in detected.items()}


def _plain(value: float) -> float | None:
    """JSON has no numbers that are not finite."""
    return value if math.isfinite(value) else None


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
