"""Which scores can be had of a network and of its images, and which its training makes no sense of."""

from collections.abc import Iterator, Mapping

from medae.networks import NetworkSettings
from medae.preparation import Preparation
from medae.scores import ELBO, SSIM, Residual, Restoration, VarianceHead
from medae.scores.base import Need
from medae.tasks import Anomaly

_NEEDED: Mapping[Need, str] = {
    "code": "a network that goes through a code: conv_autoencoder or vae",
    "distribution": "a network whose code is a distribution: vae",
    "variance": "a decoder that says its variance: network.decoder gaussian",
    "codes": "a network with a code book: vqvae",
    "prior": "a prior over the codes (prior: {}, or medae latent prior)",
}


def unfit_score(task: Anomaly, network: NetworkSettings, preparation: Preparation, *, prior: bool) -> str | None:
    """Why a score cannot be had from this network, with or without a prior over its codes, and of images that are
    prepared so; None where all can."""
    has = _says(network) | ({"prior"} if prior else set())
    for score in task.mapped:
        missing = sorted(score.requirements - has)
        if missing:
            where = "" if missing[0] in ("prior", "variance") else f", not {network.kind}"
            return f"the score {score.kind} needs {_NEEDED[missing[0]]}{where}"
    for each in task.scores:
        if each.of_light and preparation.intensity.kind == "zscore":
            return (
                f"the score {each.key} measures how much light is held back, in images from 0 (none) to 1 (all), and "
                "preparation.intensity zscore has no such range: take full_range, window or percentile"
            )
    return None


def _says(network: NetworkSettings) -> frozenset[Need]:
    """What scores can ask of it."""
    latent, decoder = network.latent, getattr(network, "decoder", "point")
    found: dict[Need, bool] = {
        "code": latent in ("code", "gaussian"),
        "distribution": latent == "gaussian",
        "variance": decoder == "gaussian",
        "codes": latent == "codes",
    }
    return frozenset(name for name, has in found.items() if has)


_OF_RESIDUALS = (Residual, VarianceHead, ELBO, Restoration)
"""Scores that square or sum up what is not reproduced, voxel by voxel."""
_VALUES = frozenset({"mse", "l1", "gaussian", "bernoulli", "categorical"})
"""Objectives that make values alike, voxel by voxel."""


def mismatches(task: Anomaly, objectives: set[str]) -> Iterator[str]:
    """What was trained to be alike in one sense is no measure in another: such scores are often below chance."""
    trained = objectives & (_VALUES | {"ssim", "perceptual"})
    for score in task.mapped:
        if isinstance(score, _OF_RESIDUALS) and trained and not trained & _VALUES:
            yield _mismatch(score.key, trained, "values alike: add mse or l1, or score by what was trained")
        if isinstance(score, SSIM) and trained == {"perceptual"}:
            yield _mismatch(score.key, trained, "structure alike: add ssim or mse, or score by what was trained")


def _mismatch(key: str, trained: set[str], missing: str) -> str:
    return f"the score {key} does not measure what {', '.join(sorted(trained))} trains, which does not make {missing}"
