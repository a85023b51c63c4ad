"""The codes of an experiment's images, and how much of the book they use."""

import logging

from torch import Tensor

from medae.data import Split
from medae.errors import InputError
from medae.experiment import Experiment
from medae.latent import LatentSpace, Usage
from medae.metrics.detection import NORMAL
from medae.networks import Codes
from medae.package import ModelPackage
from medae.tasks import Anomaly

logger = logging.getLogger(__name__)


def codes_of(space: LatentSpace, experiment: Experiment, split: Split) -> list[Tensor]:
    """The code grids (*places) of a split's images; in 2-D, one a slice. Of an anomaly task, normal ones only."""
    found: list[Tensor] = []
    for case in experiment.data.cases(split):
        if isinstance(experiment.task, Anomaly) and case.label not in (None, NORMAL):
            continue
        try:
            latent = space.encode(experiment.data.read(case).image)
        except InputError as error:
            logger.warning("case %s (%s) is left out: %s", case.id, split, error)
            continue
        assert isinstance(latent, Codes)
        found += list(latent.indices)
    return found


def with_usage(package: ModelPackage, experiment: Experiment) -> ModelPackage:
    """The package whose card says how many entries of its book the validation images use, and how evenly."""
    assert experiment.network.kind == "vqvae"
    entries, _ = experiment.network.quantiser.book
    space = LatentSpace(package, experiment.training.device)
    usage = Usage.of(codes_of(space, experiment, "validation"), entries)
    metrics = package.card.metrics | {"codes": {"protocol": "validation split, whole images", **usage.summary}}
    return package.retold(metrics=metrics)
