"""Anomaly: how unlike normal images this one is, and where."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from medae.data.corruption import CorruptionConfig
from medae.errors import UnfitImage, UsageError
from medae.image import Image
from medae.preparation import Prepared
from medae.scores import ELBO, NLL, SSIM, Found, MapScore, Residual, ScoreConfig, StatisticScore
from medae.scores.median import median_filter
from medae.scores.regions import regions
from medae.scores.residual import SIGMA_AT_64
from medae.settings import Settings
from medae.tasks.base import Task, voxel_size
from medae.tiles import ReceptiveField


class Foreground(Settings):
    """Where there is something to look at, by its intensity on the network's grid (the mean over channels)."""

    above: float | None = None
    """Voxels above it: MR, where air is black."""
    below: float | None = None
    """Voxels below it: slides, where glass is bright."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.above is None and self.below is None:
            raise ValueError("a foreground is above or below an intensity; give one of them")
        if self.above is not None and self.below is not None and self.above >= self.below:
            raise ValueError(f"no intensity is above {self.above:g} and below {self.below:g}: exchange both")
        return self

    def __call__(self, pixels: NDArray[Any]) -> NDArray[np.bool_]:
        """(C, *spatial) -> (*spatial)."""
        grey = pixels.mean(axis=0, dtype=np.float32)
        inside = np.ones(grey.shape, bool)
        if self.above is not None:
            inside &= grey > self.above
        if self.below is not None:
            inside &= grey < self.below
        return inside


class Anomaly(Task):
    """What the back end says of an image -> a map of each score (maps, *spatial) and one number per score."""

    kind: Literal["anomaly"] = "anomaly"
    scores: tuple[ScoreConfig, ...] = Field(default=(Residual(),), min_length=1)
    """The first decides; the map of the first that has one is the answer."""
    foreground: Foreground | None = None
    """Only these voxels count, and the map is 0 elsewhere; null: all."""
    median: int | None = Field(default=None, ge=3, le=31)
    """Voxels along a side of a median filter over the maps, within slices: specks go. An odd number; null: none."""
    corruption: CorruptionConfig | None = None
    """What is done to normal images in training: a denoising autoencoder, which takes away what it does not know."""

    @model_validator(mode="before")
    @classmethod
    def _of_card_format_1(cls, data: Any) -> Any:
        """Cards of format 1 had one residual."""
        if not isinstance(data, Mapping) or "scores" in data or not {"residual", "reducer", "top_percent"} & set(data):
            return data
        kept = {name: value for name, value in data.items() if name not in ("residual", "reducer", "top_percent")}
        reducer = {"kind": data.get("reducer", "mean")}
        if reducer["kind"] == "top_percent":
            reducer["percent"] = data.get("top_percent", 5)
        return kept | {
            "scores": [{"kind": "residual", "distance": data.get("residual", "l2"), "reducer": reducer}],
        }

    @field_validator("median")
    @classmethod
    def _odd(cls, value: int | None) -> int | None:
        if value is not None and value % 2 == 0:
            raise ValueError(f"a median filter has a middle, so its size is odd; got {value}")
        return value

    @model_validator(mode="after")
    def _scores_hold_together(self) -> Self:
        keys = [score.key for score in self.scores]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise ValueError(f"two scores are called {twice}; give one of them another `name`")
        single = [score.key for score in self.scores if not score.after]
        nats = {score.key for score in self.scores if isinstance(score, NLL | ELBO)}
        for score in self.scores:
            negative = [name for name in score.after if name in nats]
            if isinstance(score, StatisticScore) and negative:
                raise ValueError(
                    f"{score.key}: members count by their logarithm, and {negative[0]}, a log density itself, can be "
                    "negative: take rank_average for both, or another member"
                )
            unknown = [name for name in score.after if name not in single]
            if unknown:
                raise ValueError(f"{score.key}: {unknown[0]} is none of the single scores {', '.join(single)}")
        if not self.mapped:
            raise ValueError("at least one score must have a map, such as residual")
        return self

    @property
    def mapped(self) -> tuple[MapScore, ...]:
        """The scores that have a map, in order."""
        return tuple(score for score in self.scores if isinstance(score, MapScore))

    @property
    def score_name(self) -> str:
        """The score that decides."""
        return self.scores[0].key

    @property
    def while_training(self) -> Self:
        """The scores that need nothing fitted, what a validation can look at; first the one that chooses the weights,
        by how well normal images are reconstructed."""
        plain = [score for score in self.mapped if not score.fits]
        chooser = next((score for score in plain if isinstance(score, Residual | SSIM | NLL | ELBO)), Residual())
        rest = [score for score in plain if score.key != chooser.key]
        return self.model_copy(update={"scores": (chooser, *rest)})

    def at_size(self, pixels: int) -> Self:
        """Windows that grow with the images, at their size for patches of so many pixels."""
        sized = [
            score.model_copy(update={"sigma": max(0.5, SIGMA_AT_64 * pixels / 64)})
            if isinstance(score, SSIM) and score.sigma is None
            else score
            for score in self.scores
        ]
        return self.model_copy(update={"scores": tuple(sized)})

    def evidence(self, channels: int) -> dict[str, int]:
        """What the back end must say, in the order of its channels -> how many channels each has."""
        needed: dict[str, int] = {}
        for score in self.mapped:
            needed |= score.evidence(channels)
        return needed

    def network_channels(self, channels_in: int) -> int:
        return channels_in

    def channels_out(self, channels_in: int) -> int:
        return sum(self.evidence(channels_in).values())

    def seen(self, field: ReceptiveField) -> ReceptiveField:
        """Scores look farther than the network: windows, cells, filters."""
        radius = field.radius + max(score.radius for score in self.mapped) + (self.median or 1) // 2
        stride = int(np.lcm.reduce([field.stride, *(score.step for score in self.mapped)]))
        tileable = field.tileable and not any(score.whole for score in self.mapped)
        return field.model_copy(update={"stride": stride, "radius": radius, "tileable": tileable})

    def check_threshold(self, threshold: float | None) -> None:
        if threshold is not None and not 0 < threshold < 1:
            raise UsageError(
                f"the threshold of an anomaly model is a false-positive rate between 0 and 1, got {threshold:g}"
            )

    def decide(self, output: NDArray[Any], x: NDArray[Any], threshold: float | None) -> NDArray[Any]:
        """The map of each score that has one, float32. The threshold is the calibration's: it is not of a voxel."""
        evidence, at = {}, 0
        for name, channels in self.evidence(len(x)).items():
            evidence[name] = output[at : at + channels]
            at += channels
        made = [self._filtered(score.map(evidence, x)) for score in self.mapped]
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _filtered(self, map_: NDArray[Any]) -> NDArray[Any]:
        return map_ if self.median is None else median_filter(map_, self.median)

    def answer(self, decided: NDArray[Any], prepared: Prepared) -> Image:
        shown = decided[:1]
        if self.foreground is not None:
            shown = shown * self.foreground(prepared.image.pixels)
        return prepared.restore(shown)

    def measure(
        self, decided: NDArray[Any], answer: Image, prepared: Prepared, weights: Mapping[str, NDArray[Any]]
    ) -> dict[str, float]:
        return self.values(decided, prepared.image.pixels, weights)

    def regions(self, answer: Image, level: float) -> dict[str, float]:
        """How many connected parts of the map lie above `level`, and the size of the largest."""
        found = regions(answer.pixels[0], level)
        largest = found[0].voxels if found else 0
        size = voxel_size(answer.geometry)
        numbers = {"regions": float(len(found)), "largest_region_voxels": float(largest)}
        return numbers if size is None else numbers | {f"largest_region_{size.unit}": largest * size.value}

    def values(
        self, maps_: NDArray[Any], pixels: NDArray[np.float32], weights: Mapping[str, NDArray[Any]]
    ) -> dict[str, float]:
        """Every score, from the maps and pixels on the network's grid. Raises UnfitImage where one is no number."""
        inside = None if self.foreground is None else self.foreground(pixels)
        if inside is not None and not inside.any():
            raise UnfitImage(
                "there is nothing in this image where the model would look: all of it is background by the model's "
                "foreground setting. Send an image that shows something, or choose another model."
            )
        maps = {score.key: maps_[at : at + 1] for at, score in enumerate(self.mapped)}
        two_sided = frozenset(score.key for score in self.scores if score.two_sided)
        values: dict[str, float] = {}
        for score in sorted(self.scores, key=lambda score: bool(score.after)):  # members come first
            value = score.value(Found(maps, pixels, inside, weights, values, two_sided))
            if not np.isfinite(value):
                raise UnfitImage(
                    f"the score {score.key} of this image is not a number: the image is too far from what the model "
                    "was made for"
                )
            values[score.key] = value
        return {score.key: values[score.key] for score in self.scores}
