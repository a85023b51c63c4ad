"""Calibration of an anomaly model on normal images that it was not trained on."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from medae.calibration import Calibration
from medae.data import Data, LoadedCase, Split
from medae.errors import InputError, UsageError
from medae.evaluation.reading import described, to_read
from medae.metrics.detection import NORMAL
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.tasks import Anomaly

logger = logging.getLogger(__name__)

MAP_QUANTILE = 0.99
"""The scale of maps ends where the brightest normal image has so much of itself below; single voxels do not say it."""


def calibrate(
    package: ModelPackage,
    cases: Data | Iterable[LoadedCase] | Path | None = None,
    *,
    split: Split = "validation",
    device: str = "auto",
    version: str | None = None,
    watch: Callable[[str, str | None], None] = lambda case, reason: None,
) -> ModelPackage:
    """The package with the scores of these normal images as its reference; card and weights stay as they are.

    cases: as for `evaluate`; those with another label than `normal` are left out, as are images that cannot be read
    or scored. version: of the calibration; None: today and the beginning of the digest of its scores. watch: called
    with each case's id and why it is left out, if it is.
    Raises UsageError for a model of another task, and for fewer than 100 images.
    """
    task = package.card.task
    if not isinstance(task, Anomaly):
        raise UsageError(f"calibration is for anomaly models; this one does {task.kind}")
    predictor = Predictor(package, device=device)
    rows: list[dict[str, float]] = []
    highest = 0.0
    for case, read in to_read(package, cases, split):
        if case.label not in (None, NORMAL):
            watch(case.id, f"it is labelled {case.label}, and only normal images are references")
            continue
        try:
            prediction = predictor(read().image)
        except InputError as error:
            logger.warning("case %s is left out of the calibration: %s", case.id, error)
            watch(case.id, str(error))
            continue
        rows.append(prediction.scores)
        highest = max(highest, float(np.quantile(prediction.image.pixels, MAP_QUANTILE)))
        watch(case.id, None)
    scores = {score.key: [row[score.key] for row in rows] for score in task.scores}
    calibration = Calibration.from_scores(
        scores,
        two_sided=[score.key for score in task.scores if score.two_sided],
        package_digest=package.digest,
        version=version or _version(scores[task.score_name]),
        map_maximum=highest or 1.0,
        images=f"{len(rows)} normal images: {described(cases, split)}",
    )
    return package.calibrated(calibration)


def _version(scores: list[float]) -> str:
    digest = hashlib.sha256(np.sort(np.array(scores)).tobytes()).hexdigest()[:8]
    return f"{datetime.now(UTC):%Y-%m-%d}.{digest}"
