"""Other scores for a network that is trained already: fitted, calibrated, a package of its own."""

from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field, TypeAdapter

from medae.data import Data
from medae.data.cases import CaseList
from medae.errors import SettingsError, UsageError
from medae.evaluation import calibrate
from medae.evaluation.reading import normal_images, own_data
from medae.fitting import fit_scores
from medae.networks import NetworkConfig, NetworkSettings
from medae.package import ModelPackage
from medae.scores import Score, ScoreConfig
from medae.settings import Settings, load_settings, validate_settings
from medae.suitability import unfit_score
from medae.tasks import Anomaly


class Scores(Settings):
    """What a file of scores says."""

    scores: tuple[ScoreConfig, ...] = Field(min_length=1)
    """As in the task of an anomaly model: the first decides."""


def rescore(
    package: ModelPackage,
    scores: Path,
    cases: Path | None = None,
    *,
    device: str = "auto",
    watch: Callable[[str, str | None], None] = lambda case, reason: None,
) -> ModelPackage:
    """The same network with other scores, such as a variance head for an autoencoder that was trained without one.

    scores: a YAML file. cases: a CSV list whose normal training cases are fitted on and whose normal validation cases
    calibrate; None: the data of the package's own experiment. watch: called with each case that calibrates.
    Raises UsageError for a model of another task or without such cases, SettingsError for scores that do not hold or
    that the network cannot have.
    """
    task = package.card.task
    if not isinstance(task, Anomaly):
        raise UsageError(f"scores are for anomaly models; this one does {task.kind}")
    data: Data = own_data(package) if cases is None else CaseList(path=cases)
    network = TypeAdapter[NetworkSettings](NetworkConfig).validate_python(package.card.network)
    new = _with(task, load_settings(scores, Scores).scores, str(scores))
    unfit = unfit_score(new, network, package.card.preparation, prior=package.prior is not None)
    if unfit is not None:
        raise SettingsError(f"{scores}: {unfit}")
    new = new.at_size(min(package.card.experiment.get("training", {}).get("patch", [64])))
    card = package.card.model_copy(
        update={
            "task": new,
            "channels_out": new.channels_out(package.card.channels_in),
            "receptive_field": new.seen(network.receptive_field()),
            "metrics": {},  # they were of the other scores
        }
    )
    fitted = fit_scores(ModelPackage.seal(card, package.weights, package.prior), normal_images(data), device=device)
    return calibrate(fitted, data, device=device, watch=watch)


def _with(task: Anomaly, scores: Sequence[Score], name: str) -> Anomaly:
    """Raises SettingsError where they do not hold together."""
    data = task.model_dump(mode="json") | {"scores": [score.model_dump(mode="json") for score in scores]}
    return validate_settings(data, Anomaly, name)
