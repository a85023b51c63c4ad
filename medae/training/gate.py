"""A gate for a trained model: a small VAE on the images it was made from, one on its masks, and their plain facts."""

import logging
from collections.abc import Iterator
from pathlib import Path

from medae import scores
from medae.checks import Facts, InputChecks, facts_of
from medae.data.seen import Seen
from medae.errors import InputError, SettingsError
from medae.experiment import Experiment, GateSettings
from medae.metrics.doubt import OF_SOFT_DICE, Usual
from medae.networks import VAESettings
from medae.objectives import KL, MSE
from medae.package import GATE, SHAPE, ModelPackage
from medae.preparation import Preparation
from medae.settings import validate_settings
from medae.tasks import Anomaly, Restoration, Segmentation
from medae.training.loop import train
from medae.training.state import LAST, PACKAGE
from medae.uncertainty import BY_SOFT_DICE, RepeatedPredictor

logger = logging.getLogger(__name__)

MOST_ANSWERS = 100
"""So many validation images say how sure a model usually is."""

SCORE = "gate"
SCORES = (
    scores.Appearance(name=SCORE, by="neighbours", count=1, members=("residual", "kl")),
    scores.Residual(name="residual", two_sided=True),
    scores.KL(name="kl", two_sided=True),
)
"""How the image looks, what the VAE cannot reproduce or reproduces too well, and what its code says, in one distance to
the nearest image: a model may know several kinds. Chosen on damages that are none of those of `benchmarks.gate`."""


def with_gate(package: ModelPackage, experiment: Experiment, out: Path, *, progress: bool | None) -> ModelPackage:
    """The package with the gate that its experiment asks for; as it is, where it asks for none or has it already.

    It becomes out/package. The trainings lie under out/gate and out/shape, and go on where they were interrupted.
    Raises as `train`.
    """
    settings = experiment.gate
    if settings is None or package.gate is not None:
        return package
    gated = _gated(package, experiment, settings, out, progress)
    gated.save(out / PACKAGE)
    return gated


def give_gate(package: ModelPackage, experiment: Experiment, settings: GateSettings, out: Path) -> ModelPackage:
    """The package with a new gate, made from the images of the experiment that made it; it becomes out/package.

    Raises SettingsError for an anomaly model, and as `train`.
    """
    asked = validate_settings(experiment.resolved | {"gate": settings.model_dump()}, Experiment, "gate")
    gated = _gated(package, asked, settings, out, progress=True)
    gated.save(out / PACKAGE)
    return gated


def _gated(
    package: ModelPackage, experiment: Experiment, settings: GateSettings, out: Path, progress: bool | None
) -> ModelPackage:
    gate = _trained(gate_experiment(experiment, settings), out / GATE, progress)
    shape = None
    if isinstance(experiment.task, Segmentation):
        if settings.shape:
            shape = _trained(shape_experiment(experiment, settings, experiment.task), out / SHAPE, progress)
        package = package.retold(soft_dice=_usual_soft_dice(package, experiment))
    return package.gated(gate, shape)


def _usual_soft_dice(package: ModelPackage, experiment: Experiment) -> Usual | None:
    """Over the model's validation images, from which neither it nor its gate has learnt; None for too few."""
    predictor = RepeatedPredictor(package, [BY_SOFT_DICE], device=experiment.training.device)
    found: list[float] = []
    for case in experiment.data.cases("validation")[:MOST_ANSWERS]:
        try:
            found.append(predictor(experiment.data.read(case).image).scores[OF_SOFT_DICE])
        except InputError as error:
            logger.warning("case %s (validation) is left out of the usual soft Dice: %s", case.id, error)
    return Usual.of(found)


def gate_experiment(model: Experiment, settings: GateSettings) -> Experiment:
    """How the gate of a model is trained: on its images at its grid and range."""
    corruption = model.task.corruption if isinstance(model.task, Restoration) else None
    data = _seen(model, settings, corruption=corruption, preparation=model.preparation)
    return _experiment(model, settings, "gate", data, model.preparation)


def shape_experiment(model: Experiment, settings: GateSettings, task: Segmentation) -> Experiment:
    """How the model of shapes is trained: on the masks as grey levels, at the model's grid."""
    grid = {"orientation": model.preparation.orientation, "spacing_mm": model.preparation.spacing_mm}
    data = _seen(model, settings, masks=len(task.labels))
    return _experiment(model, settings, "shape", data, Preparation.model_validate({"channels": 1, **grid}))


def _seen(model: Experiment, settings: GateSettings, **more: object) -> Seen:
    if isinstance(model.data, Seen):
        raise SettingsError("a gate has no gate of its own; leave `gate` out")
    return Seen.model_validate({"of": model.data, "references": settings.references, **more})


def _experiment(
    model: Experiment, settings: GateSettings, what: str, data: Seen, preparation: Preparation
) -> Experiment:
    dims = model.network.dims
    training = {
        "steps": settings.steps,
        "validate_every": settings.steps,
        "batch_size": model.training.batch_size,
        "patch": _patch(model.training.patch, 2 ** len(settings.features)),
        "seed": model.training.seed,
        "device": model.training.device,
        "precision": model.training.precision,
        "threads": model.training.threads,
        "workers": model.training.workers,
        "pictures": 0,
        "ema": min(0.999, 1 - 10 / settings.steps) if settings.steps > 20 else None,
    }
    return Experiment.model_validate(
        {
            "name": f"{model.name[:58]}-{what}",
            "version": model.version,
            "data": data,
            "preparation": preparation,
            "task": Anomaly(scores=SCORES),
            "network": VAESettings(dims=dims, features=settings.features, latent_channels=settings.latent_channels),
            "objectives": (MSE(), KL()),
            "training": training,
            "intended_use": f"Says how far an input is from what {model.name} knows; nothing about a patient.",
        }
    )


def _patch(patch: tuple[int, ...], stride: int) -> tuple[int, ...]:
    """As large as the model's, in whole blocks of the gate's network."""
    return tuple(-(-length // stride) * stride for length in patch)


def _trained(experiment: Experiment, out: Path, progress: bool | None) -> ModelPackage:
    package = train(experiment, out, resume=(out / LAST).exists(), progress=progress)
    if package.calibration is None:
        logger.warning(
            "the gate %s has too few images to be calibrated: it checks plain facts only, without percentiles",
            experiment.name,
        )
    checks = InputChecks.learn(list(_facts(experiment)), experiment.network.dims)
    return package.retold(checks=checks)


def _facts(experiment: Experiment) -> Iterator[Facts]:
    for split in ("train", "validation"):
        for case in experiment.data.cases(split):
            try:
                image = experiment.data.read(case).image
                yield facts_of(experiment.preparation.apply(image), experiment.network.dims)
            except InputError as error:
                logger.warning("case %s (%s) is left out of the gate's checks: %s", case.id, split, error)
