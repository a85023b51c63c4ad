"""What a training learns from: prepared cases, and the batches of patches that are cut from them."""

import logging
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from medae.data import Case, LoadedCase, Split
from medae.data.patches import Patches, PreparedCase
from medae.errors import InputError, SettingsError, UnfitImage
from medae.experiment import Experiment
from medae.image import Image
from medae.metrics.detection import NORMAL
from medae.predictor import require_size
from medae.preparation import Prepared, stretched
from medae.record import Run
from medae.resample import resample_onto
from medae.tasks import Anomaly, Restoration, Segmentation

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Material:
    """The cases of a training."""

    train: list[PreparedCase]
    validation: list[Case]
    """Read again at each validation: whole images, which may be many."""


def read_material(experiment: Experiment, run: Run) -> Material:
    """Read and prepare all cases. One that cannot be used is named in the log and in run.json; the others go on.

    Raises SettingsError where nothing is left to train on, or to validate on.
    """
    train = [case for _, case in _usable(experiment, "train", run)]
    validation = [case for case, _ in _usable(experiment, "validation", run)]
    for split, cases in (("train", train), ("validation", validation)):
        if not cases:
            normal = " normal" if isinstance(experiment.task, Anomaly) else ""
            raise SettingsError(f"no usable{normal} case in the {split} split; check the data's splits and run.json")
    return Material(train, validation)


def labels_of(experiment: Experiment) -> int | None:
    """How many labels targets have, where they are label images."""
    return len(experiment.task.labels) if isinstance(experiment.task, Segmentation) else None


def _usable(experiment: Experiment, split: Split, run: Run) -> Iterator[tuple[Case, PreparedCase]]:
    for case in experiment.data.cases(split):
        if isinstance(experiment.task, Anomaly) and case.label not in (None, NORMAL):
            continue  # what is abnormal must not be learnt as normal
        try:
            loaded = experiment.data.read(case, labels=labels_of(experiment))
            yield case, _prepared(loaded, experiment)
        except InputError as error:
            logger.warning("case %s (%s) is left out: %s", case.id, split, error)
            run.failed(case.id, str(error), split=split)


def _prepared(loaded: LoadedCase, experiment: Experiment) -> PreparedCase:
    prepared = experiment.preparation.apply(loaded.image)
    if experiment.network.window is not None:  # else smaller ones are mirrored up to a patch
        require_size(prepared.image, experiment.network.receptive_field())
    image = prepared.image.pixels
    if isinstance(experiment.task, Segmentation):
        if loaded.target is None:
            raise UnfitImage("this case has no label image to learn from; give one as its target")
        return PreparedCase(image, experiment.preparation.apply_labels(loaded.target).pixels)
    if isinstance(experiment.task, Restoration) and experiment.task.corruption is None:
        if loaded.target is None:
            raise UnfitImage("this case has no clean image to learn from; give one as its target")
        return PreparedCase(image, _in_range_of(prepared, loaded.target))
    return PreparedCase(image)


def _in_range_of(prepared: Prepared, target: Image) -> NDArray[np.float32]:
    """A clean image on the grid and in the range of its noisy one, whose range is all that is known in use."""
    on_grid = resample_onto(target, prepared.image.geometry)
    pixels = on_grid.pixels[: prepared.image.channels]  # grey stored as colour is grey
    if len(pixels) != prepared.image.channels:
        raise UnfitImage(f"image and target have {prepared.image.channels} and {len(pixels)} channels; give both alike")
    values = stretched(pixels, prepared.lower, prepared.scale)
    return values.clip(0, 1) if prepared.clipped else values


def batches_from(cases: list[PreparedCase], experiment: Experiment, step: int, *, pin: bool) -> DataLoader[Batch]:
    """The batches of all steps from `step` on. Which patches a step sees follows from the seed and its number alone."""
    settings = experiment.training
    per_epoch = settings.validate_every * settings.batch_size
    patches = Patches(
        cases,
        size=settings.patch,
        length=per_epoch,
        seed=settings.seed,
        augment=experiment.augment,
        foreground=settings.foreground if isinstance(experiment.task, Segmentation) else 0.0,
    )
    numbers = range(step * settings.batch_size, settings.steps * settings.batch_size)
    return DataLoader(
        patches,
        batch_size=settings.batch_size,
        sampler=_Places(numbers, per_epoch),
        num_workers=settings.workers,
        worker_init_fn=_ignore_interrupts,
        pin_memory=pin,
    )


class _Places:
    """Number of a patch in the whole training -> (epoch, index)."""

    def __init__(self, numbers: range, per_epoch: int) -> None:
        self._numbers, self._per_epoch = numbers, per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return (divmod(number, self._per_epoch) for number in self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the training process alone decides what follows."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def pair(batch: Batch, experiment: Experiment, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(input, target) of one step, on the batch's device."""
    image, task = batch["image"], experiment.task
    if isinstance(task, Restoration | Anomaly) and task.corruption is not None:
        noisy = task.corruption(image, generator)
        # a window is applied to the noisy image too, when the model is used
        return noisy.clamp(0, 1) if experiment.preparation.intensity.kind == "window" else noisy, image
    return image, batch.get("target", image)


def seed_of(seed: int, step: int, stream: int) -> Any:
    """A seed of its own for each step and purpose, so that resuming needs no saved generator."""
    return int(np.random.SeedSequence([seed, step, stream]).generate_state(1, np.uint64)[0])
