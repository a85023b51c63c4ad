"""Preparation: from an image to what the network sees, and back. Saved with the model."""

from dataclasses import dataclass, replace
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, field_validator, model_validator

from medae.errors import LimitExceeded, UnfitImage
from medae.image import Image
from medae.io.guard import DEFAULT_LIMITS
from medae.resample import resample_onto, standard_grid
from medae.settings import Settings

_HIGHEST = float(np.finfo(np.float32).max) / 4
"""Networks compute in float32; the difference of two values must fit as well."""

_FLAT = float(np.finfo(np.float32).tiny)
"""A range below this has no reciprocal in float32."""

_LOUD = 2.0
"""The root mean square of a picture in 0..1 is at most 1, and below this with the strongest noise on it."""


class FullRange(Settings):
    """Integers by the range of their type (uint8: 0..255 -> 0..1); real numbers lie in 0..1 already.

    Real numbers of another scale, such as HU, are refused: nothing says what they would be in 0..1.
    """

    kind: Literal["full_range"] = "full_range"

    def range_of(self, pixels: NDArray[Any]) -> tuple[float, float]:
        if pixels.dtype.kind in "ui":
            return 0.0, float(np.iinfo(pixels.dtype).max)
        if np.linalg.norm(pixels.astype(np.float32, copy=False)) > _LOUD * np.sqrt(pixels.size):
            raise UnfitImage(
                f"this model takes whole numbers in the range of their type, or real numbers in 0..1; this image has "
                f"real numbers from {pixels.min():g} to {pixels.max():g}. Scale them to 0..1, or choose another model."
            )
        return 0.0, 1.0


class Window(Settings):
    """lower..upper -> 0..1, values beyond are clipped: HU windows of CT.

    Restoration gives clipped voxels back as they came.
    """

    kind: Literal["window"] = "window"
    lower: float
    upper: float

    @model_validator(mode="after")
    def _lower_is_lower(self) -> "Window":
        if self.lower >= self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower:g} and {self.upper:g}")
        return self

    def range_of(self, pixels: NDArray[Any]) -> tuple[float, float]:
        return self.lower, self.upper


class Percentile(Settings):
    """The image's own percentiles -> 0..1, values beyond are clipped: MR, whose units mean nothing."""

    kind: Literal["percentile"] = "percentile"
    lower: float = Field(default=0.5, ge=0, lt=100)
    upper: float = Field(default=99.5, gt=0, le=100)

    @model_validator(mode="after")
    def _lower_is_lower(self) -> "Percentile":
        if self.lower >= self.upper:
            raise ValueError(f"lower must be below upper, got {self.lower:g} and {self.upper:g}")
        return self

    def range_of(self, pixels: NDArray[Any]) -> tuple[float, float]:
        low, high = (float(value) for value in np.percentile(pixels, [self.lower, self.upper]))
        return low, high


class ZScore(Settings):
    """(value - mean) / standard deviation of the whole image; nothing is clipped."""

    kind: Literal["zscore"] = "zscore"

    def range_of(self, pixels: NDArray[Any]) -> tuple[float, float]:
        mean, deviation = float(pixels.mean(dtype=np.float64)), float(pixels.std(dtype=np.float64))
        return mean, mean + deviation


Intensity = Annotated[FullRange | Window | Percentile | ZScore, Field(discriminator="kind")]


@dataclass(frozen=True)
class Prepared:
    """An image on the network's grid, and the way back."""

    image: Image
    """float32 on the network's grid."""
    original: Image
    lower: float
    """The original value that became 0."""
    scale: float
    """How many original units make 1."""
    clipped: bool
    """Whether values beyond 0..1 were cut off."""

    def restore(self, values_CSRW: NDArray[Any], *, labels: bool = False) -> Image:
        """Values on the network's grid -> an image in the original's place, with its source. Labels: by nearest."""
        made = replace(self.image, pixels=values_CSRW)
        return resample_onto(made, self.original.geometry, labels=labels)

    def restore_intensity(self, values_CSRW: NDArray[np.float32]) -> Image:
        """Network values -> the original's place and units, float32; what was clipped comes back as it was."""
        image = self.restore(values_CSRW)
        pixels = image.pixels * np.float32(self.scale) + np.float32(self.lower)
        if self.clipped:
            before = self.original.pixels
            beyond = (before < self.lower) | (before > self.lower + self.scale)
            if before.shape[0] != pixels.shape[0]:  # grey that was stored as colour
                before, beyond = before[:1], beyond[:1]
            pixels = np.where(beyond, before, pixels).astype(np.float32)
        return image.with_pixels(pixels)


class Preparation(Settings):
    """What is done to every image before the network sees it; the same in training and in use."""

    channels: Literal[1, 3] = 1
    """1: grey, 3: RGB. Grey stored as RGB (three equal channels) is taken as grey."""
    orientation: str | None = None
    """Where slices, rows and columns point ("SPL": axial as radiologists see it); None: as the file has them."""
    spacing_mm: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Between (slices, rows, columns); None: as the file has it."""
    intensity: Intensity = FullRange()

    @field_validator("orientation")
    @classmethod
    def _three_directions(cls, value: str | None) -> str | None:
        pairs = ("LR", "PA", "IS")
        if value is not None and sorted(next((n for n, p in enumerate(pairs) if c in p), -1) for c in value) != [
            0,
            1,
            2,
        ]:
            raise ValueError(f"three letters, one each of L/R, P/A, I/S, such as SPL; got {value!r}")
        return value

    def apply(self, image: Image) -> Prepared:
        """An image -> the network's grid and range.

        Raises UnfitImage for values that are not finite or of another scale, the wrong channels, or a picture of
        unknown size where the model works in mm; LimitExceeded where the network's grid would be too large.
        """
        grey = self._channels_of(image)
        _require_numbers(grey.pixels)
        lower, scale = self.range_of(grey.pixels)
        on_grid = self._on_grid(grey)
        values = stretched(on_grid.pixels, lower, scale)
        clipped = self.intensity.kind in ("window", "percentile")
        if clipped:
            np.clip(values, 0, 1, out=values)
        return Prepared(on_grid.with_pixels(values), image, lower, scale, clipped)

    def range_of(self, pixels: NDArray[Any]) -> tuple[float, float]:
        """(the value that becomes 0, how many units make 1); of a flat image nothing is stretched."""
        lower, upper = self.intensity.range_of(pixels)
        return lower, upper - lower if upper - lower >= _FLAT else 1.0

    def _channels_of(self, image: Image) -> Image:
        if image.volumes > 1:
            raise UnfitImage(f"this image has {image.volumes} volumes; training takes one volume an image. Split it.")
        if image.channels == self.channels:
            return image
        pixels = image.pixels
        if self.channels == 1 and image.channels == 3 and all((pixels[0] == plane).all() for plane in pixels[1:]):
            return image.with_pixels(pixels[:1])
        wanted = {1: "grey images (1 channel)", 3: "colour images (3 channels: red, green, blue)"}[self.channels]
        raise UnfitImage(
            f"this model takes {wanted}; this image has {image.channels}. Convert it, or choose another model."
        )

    def _on_grid(self, image: Image) -> Image:
        if image.geometry.unit == "px":
            if self.spacing_mm is not None:
                raise UnfitImage(
                    f"this model works at a spacing of {self.spacing_mm} mm, and this picture does not say how large "
                    "its pixels are. Send a file that does (DICOM, NIfTI)."
                )
            return image  # a picture has no anatomical directions either
        grid = standard_grid(image.geometry, orientation=self.orientation, spacing_mm=self.spacing_mm)
        if prod(grid.shape) > DEFAULT_LIMITS.voxels:
            raise LimitExceeded(
                f"at this model's spacing of {self.spacing_mm} mm the image has "
                f"{' x '.join(map(str, grid.shape))} voxels, at most {DEFAULT_LIMITS.voxels} in all are allowed. Check "
                "the voxel size in its header, or crop it."
            )
        return resample_onto(image, grid, fill=float(image.pixels.min()))

    def apply_labels(self, labels: Image) -> Image:
        """A label image on the network's grid, by nearest; for training and evaluation targets."""
        if labels.geometry.unit == "px":
            return labels
        grid = standard_grid(labels.geometry, orientation=self.orientation, spacing_mm=self.spacing_mm)
        return resample_onto(labels, grid, labels=True)


def stretched(pixels: NDArray[Any], lower: float, scale: float) -> NDArray[np.float32]:
    """(pixels - lower) / scale as float32, a copy; in double precision where float32 does not hold the pixels."""
    if np.can_cast(pixels.dtype, np.float32):
        # a picture's channels lie side by side, and all that comes after works on planes
        values = pixels.astype(np.float32, order="C")
        values -= np.float32(lower)
        values *= np.float32(1 / scale)
        return values
    values = np.empty(pixels.shape, np.float32)
    for index in np.ndindex(pixels.shape[:2]):
        values[index] = (pixels[index] - np.float64(lower)) / scale
    return values


def _require_numbers(pixels: NDArray[Any]) -> None:
    if pixels.dtype.kind != "f":
        return
    finite = np.isfinite(pixels)
    if not finite.all():
        raise UnfitImage(
            f"{pixels.size - np.count_nonzero(finite)} of {pixels.size} values are not finite (NaN or infinite). "
            "Replace them, for example by the value of air or background, and send the image again."
        )
    low, high = float(pixels.min()), float(pixels.max())
    if max(-low, high) > _HIGHEST:
        raise UnfitImage(
            f"this image has values from {low:.3g} to {high:.3g}; networks compute with numbers up to {_HIGHEST:.2g}. "
            "Scale it down, and send it again."
        )
