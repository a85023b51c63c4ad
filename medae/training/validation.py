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
from medae.data import Case
from medae.errors import InputError, UsageError
from medae.evaluation import CaseResult, Measured, calibrate, evaluate, headline, measure, summarise
from medae.evaluation.reading import normal_images
from medae.experiment import Experiment
from medae.fitting import fit_scores
from medae.metrics.detection import NORMAL
from medae.package import Card, ModelPackage
from medae.predictor import Predictor
from medae.scores.baselines import STATISTICS
from medae.tasks import Anomaly
from medae.training.material import labels_of
from medae.training.stopping import Stop

logger = logging.getLogger(__name__)


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
    predictor = Predictor(package, backend=TorchBackend.around(network, package, str(device)))
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
    # there are only normal cases to detect nothing in
    found = summarise(package.card.task, results)
    summary = {name: value for name, value in found.items() if name not in ("detection", "verdict", *STATISTICS)}
    summary |= code.summary()
    return Validated(package, summary, float(np.mean(values)) if values else float("nan"), shown)


def card_of(experiment: Experiment, metrics: dict[str, Any] | None = None, *, trained: bool = False) -> Card:
    """The card of a package that this experiment makes. trained: with the scores that are fitted at the end."""
    channels = experiment.preparation.channels
    task = experiment.task
    if isinstance(task, Anomaly):
        task = task.at_size(min(experiment.training.patch))
        task = task if trained else task.while_training
    return Card(
        name=experiment.name,
        version=experiment.version,
        task=task,
        network=experiment.network.model_dump(mode="json"),
        channels_in=channels,
        channels_out=task.channels_out(channels),
        receptive_field=task.seen(experiment.network.receptive_field()),
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


def finished(package: ModelPackage, experiment: Experiment) -> ModelPackage:
    """The best package with all its scores: fitted on the normal training images, calibrated on those of validation.

    The same images chose the best weights, so the reference lies a little low: calibrate again on one's own images.
    Other tasks' packages come back as they are.
    """
    if not isinstance(experiment.task, Anomaly):
        return package
    card = card_of(experiment, package.card.metrics, trained=True).model_copy(update={"prior": package.card.prior})
    whole = fit_scores(
        ModelPackage.seal(card, package.weights, package.prior),
        normal_images(experiment.data),
        device=experiment.training.device,
        seed=experiment.training.seed,
    )
    try:
        whole = calibrate(whole, experiment.data, device=experiment.training.device, version="1")
    except UsageError as error:
        logger.warning("not calibrated, so that there are no percentiles and p-values: %s", error)
    return _tested(whole, experiment)


def _tested(package: ModelPackage, experiment: Experiment) -> ModelPackage:
    """With how well it tells the abnormal test cases, where there are some, and what does as well without learning."""
    kinds = {case.label for case in experiment.data.cases("test")}
    if not kinds - {None, NORMAL} or NORMAL not in kinds:
        return package
    found = evaluate(Predictor(package, device=experiment.training.device), experiment.data).metrics
    scores = {score.key for score in package.card.task.scores}  # type: ignore[union-attr]
    test = {
        "protocol": "test split, whole images; nothing was chosen on it",
        "detection": {
            kind: {name: value for name, value in group.items() if not isinstance(value, dict) or name in scores}
            for kind, group in found["detection"].items()
        },
        "beware": found["verdict"],
    }
    card = package.card.model_copy(update={"metrics": package.card.metrics | {"test": test}})
    sealed = ModelPackage.seal(card, package.weights, package.prior)
    if package.calibration is None:
        return sealed
    return sealed.calibrated(package.calibration.model_copy(update={"package_digest": sealed.digest}))


def _data_in_words(experiment: Experiment) -> str:
    data = experiment.data
    counts = {split: len(data.cases(split)) for split in ("train", "validation", "test")}
    listed = ", ".join(f"{count} {split}" for split, count in counts.items())
    name = f" {data.name}" if data.kind in ("sample", "collection") else ""
    return f"{data.kind}{name}: {listed} cases"
