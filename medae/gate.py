"""The gate: how far an input is from what a model knows, said beside every answer of that model.

Three witnesses, each of which can be absent: checks of plain facts, an anomaly model of the images that the model was
made from and, for segmentation, an anomaly model of their masks, which looks at the shape of the answer (Liu 2019,
https://arxiv.org/abs/1903.10645). None of them changes the answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from medae.checks import facts_of
from medae.data.seen import picture_of_labels
from medae.errors import InputError
from medae.image import Image
from medae.metrics.doubt import COMBINED, OF_GATE, OF_SOFT_DICE, Doubt, Usual
from medae.package import ModelPackage
from medae.tasks import Anomaly, Segmentation
from medae.verdict import GateLimits, Reason, Verdict


class Scored(Protocol):
    """What the gate needs of a Prediction."""

    @property
    def percentile(self) -> float | None: ...

    @property
    def p_value(self) -> float | None: ...

    @property
    def scores(self) -> Mapping[str, float]: ...


Look = Callable[[Image], Scored]
"""A Predictor, or what stands for one."""


@dataclass(frozen=True)
class Seen:
    """What the gate saw of one input; the caller's limits turn it into a verdict."""

    reasons: tuple[Reason, ...]
    scored: Scored | None

    def score(self, gate: ModelPackage) -> float | None:
        """The one that the gate decides by; None where it could not take the image."""
        assert isinstance(gate.card.task, Anomaly), "a gate is an anomaly model"
        return None if self.scored is None else self.scored.scores[gate.card.task.score_name]


@dataclass(frozen=True, eq=False)
class Gate:
    """The gate of one package, ready to look."""

    package: ModelPackage
    """That carries it; its weights are not needed."""
    at_image: Look | None
    at_shape: Look | None
    doubt: Doubt | None = None
    """As `doubt_of` says; it needs the soft Dice of the answer."""

    def look(self, image: Image) -> Seen:
        """At an input, before its answer; of several volumes, the strangest counts.

        Never raises for an image: what cannot be looked at is no `ok`.
        """
        looks = [self._look(image.volume(number)) for number in range(image.volumes)]
        scored = [seen.scored for seen in looks if seen.scored is not None]
        return Seen(
            tuple(dict.fromkeys(reason for seen in looks for reason in seen.reasons)),
            min(scored, key=_probability) if scored else None,
        )

    def judge(self, seen: Seen, answer: Image, limits: GateLimits, *, shape: bool = True) -> Verdict:
        """What was seen, and the answer to it, at the caller's limits. shape: False looks at the input alone."""
        found = [*seen.reasons, _unlike(seen.scored, "the image", limits)]
        if shape:
            found += [self._shape(answer.volume(number), limits) for number in range(answer.volumes)]
        percentile = None if seen.scored is None else seen.scored.percentile
        return Verdict.of(dict.fromkeys(reason for reason in found if reason is not None), percentile)

    def doubts(self, seen: Seen, scores: Mapping[str, float]) -> dict[str, float]:
        """The score of the gate, where it could take the image, and the doubt of gate and soft Dice together, where the
        package knows the usual of both. scores: of the answer."""
        assert self.package.gate is not None, "this is it"
        score = seen.score(self.package.gate)
        doubts = {} if score is None else {OF_GATE: score}
        return doubts if self.doubt is None else doubts | {COMBINED: self.doubt(score, scores[OF_SOFT_DICE])}

    def _look(self, image: Image) -> Seen:
        gate = self.package.gate
        if gate is None or self.at_image is None:
            return Seen((), None)
        try:
            checks = gate.card.checks
            prepared = gate.card.preparation.apply(image)
            reasons = [] if checks is None else checks(facts_of(prepared, checks.dims))
            return Seen(tuple(reasons), self.at_image(image))
        except InputError as error:
            return Seen((Reason("reject", f"the gate cannot take this image: {error}"),), None)

    def _shape(self, answer: Image, limits: GateLimits) -> Reason | None:
        task = self.package.card.task
        if self.at_shape is None or not isinstance(task, Segmentation):
            return None
        if not answer.pixels.any():
            return Reason("review", "nothing was found, so there is no shape to judge")
        try:
            scored = self.at_shape(picture_of_labels(answer, len(task.labels)))
        except InputError as error:
            return Reason("review", f"the shape of the segmentation cannot be judged: {error}")
        return _unlike(scored, "the shape of the segmentation", limits)


def doubt_of(package: ModelPackage) -> Doubt | None:
    """What says how uncertain an answer is by gate and soft Dice together; None where the package does not know the
    usual of both. That of soft Dice is of the gate's reference images or, where it was not measured on them, of the
    images that the card names."""
    calibration = None if package.gate is None else package.gate.calibration
    if calibration is None:
        return None
    gate, measured = Usual.of(calibration.deciding.values), calibration.references.get(OF_SOFT_DICE)
    soft_dice = package.card.soft_dice if measured is None else Usual.of(measured.values)
    return None if gate is None or soft_dice is None else Doubt(gate, soft_dice)


def _probability(scored: Scored) -> float:
    return 1.0 if scored.p_value is None else scored.p_value


def _unlike(scored: Scored | None, what: str, limits: GateLimits) -> Reason | None:
    if scored is None or scored.p_value is None:
        return None
    return limits.reason(scored.p_value, what)
