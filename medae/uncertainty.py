"""Uncertainty: how much a model disagrees with itself, or with others, about one image.

The same image is answered several times, with what should not matter changed: mirrored (test-time augmentation, Wang
2019, doi:10.1016/j.neucom.2019.01.103), with other units dropped (Monte-Carlo dropout, Gal 2016,
https://arxiv.org/abs/1506.02142; Bayesian SegNet, Kendall 2015, https://arxiv.org/abs/1511.02680), by other models
(deep ensemble, Lakshminarayanan 2017, https://arxiv.org/abs/1612.01474). For segmentation the disagreement is 1 minus
the mean Dice over pairs of answers, the best simple score of the failure-detection benchmark of Zenk 2025
(https://arxiv.org/abs/2406.03323); for restoration it is the standard deviation over the answers (root mean square over
voxels, in the image's units).

For segmentation one answer says something, too: 1 minus its Dice with its own probabilities (soft Dice confidence,
Borges 2024, https://arxiv.org/abs/2402.10665), which costs nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medae.backends import open_backend
from medae.errors import UsageError
from medae.image import Image
from medae.metrics.selection import UNCERTAINTY
from medae.package import ModelPackage
from medae.predictor import USUAL, Prediction, Predictor, Progress
from medae.tasks import Anomaly, Segmentation
from medae.verdict import GateLimits

BY_SOFT_DICE = "soft_dice"
WAYS = (BY_SOFT_DICE, "flips", "dropout", "ensemble")

DRAWS = 8
"""Answers with dropout."""
FLIPS = ((-1,), (-2,), (-2, -1))
"""Axes of (C, S, R, W) that are mirrored: columns, rows, both; slices too would change what lies above."""


def score_name(way: str) -> str:
    """Of a disagreement among the scores of an answer."""
    return f"{UNCERTAINTY}{way}"


class RepeatedPredictor(Predictor):
    """A Predictor whose scores say how uncertain it is; its answer is the same as without.

    Each way costs its number of answers: soft_dice none, flips 3, dropout DRAWS, ensemble one for each member.
    """

    def __init__(
        self,
        package: ModelPackage,
        ways: Sequence[str],
        *,
        members: Sequence[ModelPackage] = (),
        device: str = "auto",
        limits: GateLimits = USUAL,
    ) -> None:
        """members: other models of the same task, for `ensemble`. Raises UsageError for what does not fit."""
        _require_fit(package, ways, members)
        super().__init__(package, device=device, soft_dice=BY_SOFT_DICE in ways, limits=limits)
        self._ways = tuple(dict.fromkeys(ways))
        self._members = [Predictor(member, device=device, gated=False) for member in members]
        self._drawn = []
        if "dropout" in self._ways:
            backends = (open_backend(package, device, dropout_seed=seed) for seed in range(DRAWS))
            self._drawn = [Predictor(package, backend=backend, gated=False) for backend in backends]

    def __call__(
        self,
        image: Image,
        *,
        threshold: float | None = None,
        probabilities: bool = False,
        progress: Progress | None = None,
        gate: GateLimits | None = None,
    ) -> Prediction:
        prediction = super().__call__(
            image, threshold=threshold, probabilities=probabilities, progress=progress, gate=gate
        )
        first = prediction.image.pixels
        segments = isinstance(self.package.card.task, Segmentation)
        scores: dict[str, float] = {}
        for way in (way for way in self._ways if way != BY_SOFT_DICE):
            others = list(self._again(way, image, threshold))
            answers = others if way == "dropout" else [first, *others]
            scores[score_name(way)] = disagreement(answers) if segments else deviation(answers)
        return replace(prediction, scores=prediction.scores | scores)

    def _again(self, way: str, image: Image, threshold: float | None) -> Iterator[NDArray[Any]]:
        """The other answers, in the place of the first."""
        if way == "flips":
            for axes in FLIPS:
                mirrored = image.with_pixels(np.flip(image.pixels, axes))
                yield np.flip(self._answer(mirrored, threshold, False, None).image.pixels, axes)
        else:
            for predictor in self._drawn if way == "dropout" else self._members:
                yield predictor(image, threshold=threshold).image.pixels


def open_predictor(
    package: ModelPackage,
    ways: Sequence[str] = (),
    *,
    members: Sequence[ModelPackage] = (),
    device: str = "auto",
    limits: GateLimits = USUAL,
) -> Predictor:
    """A Predictor that says its uncertainty in the ways asked for. Raises UsageError for what does not fit."""
    if not ways and not members:
        return Predictor(package, device=device, limits=limits)
    return RepeatedPredictor(package, ways, members=members, device=device, limits=limits)


def disagreement(answers: Sequence[NDArray[Any]]) -> float:
    """1 - mean Dice over pairs of label images of one shape, over the labels that either of a pair has; 0..1.

    Two empty answers agree. Raises ValueError for fewer than two.
    """
    pairs = list(combinations(answers, 2))
    if not pairs:
        raise ValueError("one answer cannot disagree")
    return 1 - float(np.mean([_dice(one, other) for one, other in pairs]))


def deviation(answers: Sequence[NDArray[Any]]) -> float:
    """Root mean square over voxels of the standard deviation over images of one shape."""
    mean = np.zeros(answers[0].shape, np.float64)
    square = np.zeros_like(mean)
    for answer in answers:  # one after the other: volumes are large
        mean += answer / len(answers)
    for answer in answers:
        square += np.square(answer - mean) / len(answers)
    return float(np.sqrt(square.mean()))


def _dice(one: NDArray[Any], other: NDArray[Any]) -> float:
    count = int(max(one.max(), other.max())) + 1
    both = np.bincount(one[one == other].ravel(), minlength=count)[1:]
    sizes = np.sum([np.bincount(labels.ravel(), minlength=count)[1:] for labels in (one, other)], axis=0)
    there = sizes > 0
    return float(np.mean(2 * both[there] / sizes[there])) if there.any() else 1.0


def _require_fit(package: ModelPackage, ways: Sequence[str], members: Sequence[ModelPackage]) -> None:
    task = package.card.task
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        raise UsageError(f"uncertainty by {unknown[0]!r} is not known; by {', '.join(WAYS)}")
    if isinstance(task, Anomaly):
        raise UsageError("an anomaly score says itself how unusual an image is; uncertainty is for segment and restore")
    if BY_SOFT_DICE in ways and not isinstance(task, Segmentation):
        raise UsageError(f"{BY_SOFT_DICE} is of labels and their probabilities; this model does {task.kind}")
    if ("ensemble" in ways) != bool(members):
        raise UsageError("an ensemble needs other models, and other models an ensemble: give both or none")
    for member in members:
        if member.card.task.kind != task.kind or _labels(member) != _labels(package):
            raise UsageError(f"{member.card.name} answers another question than {package.card.name}: no ensemble")


def _labels(package: ModelPackage) -> list[str]:
    task = package.card.task
    return [label.name for label in task.labels] if isinstance(task, Segmentation) else []
