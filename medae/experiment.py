"""Experiment: everything that one YAML file says about a training."""

import json
import logging
from collections import Counter
from math import prod
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from medae.data import AugmentSettings, DataConfig
from medae.networks import AutoencoderSettings, NetworkConfig, StackedSettings, kinds_with
from medae.networks.prior import PriorSettings, require_bounded
from medae.objectives import ObjectiveConfig
from medae.preparation import Preparation
from medae.settings import Settings
from medae.suitability import mismatches, unfit_score
from medae.tasks import Anomaly, Restoration, TaskConfig

logger = logging.getLogger(__name__)


class TrainingSettings(Settings):
    """AdamW on random patches; the learning rate warms up, then falls along a cosine to zero."""

    steps: PositiveInt = 2000
    """Optimiser steps in all."""
    validate_every: PositiveInt = 200
    """Steps between validations; there is one at the end too."""
    log_every: PositiveInt = 20
    """Steps between two lines of losses in metrics.jsonl."""
    batch_size: PositiveInt = 16
    patch: tuple[PositiveInt, PositiveInt] | tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 64)
    """(rows, columns) for a 2-D network, (slices, rows, columns) for a 3-D one, on the network's grid."""
    foreground: float = Field(default=0.33, ge=0, le=1)
    """Part of the patches that are sure to show a label; for segmentation."""
    learning_rate: PositiveFloat = 1e-3
    """At the end of the warm-up."""
    warm_up: float = Field(default=0.05, ge=0, lt=1)
    """Part of the training in which the learning rate rises linearly."""
    weight_decay: NonNegativeFloat = 1e-4
    gradient_clip: PositiveFloat | None = 1.0
    """Longest gradient (its norm over all weights); null: any."""
    layer_wise: float = Field(default=0, ge=0, lt=1)
    """First part of the training in which a dense_autoencoder or conv_autoencoder is trained stage by stage, each on
    the codes of the one before; the rest trains all of it. In each stage the learning rate rises and falls anew."""
    ema: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay of the exponential moving average of the weights, which is what is validated and packaged; null: none."""
    early_stopping: PositiveInt | None = None
    """Stop after so many validations in a row without a better one; null: never."""
    time_limit_minutes: PositiveFloat | None = None
    """End by then, with the learning rate fallen: the schedule follows the clock where it runs ahead of the steps. Two
    runs are then no longer the same to the bit; null: no limit."""
    seed: NonNegativeInt = 0
    """With it, every random draw is fixed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:0."""
    precision: Literal["auto", "full", "bf16"] = "auto"
    """auto: bfloat16 (mixed) on CUDA, full elsewhere."""
    threads: PositiveInt | None = None
    """Of PyTorch on the CPU; null: as it finds right. More or fewer change the last bits."""
    workers: NonNegativeInt = 0
    """Processes that cut patches; any number gives the same weights."""
    pictures: NonNegativeInt = 4
    """Validation cases that are drawn at each validation: input, target, output."""


class GateSettings(Settings):
    """A gate for the model: how far an input is from the images that the model was made from."""

    steps: PositiveInt = 600
    """Of each of its trainings."""
    features: tuple[PositiveInt, ...] = Field(default=(8, 16, 32), min_length=1, max_length=6)
    """Of its small VAE."""
    latent_channels: PositiveInt = 8
    shape: bool = True
    """For segmentation: a second VAE, on the masks, says whether the shape of an answer is plausible."""
    references: PositiveInt = 200
    """So many images calibrate it, or half of them where there are fewer; under 100 it is not calibrated."""


class Experiment(Settings):
    """One training, from images to a package."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)
    """Of the package: lower-case letters, digits and `.`, `_`, `-`."""
    version: str = Field(default="1.0.0", min_length=1, max_length=32)
    """Of the package."""
    data: DataConfig
    preparation: Preparation = Preparation()
    task: TaskConfig
    network: NetworkConfig
    objectives: tuple[ObjectiveConfig, ...] = Field(min_length=1)
    """The loss is their weighted sum."""
    augment: AugmentSettings = AugmentSettings()
    training: TrainingSettings = TrainingSettings()
    gate: GateSettings | None = None
    """For segmentation and restoration; null: the package carries no gate."""
    prior: PriorSettings | None = None
    """Over the codes of a vqvae, trained once the network is: it draws samples, and says how likely each code is."""
    intended_use: str = ""
    """For the model card."""
    limits: str = ""
    """For the model card: what the model must not be used for, and where it fails."""

    @property
    def resolved(self) -> dict[str, Any]:
        """Every setting, defaults too, as plain data: what the model card keeps."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _gate_fits_the_task(self) -> Self:
        if self.gate is not None and self.task.kind == "anomaly":
            raise ValueError("an anomaly model says itself how far an image is from what it knows; leave gate out")
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_task(self) -> Self:
        for objective in self.objectives:
            if self.task.kind not in objective.applies_to:
                tasks = " and ".join(sorted(objective.applies_to))
                raise ValueError(f"the objective {objective.kind} is for {tasks}; the task is {self.task.kind}")
        return self

    @model_validator(mode="after")
    def _objectives_fit_the_network(self) -> Self:
        counts = Counter(objective.kind for objective in self.objectives)
        for kind, count in counts.items():
            if count > 1:
                raise ValueError(
                    f"the objective {kind} is there {count} times; give it once, with the sum of the weights"
                )
        for objective in self.objectives:
            for attribute, fitting in objective.needs.items():
                has = getattr(self.network, attribute, None)
                if has not in fitting:
                    raise ValueError(_unfit(objective, self.network, attribute, fitting, has))
        if not any(objective.compares for objective in self.objectives):
            listed = " and ".join(counts)
            raise ValueError(f"the objective {listed} compares nothing with the target; add one that does, such as mse")
        return self

    @model_validator(mode="after")
    def _network_fits_the_task(self) -> Self:
        if isinstance(self.task, Anomaly) and not self.network.autoencodes and self.task.corruption is None:
            raise ValueError(
                "anomaly scores how badly an autoencoder reproduces an image; "
                f"{self.network.kind} does not go through a code: take conv_autoencoder or vae, or give task.corruption"
            )
        if self.network.kind == "dncnn" and self.task.kind == "segmentation":
            raise ValueError("dncnn subtracts noise from an image, it cannot give labels: take unet or segnet")
        return self

    @model_validator(mode="after")
    def _layer_wise_fits(self) -> Self:
        if self.training.layer_wise == 0:
            return self
        if not isinstance(self.network, StackedSettings):
            raise ValueError(
                f"training.layer_wise trains stages that reconstruct each other's codes; {self.network.kind} is not "
                "made of such: take dense_autoencoder or conv_autoencoder, or leave it out"
            )
        if self.task.kind == "segmentation":
            raise ValueError("training.layer_wise reconstructs images, and segmentation gives labels: leave it out")
        return self

    @model_validator(mode="after")
    def _code_is_narrow_or_penalised(self) -> Self:
        copies = isinstance(self.task, Anomaly) and self.task.corruption is None
        free = all(objective.compares for objective in self.objectives)
        if copies and free and isinstance(self.network, AutoencoderSettings):
            code, image = self.network.code_and_image(self.preparation.channels) or (0, 1)
            if code >= image:
                logger.warning(
                    "the code is overcomplete: %d numbers for %d of the image. Without a penalty the network may learn "
                    "to copy, anomalies too; add a sparsity objective, or take a narrower code",
                    code,
                    image,
                )
        return self

    @model_validator(mode="after")
    def _latent_is_held(self) -> Self:
        kinds = {objective.kind for objective in self.objectives}
        if self.task.kind == "segmentation":
            return self
        if self.network.latent == "gaussian" and "kl" not in kinds:
            logger.warning(
                "without the objective kl nothing holds the code of a vae to its prior: draws, kl and elbo mean "
                "nothing. Add kl, or take conv_autoencoder"
            )
        if getattr(self.network, "book", None) == "learned" and "commitment" not in kinds:
            logger.warning(
                "without the objective commitment nothing holds the encodings of a vqvae to its learned book: add it, "
                "or take the quantiser fsq"
            )
        return self

    @model_validator(mode="after")
    def _decoder_fits_the_values(self) -> Self:
        decoder = self.network.decoder if isinstance(self.network, AutoencoderSettings) else "point"
        if decoder != "point" and self.task.kind == "segmentation":
            raise ValueError(
                f"a {decoder} decoder says how image values are distributed; labels need network.decoder point"
            )
        if decoder in ("bernoulli", "categorical") and self.preparation.intensity.kind == "zscore":
            raise ValueError(
                f"a {decoder} decoder knows values in 0..1, and preparation.intensity zscore has no such range: take "
                "full_range, window or percentile"
            )
        if self.preparation.intensity.kind == "zscore" and any(objective.in_range for objective in self.objectives):
            listed = ", ".join(objective.kind for objective in self.objectives if objective.in_range)
            raise ValueError(
                f"the objective {listed} is for values in 0..1, and preparation.intensity zscore has no such range: "
                "take full_range, window or percentile, or another objective"
            )
        if decoder == "gaussian" and not any("gaussian" in each.needs.get("decoder", ()) for each in self.objectives):
            raise ValueError(
                "network.decoder gaussian says a variance that no objective judges; add the objective gaussian with "
                "variance: learned, or take decoder: point"
            )
        return self

    @model_validator(mode="after")
    def _scores_fit_the_network(self) -> Self:
        if isinstance(self.task, Anomaly):
            unfit = unfit_score(self.task, self.network, self.preparation, prior=self.prior is not None)
            if unfit is not None:
                raise ValueError(unfit)
            for warning in mismatches(self.task, {objective.kind for objective in self.objectives}):
                logger.warning(warning)
        return self

    @model_validator(mode="after")
    def _patch_fits_the_network(self) -> Self:
        patch, dims = self.training.patch, self.network.dims
        if len(patch) != dims:
            axes = {2: "(rows, columns)", 3: "(slices, rows, columns)"}[dims]
            raise ValueError(f"the network is {dims}-D, so training.patch is {axes}; got {list(patch)}")
        window = self.network.window
        if window is not None and patch != window:
            raise ValueError(
                f"{self.network.kind} is made for images of {list(window)} (network.size), so training.patch is the "
                f"same; got {list(patch)}"
            )
        stride = self.network.receptive_field().stride
        if min(patch) < stride:
            raise ValueError(
                f"{self.network.kind} works on blocks of {stride}; training.patch {list(patch)} is smaller"
            )
        for objective in self.objectives:
            if min(patch) < objective.least:
                raise ValueError(
                    f"the objective {objective.kind} looks through a window of {objective.least} voxels along each "
                    f"axis; training.patch {list(patch)} is smaller: take a larger patch or a smaller sigma"
                )
        # of the deepest map; a network without layers that have a place has one value a unit
        places = prod(-(-length // stride) for length in patch) if self.network.layers() else 1
        if self.network.norm == "batch" and places * self.training.batch_size == 1:
            raise ValueError(
                f"norm batch compares the values of a channel, and in one patch of {list(patch)} {self.network.kind} "
                "has a single one: give training.batch_size 2 or more, a larger patch, or network.norm none"
            )
        return self

    @model_validator(mode="after")
    def _augmentation_fits_the_images(self) -> Self:
        pictures = self.preparation.channels == 3 and self.preparation.intensity.kind == "full_range"
        if self.augment.stain is not None and not pictures:
            raise ValueError(
                "augment.stain takes RGB pictures apart into stains, so preparation.channels must be 3 and "
                "preparation.intensity full_range"
            )
        if self.augment.colour is not None and self.preparation.channels != 3:
            raise ValueError("augment.colour turns the colours of RGB pictures, so preparation.channels must be 3")
        if self.augment.invert is not None and self.preparation.intensity.kind == "zscore":
            raise ValueError(
                "augment.invert is 1 - value, and preparation.intensity zscore has no such range: take full_range, "
                "window or percentile"
            )
        if "slices" in self.augment.flip and self.network.dims == 2:
            raise ValueError("augment.flip: a 2-D network sees no slices to reverse; leave `slices` out")
        return self

    @model_validator(mode="after")
    def _data_fits_the_task(self) -> Self:
        has_targets = _has_targets(self.data)
        if isinstance(self.task, Restoration | Anomaly) and self.task.corruption is not None:
            if has_targets:
                raise ValueError("task.corruption makes the input from a clean image; leave out data.targets or it")
            if self.preparation.intensity.kind == "zscore":
                raise ValueError(
                    "task.corruption has levels in the range 0..1, and preparation.intensity zscore has no such range: "
                    "take full_range, window or percentile"
                )
        elif not isinstance(self.task, Anomaly) and has_targets is False:
            needed = "a label image" if self.task.kind == "segmentation" else "a clean image, or task.corruption"
            raise ValueError(f"{self.task.kind} learns from pairs, so each case needs {needed}: give data.targets")
        return self

    @model_validator(mode="after")
    def _prior_fits_the_network(self) -> Self:
        if self.prior is None:
            return self
        if self.network.latent != "codes":
            has = f"a continuous latent ({self.network.latent})" if self.network.latent else "no latent"
            raise ValueError(
                f"a prior counts which code of a book follows which, and {self.network.kind} has {has}: take vqvae, or "
                "leave prior out"
            )
        grid = self.prior_grid
        if len(grid) != self.network.dims:
            raise ValueError(f"the network is {self.network.dims}-D, so prior.grid has as many axes; got {list(grid)}")
        require_bounded(grid)
        return self

    @property
    def prior_grid(self) -> tuple[int, ...]:
        """Codes along each axis that a prior sees at once: as told, or those of a training patch."""
        if self.prior is not None and self.prior.grid is not None:
            return self.prior.grid
        stride = self.network.receptive_field().stride
        return tuple(-(-length // stride) for length in self.training.patch)


def _unfit(
    objective: ObjectiveConfig, network: NetworkConfig, attribute: str, fitting: frozenset[str], has: Any
) -> str:
    wanted, there = " or ".join(sorted(fitting)), f"{network.kind} has {has or 'none'}"
    if attribute != "latent":
        return f"the objective {objective.kind} needs network.{attribute} {wanted}; {there}"
    kinds = ", ".join(kinds_with(fitting))
    return f"the objective {objective.kind} needs a network whose latent is {wanted}: {kinds}; {there}"


def _has_targets(data: DataConfig) -> bool | None:
    """None where only reading the list of cases would tell."""
    return data.targets is not None if data.kind == "folder" else None


def schema_text() -> str:
    """The JSON schema of a configuration, for editors: the content of configs/experiment.schema.json."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Experiment.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"
