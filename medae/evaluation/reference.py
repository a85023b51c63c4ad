"""Calibration on normal images that were not trained on: of an anomaly model, or of the gate of another model."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from medae.calibration import FEWEST_REFERENCES, Calibration
from medae.data import Data, LoadedCase, Split
from medae.data.seen import picture_of_labels
from medae.errors import InputError, UsageError
from medae.evaluation.reading import described, to_read
from medae.image import Image
from medae.metrics.detection import NORMAL
from medae.metrics.doubt import OF_SOFT_DICE
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.tasks import Anomaly, Segmentation
from medae.uncertainty import BY_SOFT_DICE, RepeatedPredictor

logger = logging.getLogger(__name__)

MAP_QUANTILE = 0.99
"""The scale of maps ends where the brightest normal image has so much of itself below; single voxels do not say it."""

Cases = Data | Iterable[LoadedCase] | Path | None
Watch = Callable[[str, str | None], None]
"""Called with each case's id and why it is left out, if it is."""
T = TypeVar("T")


def calibrate(
    package: ModelPackage,
    cases: Cases = None,
    *,
    split: Split = "validation",
    device: str = "auto",
    version: str | None = None,
    watch: Watch = lambda case, reason: None,
) -> ModelPackage:
    """The package with the scores of these normal images as its reference; cards and weights stay as they are.

    Of another model than an anomaly model, its gate and, where at least 100 cases have a target with something in it,
    its model of shapes; the usual of soft Dice of a segmentation becomes that of these images, too.

    cases: as for `evaluate`; those with another label than `normal` are left out, as are images that cannot be read
    or scored. None: those of its own experiment; of a gate the images that it was calibrated on, some of which the
    model may have learnt from, so that the usual of soft Dice is again what the card says. version: of the
    calibrations; None: today and the beginning of the digest of the scores.
    Raises UsageError for a model of another task without a gate, and for fewer than 100 images.
    """
    asked = _Asked(cases, split, device, version, watch)
    if isinstance(package.card.task, Anomaly):
        return _of_anomaly(package, asked)
    if package.gate is None:
        raise UsageError(
            f"this model does {package.card.task.kind} and has no gate, so there is nothing to calibrate; "
            "`medae gate` gives it one, from the images that it was trained on"
        )
    return _of_own(package, package.gate, asked) if cases is None else _of_gate(package, package.gate, asked)


class _Asked(NamedTuple):
    """What `calibrate` was called with."""

    cases: Cases
    split: Split
    device: str
    version: str | None
    watch: Watch


class _Seen(NamedTuple):
    """What an anomaly model says of one image."""

    scores: Mapping[str, float]
    brightest: float
    """Of the map."""


class _Witnessed(NamedTuple):
    """One image, and its label image where it has one, as the models inside a model see them."""

    gate: _Seen
    shape: _Seen | None


def _of_anomaly(package: ModelPackage, asked: _Asked) -> ModelPackage:
    return _calibrated(package, _looks(package, asked), asked)


def _of_own(package: ModelPackage, gate: ModelPackage, asked: _Asked) -> ModelPackage:
    """From the images and the masks that each of the models inside was calibrated on."""
    shape = package.shape
    return replace(
        package,
        gate=_of_anomaly(gate, asked),
        shape=None if shape is None else _with_shapes(shape, _looks(shape, asked), asked),
    )


def _of_gate(package: ModelPackage, gate: ModelPackage, asked: _Asked) -> ModelPackage:
    found = _each(package, asked, _Witnesses(package, gate, asked.device))
    shape, shapes = package.shape, [each.shape for each in found if each.shape is not None]
    return replace(
        package,
        gate=_calibrated(gate, [each.gate for each in found], asked),
        shape=None if shape is None else _with_shapes(shape, shapes, asked),
    )


class _Witnesses:
    """The models inside a model, and how sure it is itself, looking at one case."""

    def __init__(self, package: ModelPackage, gate: ModelPackage, device: str) -> None:
        task, shape = package.card.task, package.shape
        self._gate = Predictor(gate, device=device)
        self._shape = None if shape is None else Predictor(shape, device=device)
        self._labels = len(task.labels) if isinstance(task, Segmentation) else 0
        alone = replace(package, gate=None, shape=None)
        self._sure = RepeatedPredictor(alone, [BY_SOFT_DICE], device=device) if self._labels else None

    def __call__(self, loaded: LoadedCase) -> _Witnessed:
        """Raises InputError where one of them cannot take it: each reference is one of all."""
        gate, shape = _look(self._gate, loaded.image), None
        if self._sure is not None:
            gate = gate._replace(scores={**gate.scores, OF_SOFT_DICE: self._sure(loaded.image).scores[OF_SOFT_DICE]})
        # an answer in which nothing was found has no shape either, and is never looked at
        if self._shape is not None and loaded.target is not None and loaded.target.pixels.any():
            shape = _look(self._shape, picture_of_labels(loaded.target, self._labels))
        return _Witnessed(gate, shape)


def _looks(package: ModelPackage, asked: _Asked) -> list[_Seen]:
    """What an anomaly model says of the images of the cases."""
    predictor = Predictor(package, device=asked.device)
    return _each(package, asked, lambda loaded: _look(predictor, loaded.image))


def _each(package: ModelPackage, asked: _Asked, look: Callable[[LoadedCase], T]) -> list[T]:
    """What is seen of each normal case that can be read and looked at."""
    found: list[T] = []
    for case, read in to_read(package, asked.cases, asked.split):
        if case.label not in (None, NORMAL):
            asked.watch(case.id, f"it is labelled {case.label}, and only normal images are references")
            continue
        try:
            found.append(look(read()))
        except InputError as error:
            logger.warning("case %s is left out of the calibration: %s", case.id, error)
            asked.watch(case.id, str(error))
            continue
        asked.watch(case.id, None)
    return found


def _look(predictor: Predictor, image: Image) -> _Seen:
    task, prediction = predictor.package.card.task, predictor(image)
    assert isinstance(task, Anomaly), "only these have references"
    scores = {score.key: prediction.scores[score.key] for score in task.scores}
    return _Seen(scores, float(np.quantile(prediction.image.pixels, MAP_QUANTILE)))


def _with_shapes(shape: ModelPackage, seen: Sequence[_Seen], asked: _Asked) -> ModelPackage:
    """The model of shapes, calibrated where there are enough of them."""
    if len(seen) >= FEWEST_REFERENCES:
        return _calibrated(shape, seen, asked, what="label images")
    kept = "still has none" if shape.calibration is None else f"keeps that of version {shape.calibration.version}"
    logger.warning(
        "%d of the cases have a target with something in it, and a calibration needs %d; the model of shapes %s",
        *(len(seen), FEWEST_REFERENCES, kept),
    )
    return shape


def _calibrated(
    package: ModelPackage, seen: Sequence[_Seen], asked: _Asked, what: str = "normal images"
) -> ModelPackage:
    task = package.card.task
    assert isinstance(task, Anomaly), "only these have references"
    names = seen[0].scores if seen else [task.score_name]
    scores = {name: [each.scores[name] for each in seen] for name in names}
    calibration = Calibration.from_scores(
        scores,
        two_sided=[score.key for score in task.scores if score.two_sided],
        package_digest=package.digest,
        version=asked.version or _version(scores[task.score_name]),
        map_maximum=max((each.brightest for each in seen), default=0.0) or 1.0,
        images=f"{len(seen)} {what}: {described(asked.cases, asked.split)}",
    )
    return package.calibrated(calibration)


def _version(scores: list[float]) -> str:
    digest = hashlib.sha256(np.sort(np.array(scores)).tobytes()).hexdigest()[:8]
    return f"{datetime.now(UTC):%Y-%m-%d}.{digest}"
