"""Validation: whole images through the Predictor, as they are in use; the best weights become the package."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from medae.backends.code_report import CodeReport
from medae.backends.torch import TorchBackend
from medae.calibration import FEWEST_REFERENCES, Calibration
from medae.data import Case
from medae.errors import InputError
from medae.evaluation import CaseResult, Measured, headline, measure, summarise
from medae.experiment import Experiment
from medae.metrics.detection import TRIVIAL
from medae.package import Card, ModelPackage
from medae.predictor import Predictor
from medae.tasks import Anomaly
from medae.training.material import labels_of
from medae.training.stopping import Stop

logger = logging.getLogger(__name__)

MAP_QUANTILE = 0.99
"""The scale of maps ends where the brightest normal image has so much of itself below; single voxels do not say it."""


@dataclass(frozen=True)
class Validated:
    """What one validation found."""

    package: ModelPackage
    """These weights."""
    summary: dict[str, Any]
    value: float
    """The headline metric; not a number where no case gave one."""
    shown: list[Measured]
    """The first cases, for pictures."""

    def better_than(self, best: float | None, experiment: Experiment) -> bool:
        if np.isnan(self.value):
            return False
        higher = headline(experiment.task).higher_is_better
        return best is None or (self.value > best if higher else self.value < best)


def validate(
    network: nn.Module, experiment: Experiment, cases: Sequence[Case], device: torch.device, stop: Stop
) -> Validated | None:
    """Measure the network on the cases; None where the training was asked to stop meanwhile."""
    package = ModelPackage.seal(card_of(experiment), weights_of(network))
    predictor = Predictor(package, backend=TorchBackend(network, str(device)))
    results: list[CaseResult] = []
    shown: list[Measured] = []
    code = CodeReport(network, package.card)
    for index, case in enumerate(cases):
        if stop.asked:
            return None
        try:
            measured = measure(predictor, experiment.data.read(case, labels=labels_of(experiment)), index)
            code.see(measured.images["input"])
        except InputError as error:
            logger.warning("case %s (validation) is left out: %s", case.id, error)
            results.append(CaseResult(case.id, case.label, {}, str(error)))
            continue
        results.append(CaseResult(case.id, case.label, measured.values))
        if len(shown) < experiment.training.pictures:
            shown.append(measured)
    name = headline(experiment.task).name
    values = [result.values[name] for result in results if name in result.values]
    # there are only normal cases to detect nothing in, and what the images are does not change
    summary = summarise(experiment.task, results)
    summary = {name: value for name, value in summary.items() if name not in ("detection", *TRIVIAL)} | code.summary()
    return Validated(package, summary, float(np.mean(values)) if values else float("nan"), shown)


def card_of(experiment: Experiment, metrics: dict[str, Any] | None = None) -> Card:
    """The card of a package that this experiment makes."""
    channels = experiment.preparation.channels
    return Card(
        name=experiment.name,
        version=experiment.version,
        task=experiment.task,
        network=experiment.network.model_dump(mode="json"),
        channels_in=channels,
        channels_out=experiment.task.channels_out(channels),
        receptive_field=experiment.network.receptive_field(),
        preparation=experiment.preparation,
        training_data=_data_in_words(experiment),
        licence=experiment.data.licence or "",
        metrics=metrics or {},
        objectives=tuple(objective.described for objective in experiment.objectives),
        intended_use=experiment.intended_use,
        limits=experiment.limits,
        experiment=experiment.resolved,
    )


def with_metrics(validated: Validated, experiment: Experiment, step: int) -> ModelPackage:
    """The package with what its validation found, and how."""
    protocol = (
        f"validation split, whole images, after {step} training steps; "
        f"chosen among the validations of one training by {headline(experiment.task).name}"
    )
    metrics = {"validation": {"protocol": protocol, **validated.summary}}
    return ModelPackage.seal(card_of(experiment, metrics), validated.package.weights)


def weights_of(network: nn.Module) -> dict[str, Any]:
    """Copies: the network goes on changing."""
    return {name: value.detach().cpu().numpy().copy() for name, value in network.state_dict().items()}


def calibrated(package: ModelPackage, experiment: Experiment, cases: Sequence[Case]) -> ModelPackage:
    """An anomaly package with the scores of the normal validation images as its reference; others as they are.

    The same images chose the best weights, so the reference lies a little low: calibrate again on one's own images.
    """
    if not isinstance(experiment.task, Anomaly):
        return package
    predictor = Predictor(package, device=experiment.training.device)
    scores: list[float] = []
    highest = 0.0
    for case in cases:
        try:
            prediction = predictor(experiment.data.read(case).image)
        except InputError:
            continue  # named at every validation
        scores.append(prediction.scores[experiment.task.score_name])
        highest = max(highest, float(np.quantile(prediction.image.pixels, MAP_QUANTILE)))
    if len(scores) < FEWEST_REFERENCES:
        logger.warning(
            "not calibrated: %d normal validation images, %d are needed for percentiles and p-values",
            len(scores),
            FEWEST_REFERENCES,
        )
        return package
    return package.calibrated(
        Calibration.from_scores(
            {experiment.task.score_name: scores}, package_digest=package.digest, map_maximum=highest or 1.0
        )
    )


def _data_in_words(experiment: Experiment) -> str:
    data = experiment.data
    counts = {split: len(data.cases(split)) for split in ("train", "validation", "test")}
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    name = f" {data.name}" if data.kind == "sample" else ""
    return f"{data.kind}{name}: {listed} cases"
