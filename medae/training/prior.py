"""Training a prior over the codes of a package's network, on the codes of whole images.

The package that comes out answers as before, under a digest of its own; a calibration that it had is taken over, unless
a score asks the prior. Every random draw is a function of (seed, step).
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medae.data import Split
from medae.errors import InputError, SettingsError, UsageError
from medae.experiment import Experiment
from medae.latent import LatentSpace
from medae.metrics.book import Usage
from medae.metrics.detection import NORMAL
from medae.networks import Codes
from medae.networks.prior import Prior, PriorSettings, words
from medae.package import ModelPackage
from medae.scores import CodeLikelihood
from medae.tasks import Anomaly
from medae.training.material import seed_of
from medae.training.validation import weights_of

logger = logging.getLogger(__name__)

Watch = Callable[[int, float], None]
"""Called at each look at the validation codes with (step, bits a code)."""

WARM_UP = 0.05
DRAWS, DROPOUT = 2, 3
"""Streams of random numbers; 0 and 1 are those of the network's own training."""


def with_prior(
    package: ModelPackage, experiment: Experiment, *, watch: Watch = lambda step, bits: None
) -> ModelPackage:
    """The package with a prior trained as `experiment.prior` says, or by default, on the experiment's data.

    Raises UsageError for a network without codes, SettingsError where no image has enough of them.
    """
    settings = experiment.prior or PriorSettings()
    if experiment.network.kind != "vqvae":
        raise UsageError(
            f"a prior counts which code of a book follows which, and {experiment.network.kind} has a continuous latent "
            "or none; take a package with vqvae"
        )
    space = LatentSpace(package, experiment.training.device)
    train, validation = (_large_enough(space, experiment, split) for split in ("train", "validation"))
    entries, _ = experiment.network.quantiser.book
    prior, step, bits = _fit(settings, experiment, entries, train, validation, space.device, watch)
    metrics = {
        "protocol": f"validation codes of whole images, best of {settings.steps} steps (step {step})",
        "bits_per_code": round(bits, 4),
        "bits_per_code_without_neighbours": round(Usage.of(validation, entries).bits, 4),
    }
    told = settings.model_copy(update={"grid": experiment.prior_grid}).model_dump(mode="json")
    made = package.retold(weights_of(prior), prior=told, metrics=package.card.metrics | {"prior": metrics})
    task = package.card.task
    asked = isinstance(task, Anomaly) and any(isinstance(score, CodeLikelihood) for score in task.scores)
    return replace(made, calibration=None) if asked else made


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


def _large_enough(space: LatentSpace, experiment: Experiment, split: Split) -> list[Tensor]:
    grid, found = experiment.prior_grid, codes_of(space, experiment, split)
    kept = [codes for codes in found if all(have >= need for have, need in zip(codes.shape, grid, strict=True))]
    if len(kept) < len(found):
        small = len(found) - len(kept)
        logger.warning("%d images of the %s split have fewer than %s codes and are left out", small, split, words(grid))
    if not kept:
        raise SettingsError(f"no image of the {split} split has {words(grid)} codes; take a smaller prior.grid")
    return kept


def _fit(
    settings: PriorSettings,
    experiment: Experiment,
    entries: int,
    train: Sequence[Tensor],
    validation: Sequence[Tensor],
    device: torch.device,
    watch: Watch,
) -> tuple[Prior, int, float]:
    """(the best prior, its step, its bits a code on the validation codes)."""
    seed, best = experiment.training.seed, (math.inf, 0, dict[str, Tensor]())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        prior = settings.build(entries, experiment.prior_grid).to(device)
        optimiser = torch.optim.AdamW(prior.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        for step, batch in enumerate(_batches(train, experiment.prior_grid, settings, seed)):
            torch.manual_seed(seed_of(seed, step, DROPOUT))
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate * _schedule(step / settings.steps)
            loss = -prior.train().log_likelihood(batch.to(device)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
            optimiser.step()
            if (step + 1) % settings.validate_every == 0 or step + 1 == settings.steps:
                bits = bits_per_code(prior, validation)
                watch(step + 1, bits)
                if bits < best[0]:
                    best = (bits, step + 1, {name: value.clone() for name, value in prior.state_dict().items()})
    prior.load_state_dict(best[2])
    return prior, best[1], best[0]


def bits_per_code(prior: Prior, grids: Sequence[Tensor]) -> float:
    """The mean of -log2 P over all codes of all grids (*places)."""
    device = next(prior.parameters()).device
    with torch.inference_mode():
        found = [prior.eval().log_likelihood(grid[None].to(device)).flatten() for grid in grids]
    return -float(torch.cat(found).double().mean()) / math.log(2)


def _batches(grids: Sequence[Tensor], window: Sequence[int], settings: PriorSettings, seed: int) -> Iterator[Tensor]:
    """Random windows of the grids, each place of each grid as likely as any other."""
    room = [[have - need + 1 for have, need in zip(grid.shape, window, strict=True)] for grid in grids]
    places = np.array([math.prod(starts) for starts in room], float)
    for step in range(settings.steps):
        rng = np.random.default_rng(seed_of(seed, step, DRAWS))
        chosen = rng.choice(len(grids), settings.batch_size, p=places / places.sum())
        yield torch.stack([_cut(grids[number], rng.integers(room[number]), window) for number in chosen])


def _cut(grid: Tensor, starts: Any, window: Sequence[int]) -> Tensor:
    return grid[tuple(slice(start, start + length) for start, length in zip(starts.tolist(), window, strict=True))]


def _schedule(progress: float) -> float:
    """0..1 -> part of the learning rate."""
    if progress < WARM_UP:
        return (progress + 1e-3) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))
