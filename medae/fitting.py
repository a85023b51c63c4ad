"""Fitting of scores: what they keep of normal images once the network is trained and frozen, as weights of the package.

Gaussians and banks of features, a head that says the variance to expect, statistics, and the ranks of ensembles: all
from training images, so that validation images stay new to the calibration.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor, nn

from medae.backends.feature_maps import features_of
from medae.backends.observer import Head
from medae.backends.torch import choose_device, network_of
from medae.errors import InputError, SettingsError, UsageError
from medae.image import Image
from medae.networks import NetworkConfig, NetworkSettings, run
from medae.package import ModelPackage
from medae.predictor import Predictor, prepare
from medae.scores import (
    PREFIX,
    CodeLikelihood,
    Mahalanobis,
    MapScore,
    Neighbours,
    RankAverage,
    StatisticScore,
    VarianceHead,
)
from medae.scores.baselines import whitening_of
from medae.tasks import Anomaly
from medae.tiles import Box, plan_tiles, read_tile

logger = logging.getLogger(__name__)

MOST_IMAGES = 2000
"""So many normal images are looked at; more change nothing that could be measured."""
MOST_PLACES = 20_000
"""So many features, drawn at random, make a Gaussian."""
PLACES_OF_ONE = 256
"""And so many of them at most come from one window."""
HEAD_STEPS = 800
HEAD_BATCH = 16
HEAD_RATE = 3e-3
HEAD_PATCH = 32
"""Places along a side of the patches that a head is fitted on, at most."""
HEAD_PATCHES = 1024

Parts = dict[str, NDArray[Any]]
Seen = tuple[Tensor, Any]
"""Windows (1, C, *spatial) and what the network says of them."""


def fit_scores(package: ModelPackage, images: Iterable[Image], *, device: str = "cpu", seed: int = 0) -> ModelPackage:
    """The package with every part that its scores fit, fitted on normal images that the network was trained on.

    A package without such scores comes back as it is. The digest changes, so its calibration is gone.
    Raises UsageError where there are no images that can be used, SettingsError for images of several sizes where each
    place has its own normal.
    """
    task = package.card.task
    if not isinstance(task, Anomaly) or not any(score.fits for score in task.scores):
        return package
    package = _of_any_size(package)
    pixels = _prepared(package, images)
    parts: Parts = {}
    network = network_of(package).to(choose_device(device)).eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for mapped in task.mapped:
            if mapped.fits and not isinstance(mapped, CodeLikelihood):  # its part is the package's prior
                parts |= _named(mapped.key, _fit_map(mapped, network, package, pixels, np.random.default_rng(seed)))
    for score in task.scores:
        if isinstance(score, StatisticScore) and not score.after:
            parts |= _named(score.key, score.fit(pixels))
    return _with_ensembles(_sealed(package, parts, pixels), pixels, device)


def _prepared(package: ModelPackage, images: Iterable[Image]) -> list[NDArray[np.float32]]:
    """(C, S, R, W) as the network sees them."""
    found: list[NDArray[np.float32]] = []
    for image in images:
        try:
            found.append(prepare(package.card, image).image.pixels)
        except InputError:
            continue  # named where the training read it
        if len(found) == MOST_IMAGES:
            break
    if len(found) < 2:
        raise UsageError(
            f"scores are fitted on 2 normal training images or more, and {len(found)} can be used; name the "
            "package's data"
        )
    return found


def _of_any_size(package: ModelPackage) -> ModelPackage:
    """As before its scores were fitted to one; a network that takes one size only goes on doing so."""
    network = TypeAdapter[NetworkSettings](NetworkConfig).validate_python(package.card.network)
    only = network.receptive_field().window
    field = package.card.receptive_field.model_copy(update={"window": only})
    return ModelPackage.seal(package.card.model_copy(update={"receptive_field": field}), package.weights, package.prior)


def _named(key: str, parts: Mapping[str, NDArray[Any]]) -> Parts:
    return {f"{PREFIX}{key}.{name}": np.asarray(values, np.float32) for name, values in parts.items()}


def _sealed(package: ModelPackage, parts: Parts, pixels: Sequence[NDArray[Any]]) -> ModelPackage:
    """With these parts instead of those of before; the card knows the only size, if there is one."""
    card = package.card
    own = {name: values for name, values in package.weights.items() if not name.startswith(PREFIX)}
    if any(getattr(score, "positions", "shared") == "own" for score in card.task.mapped):  # type: ignore[union-attr]
        shape = pixels[0].shape[1:] if card.receptive_field.dims == 3 else pixels[0].shape[2:]
        card = card.model_copy(update={"receptive_field": card.receptive_field.model_copy(update={"window": shape})})
    return ModelPackage.seal(card, own | parts, package.prior)


def _with_ensembles(package: ModelPackage, pixels: Sequence[NDArray[Any]], device: str) -> ModelPackage:
    """Ensembles last: they keep the other scores of the same images."""
    task = package.card.task
    assert isinstance(task, Anomaly)
    ensembles = [score for score in task.scores if score.after]
    if not ensembles:
        return package
    single = task.model_copy(update={"scores": tuple(each for each in task.scores if each not in ensembles)})
    lone = ModelPackage.seal(package.card.model_copy(update={"task": single}), package.weights, package.prior)
    predictor = Predictor(lone, device=device)
    rows = [predictor.scores_of(image) for image in pixels]
    values = {name: [row[name] for row in rows] for name in rows[0]}
    parts = dict(package.weights)
    for score in ensembles:
        assert isinstance(score, RankAverage | StatisticScore), f"nothing fits {score.kind}"
        kept = score.fit(pixels, rows) if isinstance(score, StatisticScore) else score.fit(values)
        parts |= _named(score.key, kept)
    return ModelPackage.seal(package.card, parts, package.prior)


def _fit_map(
    score: MapScore,
    network: nn.Module,
    package: ModelPackage,
    pixels: Sequence[NDArray[np.float32]],
    rng: np.random.Generator,
) -> Parts:
    if isinstance(score, VarianceHead):
        return _fit_head(network, package, pixels, rng)
    assert isinstance(score, Mahalanobis | Neighbours), f"nothing fits {score.kind}"
    stride: int = getattr(network, "stride", 1)
    features = features_of(score, stride)

    def of_window(x: Tensor) -> NDArray[np.float64]:
        with torch.no_grad():
            found: Tensor = features(x, run(network, x).latent)[0]
        return np.asarray(found.float().cpu().numpy(), np.float64)  # (F, *places)

    windows = _windows(package, pixels, next(network.parameters()).device)
    if score.positions == "own":
        found = _of_one_size(of_window, windows)
    else:
        found = _drawn([_places(of_window(x), rng) for x in windows], MOST_PLACES, rng)
    return _gaussian(found, score.shrinkage) if isinstance(score, Mahalanobis) else _bank(found, score.bank, rng)


def _windows(package: ModelPackage, pixels: Sequence[NDArray[np.float32]], device: torch.device) -> Iterator[Tensor]:
    """Every window that the network sees of these images, as in use: (1, C, *spatial)."""
    for image, window in _places_of_windows(package, pixels):
        yield torch.from_numpy(_window(package, image, window)).to(device)


def _places_of_windows(
    package: ModelPackage, pixels: Sequence[NDArray[np.float32]]
) -> Iterator[tuple[NDArray[np.float32], Box]]:
    for image in pixels:
        for tile in plan_tiles(image.shape[1:], package.card.receptive_field).tiles:
            yield image, tile.window


def _window(package: ModelPackage, image: NDArray[np.float32], window: Box) -> NDArray[np.float32]:
    """(1, C, *spatial), a copy."""
    seen = read_tile(image, window)
    flat = seen[:, 0] if package.card.receptive_field.dims == 2 else seen
    return np.array(flat[None], order="C")


def _of_one_size(of_window: Callable[[Tensor], NDArray[np.float64]], windows: Iterable[Tensor]) -> NDArray[np.float64]:
    """(n, F, *places)"""
    found = [of_window(x) for x in windows]
    if len({each.shape for each in found}) > 1:
        raise SettingsError("a score with `positions: own` needs images of one size on the model's grid; these differ")
    return np.stack(found)


def _places(found: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """(F, *places) -> (n, F), at most PLACES_OF_ONE."""
    return _drawn([found.reshape(len(found), -1).T], PLACES_OF_ONE, rng)


def _drawn(rows: Sequence[NDArray[np.float64]], most: int, rng: np.random.Generator) -> NDArray[np.float64]:
    every = np.concatenate(rows)
    return every if len(every) <= most else every[np.sort(rng.choice(len(every), most, replace=False))]


def _gaussian(found: NDArray[np.float64], shrinkage: float) -> Parts:
    """(n, F) or (n, F, *places) -> mean and whitening, place by place."""
    mean = found.mean(0)
    by_place = np.moveaxis(found - mean, (0, 1), (-2, -1))  # (*places, n, F)
    return {"mean": mean, "whitening": whitening_of(by_place, shrinkage)}


def _bank(found: NDArray[np.float64], most: int, rng: np.random.Generator) -> Parts:
    mean, deviation = found.mean(0), found.std(0) + 1e-6
    return {"mean": mean, "deviation": deviation, "bank": (_drawn([found], most, rng) - mean) / deviation}


def _fit_head(
    network: nn.Module, package: ModelPackage, pixels: Sequence[NDArray[np.float32]], rng: np.random.Generator
) -> Parts:
    """Gaussian likelihood of the residuals under the variance that the head says, from what the decoder made.

    A block of voxels shares one variance, so that the mean of its squared residuals is all that the likelihood needs.
    """
    device = next(network.parameters()).device
    head, seen, squares = None, [], []
    for x in _patches(package, pixels, device, rng):
        with torch.no_grad():
            said = run(network, x)
            if head is None:
                assert said.latent is not None, "the experiment has checked that the network goes through a code"
                channels = said.prediction.shape[1] + said.latent.point().z.shape[1]
                head = Head(x.ndim - 2, channels, network.stride).to(device)  # type: ignore[arg-type]
            seen.append(head.seen(said))
            squares.append(head.blocks((x - said.prediction).square().mean(1, keepdim=True)))
    assert head is not None, "there are images"
    _descend(head, torch.cat(seen), torch.cat(squares), rng)
    return {name: values.detach().cpu().numpy() for name, values in head.state_dict().items()}


def _patches(
    package: ModelPackage, pixels: Sequence[NDArray[np.float32]], device: torch.device, rng: np.random.Generator
) -> Iterator[Tensor]:
    """One patch of one size from each window, each axis of it as long as the shortest window there is, at most; of
    more windows than HEAD_PATCHES, from so many of all images."""
    every = list(_places_of_windows(package, pixels))
    lengths = np.array([[side.stop - side.start for side in window] for _, window in every])
    sides = np.minimum(lengths.min(0), HEAD_PATCH * 4)[3 - package.card.receptive_field.dims :].tolist()
    if len(every) > HEAD_PATCHES:
        every = [every[at] for at in np.sort(rng.choice(len(every), HEAD_PATCHES, replace=False))]
    for image, window in every:
        x = _window(package, image, window)
        for axis, length in enumerate(sides, start=2):
            start = int(rng.integers(x.shape[axis] - length + 1))
            x = x.take(range(start, start + length), axis)
        yield torch.from_numpy(x).to(device)


def _descend(head: Head, seen: Tensor, squares: Tensor, rng: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=HEAD_RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, HEAD_RATE, total_steps=HEAD_STEPS)
    head.train()
    with torch.enable_grad():
        for _ in range(HEAD_STEPS):
            rows = torch.from_numpy(rng.choice(len(seen), HEAD_BATCH)).to(seen.device)
            log_variance = head.says(seen[rows])
            loss = (log_variance + squares[rows] * torch.exp(-log_variance)).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    head.eval()
