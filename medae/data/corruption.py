"""Corruption: what turns a clean image into the noisy input that a restoring network learns from.

Levels are in units of the prepared intensity, where an image spans 0..1: the literature's sigma 25 is 25/255.
The noisy image is not clipped to 0..1, here or in published sigma-25 tables: clipping it first costs the classical
denoisers up to .3 dB, so whoever clips has to say so.

Two ways in, one model each: called on a batch while training (torch), `add_to` on a whole image when evaluating
(numpy). Torch is imported inside, so that settings can be read without it.
"""

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, model_validator

from medae.settings import Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LevelT = TypeVar("LevelT", float, "Tensor")


class Corruption(Settings):
    """Base of the corruptions: a level, and how noise of that level is drawn."""

    level: PositiveFloat | tuple[PositiveFloat, PositiveFloat]
    """One level, or (low, high): each sample gets its own, for a network that does not know it (blind)."""

    logarithmic: ClassVar[bool] = False
    """Whether a blind level is drawn uniformly in its logarithm."""

    @model_validator(mode="after")
    def _low_before_high(self) -> "Corruption":
        low, high = self.range
        if low > high:
            raise ValueError(f"a blind level is (low, high), got ({low:g}, {high:g})")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """(low, high); equal where the level is fixed."""
        return self.level if isinstance(self.level, tuple) else (self.level, self.level)

    def __call__(self, clean: "Tensor", generator: "torch.Generator") -> "Tensor":
        """(B, C, ...) clean -> noisy, same shape, device and floating type; each sample of the batch at its own level.

        Drawn on the generator's device: one on the CPU gives the same noise for every accelerator, one on the
        accelerator saves the transfer.
        """
        import torch

        low, high = self.range
        at = clean.detach().to(generator.device, torch.float32)
        level = torch.full((len(at),), low, device=at.device)
        if low < high:
            level = self._between(low, high, torch.rand(len(at), generator=generator, device=at.device))
        return self._corrupt(at, level.reshape(-1, *[1] * (at.ndim - 1)), generator).to(clean.device, clean.dtype)

    def add_to(self, pixels: NDArray[np.floating], seed: int) -> NDArray[np.float32]:
        """One whole prepared image of any shape -> noisy float32; a function of `seed` alone.

        A gaussian of fixed level is `default_rng(seed).standard_normal(shape) * level`, as in published protocols.
        Raises TypeError for integers: their range is not 0..1.
        """
        if pixels.dtype.kind != "f":
            raise TypeError(f"noise levels are in units of the prepared range 0..1, got {pixels.dtype} pixels")
        rng = np.random.default_rng(seed)
        low, high = self.range
        level = self._between(low, high, rng.random()) if low < high else low
        return self._corrupt_numpy(pixels.astype(np.float64), level, rng).astype(np.float32)

    def _between(self, low: float, high: float, uniform: LevelT) -> LevelT:
        if self.logarithmic:
            ratio: LevelT = (high / low) ** uniform
            return low * ratio
        return low + (high - low) * uniform

    @abstractmethod
    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        """Float32 `clean` on the generator's device; `level` (B, 1, ...)."""

    @abstractmethod
    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """The same law in numpy, one level for the whole image."""


class GaussianNoise(Corruption):
    """Additive white noise; `level` is its standard deviation."""

    kind: Literal["gaussian"] = "gaussian"

    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        return clean + level * _normal(clean, generator)

    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        return clean + rng.standard_normal(clean.shape) * level


class PoissonNoise(Corruption):
    """Shot noise; `level` is the peak: the mean number of photons where the image is 1, so more is cleaner.

    Mean is the clean value, variance is value / peak. Values below 0 have no photons. A blind peak is drawn uniformly
    in its logarithm, because what changes the picture is the ratio of two peaks.
    """

    kind: Literal["poisson"] = "poisson"
    logarithmic: ClassVar[bool] = True

    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        import torch

        return torch.poisson(clean.clamp(min=0) * level, generator=generator) / level

    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        counts: NDArray[np.float64] = rng.poisson(clean.clip(min=0) * level) / level
        return counts


class RicianNoise(Corruption):
    """Magnitude of a complex signal with gaussian noise in both parts, as in MR; `level` is each part's standard
    deviation (Gudbjartsson and Patz 1995, doi:10.1002/mrm.1910340618). Dark regions are raised, not only blurred."""

    kind: Literal["rician"] = "rician"

    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        import torch

        real = clean + level * _normal(clean, generator)
        return torch.hypot(real, level * _normal(clean, generator))

    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        real = clean + rng.standard_normal(clean.shape) * level
        magnitude: NDArray[np.float64] = np.hypot(real, rng.standard_normal(clean.shape) * level)
        return magnitude


class SmoothNoise(Corruption):
    """Base of noise that neighbours share: a gaussian draw every `cell` voxels, and linear between them."""

    cell: float = Field(default=8, ge=1)
    """Voxels from one draw to the next along each axis. 8: the 16 draws along the 128 pixels of the paper."""
    background: float | None = None
    """Where no channel is above it, nothing is added: the air around a head is as black in every image. null: added
    everywhere."""

    def _where(self, clean: Any, channels: int) -> Any:
        """1 where noise may lie, of the same kind as `clean`; `channels`: the axis of its channels."""
        return 1.0 if self.background is None else (clean > self.background).any(channels, keepdims=True)


class CoarseNoise(SmoothNoise):
    """What a denoising autoencoder for anomalies is trained with: too large for it to be averaged away, so that the
    network must know what belongs there (Kascenas 2022, https://proceedings.mlr.press/v172/kascenas22a.html).

    `level` is the standard deviation of a draw, the paper's .2; over all places that of the noise is (2/3)^(d/2) of it
    in d dimensions, for what lies between draws is their mean. Zero-mean; the grid lies elsewhere for each sample.
    """

    kind: Literal["coarse"] = "coarse"

    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        noisy: Tensor = clean + self._where(clean, 1) * level * _smooth(clean, self.cell, generator)
        return noisy

    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        noisy: NDArray[np.float64] = clean + self._where(clean, 0) * level * _smooth_numpy(clean, self.cell, rng)
        return noisy


class BlobNoise(SmoothNoise):
    """Spots here and there: the product of two smooth fields, one of `cell`, one of twice as much, so that most of the
    image is left nearly as it is and a few places change a lot, as lesions do. `level` is the standard deviation over
    all places. Zero-mean."""

    kind: Literal["blob"] = "blob"

    def _corrupt(self, clean: "Tensor", level: "Tensor", generator: "torch.Generator") -> "Tensor":
        fields = [_smooth(clean, self.cell * factor, generator) for factor in (1, 2)]
        noisy: Tensor = clean + self._where(clean, 1) * level * fields[0] * fields[1] * 1.5 ** (clean.ndim - 2)
        return noisy

    def _corrupt_numpy(self, clean: NDArray[np.float64], level: float, rng: np.random.Generator) -> NDArray[np.float64]:
        fields = [_smooth_numpy(clean, self.cell * factor, rng) for factor in (1, 2)]
        long = sum(size > 1 for size in clean.shape[1:])
        noisy: NDArray[np.float64] = clean + self._where(clean, 0) * level * fields[0] * fields[1] * 1.5**long
        return noisy


CorruptionConfig = Annotated[
    GaussianNoise | PoissonNoise | RicianNoise | CoarseNoise | BlobNoise, Field(discriminator="kind")
]


def _smooth(like: "Tensor", cell: float, generator: "torch.Generator") -> "Tensor":
    """Draws every `cell` voxels of all axes but the first two, the grid elsewhere for each sample of the batch."""
    import torch

    drawn = []
    for sample in like:
        sizes = [int((size - 1) / cell) + 3 for size in sample.shape[1:]]
        field = torch.randn((len(sample), *sizes), generator=generator, device=generator.device)
        starts = torch.rand(len(sizes), generator=generator, device=generator.device).tolist()
        for axis, (size, start) in enumerate(zip(sample.shape[1:], starts, strict=True), 1):
            place = torch.arange(size, device=field.device) / cell + start
            before = place.long()
            part = (place - before).reshape(-1, *[1] * (field.ndim - 1 - axis))
            field = torch.lerp(field.index_select(axis, before), field.index_select(axis, before + 1), part)
        drawn.append(field)
    return torch.stack(drawn)


def _smooth_numpy(like: NDArray[np.float64], cell: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The same of one image: all axes but the first. An axis of one voxel, as the slices of a picture, is none."""
    sizes = [int((size - 1) / cell) + 3 if size > 1 else 1 for size in like.shape[1:]]
    field = rng.standard_normal((len(like), *sizes))
    for axis, size in enumerate(like.shape[1:], 1):
        if size == 1:
            continue
        place = np.arange(size) / cell + rng.random()
        before = place.astype(int)
        part = (place - before).reshape(-1, *[1] * (field.ndim - 1 - axis))
        field = field.take(before, axis) * (1 - part) + field.take(before + 1, axis) * part
    return field


def _normal(like: "Tensor", generator: "torch.Generator") -> "Tensor":
    import torch

    return torch.randn(like.shape, generator=generator, device=like.device)
