"""Augmentation: what may happen to one training sample, all of it drawn from one numpy generator.

Samples are (C, R, W) or (C, S, R, W) in the prepared range. What moves a voxel moves image and target alike, labels by
nearest; what changes a value leaves labels alone, changes a clean target (restoration in pairs) by the same draw, and
damage (blur, noise) happens to the image only.

Only the affine is MONAI's: its flips and quarter turns cost .34 ms a sample where numpy's cost .006, its smoothing 1.07
against scipy's .23 (96 x 96 RGB, one thread), and scipy's bits do not depend on the number of threads.
"""

from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from medae.errors import SettingsError
from medae.settings import Settings

Axis = Literal["slices", "rows", "columns"]
Array = NDArray[Any]

_AXES: dict[Axis, int] = {"slices": -3, "rows": -2, "columns": -1}


class Pair(NamedTuple):
    """What the network sees and what it should say."""

    image: NDArray[np.float32]
    target: Array | None
    """Whole numbers are labels, real numbers a clean image."""


class Sometimes(Settings):
    """Base of what happens to a part of the samples."""

    probability: float = Field(default=0.5, gt=0, le=1)


class Affine(Sometimes):
    """A turn and a change of size in the plane of rows and columns; what comes in from beyond the border is mirrored.

    In the plane only: the distance of slices is another one, and turning across it would bend anatomy.
    """

    rotation_degrees: float = Field(default=15, ge=0, le=180)
    """At most so far to either side."""
    scale: float = Field(default=0.1, ge=0, lt=1)
    """At most so much larger or smaller."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        transform = _affine(self, sample.image.ndim - 1)
        # the same bit stream under numpy's older interface, which is MONAI's
        transform.set_random_state(state=np.random.RandomState(rng.bit_generator))
        image = np.asarray(transform(sample.image), np.float32)
        if sample.target is None:
            return Pair(image, None)
        mode = "nearest" if sample.target.dtype.kind in "bui" else "bilinear"
        target = np.asarray(transform(sample.target.astype(np.float32), mode=mode, randomize=False))
        return Pair(image, target.astype(sample.target.dtype))


class Intensity(Sometimes):
    """Gain, offset and gamma; the last for values in 0..1, beyond which it changes nothing."""

    gain: float = Field(default=0.1, ge=0, lt=1)
    offset: float = Field(default=0.1, ge=0)
    gamma: float = Field(default=0.2, ge=0)
    """The exponent lies between 1 / (1 + gamma) and 1 + gamma."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        gain = rng.uniform(1 - self.gain, 1 + self.gain)
        offset = rng.uniform(-self.offset, self.offset)
        exponent = (1 + self.gamma) ** rng.uniform(-1, 1)

        def change(values: Array) -> Array:
            curved = np.where((values > 0) & (values < 1), values.clip(0, 1) ** exponent, values)
            return (curved * gain + offset).astype(np.float32)

        return _both(sample, change)


class Stain(Sometimes):
    """More or less of each stain of a bright-field picture: haematoxylin, eosin, DAB.

    Tellez et al. 2018 (doi:10.1109/TMI.2018.2820199), in optical density with Ruifrok's stain matrix. Needs RGB in
    0..1 (`intensity: full_range`).
    """

    strength: PositiveFloat = 0.05
    """Each stain's amount is multiplied by 1 +- strength and moved by +- strength, in units of optical density."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        if len(sample.image) != 3:
            raise SettingsError(f"stain jitter is for RGB pictures, this sample has {len(sample.image)} channel(s)")
        from skimage.color import hed_from_rgb, rgb_from_hed

        factor = rng.uniform(1 - self.strength, 1 + self.strength, 3)
        shift = rng.uniform(-self.strength, self.strength, 3)

        def change(values: Array) -> Array:
            density = -np.log(np.moveaxis(values, 0, -1).clip(1 / 255, 1))
            amounts = density @ hed_from_rgb
            light = np.exp(-(amounts * factor + shift) @ rgb_from_hed)
            return np.ascontiguousarray(np.moveaxis(light.clip(0, 1), -1, 0), np.float32)

        return _both(sample, change)


class Colour(Sometimes):
    """Another hue and more or less of it: RGB turned about the axis of greys, in the prepared range."""

    hue_degrees: float = Field(default=20, ge=0, le=180)
    """At most so far to either side."""
    saturation: float = Field(default=0.3, ge=0, le=1)
    """Multiplied by 1 +- saturation; 1 reaches from greys to twice the colour."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        if len(sample.image) != 3:
            raise SettingsError(f"colour jitter is for RGB pictures, this sample has {len(sample.image)} channel(s)")
        angle = np.radians(rng.uniform(-self.hue_degrees, self.hue_degrees))
        factor = rng.uniform(1 - self.saturation, 1 + self.saturation)
        matrix = _turn_of_colours(float(angle), float(factor))
        return _both(sample, lambda values: np.tensordot(matrix, values, 1))


class Invert(Sometimes):
    """1 - value: dark on light becomes light on dark. For values in 0..1."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        return _both(sample, lambda values: 1 - values)


class Blur(Sometimes):
    """Gaussian, in the plane of rows and columns."""

    probability: float = Field(default=0.2, gt=0, le=1)
    sigma: PositiveFloat = 1.5
    """Pixels, at most."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        from scipy.ndimage import gaussian_filter

        sigma = rng.uniform(0, self.sigma)
        still = (0.0,) * (sample.image.ndim - 2)
        return Pair(gaussian_filter(sample.image, (*still, sigma, sigma), mode="reflect"), sample.target)


class Noise(Sometimes):
    """White gaussian noise."""

    probability: float = Field(default=0.2, gt=0, le=1)
    level: PositiveFloat = 0.05
    """Standard deviation at most, in units of the prepared range."""

    def apply(self, sample: Pair, rng: np.random.Generator) -> Pair:
        level = np.float32(rng.uniform(0, self.level))
        return Pair(sample.image + level * rng.standard_normal(sample.image.shape, np.float32), sample.target)


class AugmentSettings(Settings):
    """What may happen to a training sample, in this order; nothing unless it is asked for."""

    flip: tuple[Axis, ...] = ()
    """Each of these axes is reversed in half of the samples."""
    rot90: bool = False
    """Turned by a random multiple of 90 degrees in the plane of rows and columns; of 180 where it is not square."""
    affine: Affine | None = None
    stain: Stain | None = None
    colour: Colour | None = None
    invert: Invert | None = None
    intensity: Intensity | None = None
    blur: Blur | None = None
    noise: Noise | None = None

    def __call__(self, sample: Pair, rng: np.random.Generator) -> Pair:
        """Raises SettingsError for stain or colour jitter on anything but RGB, and for slices of a 2-D sample."""
        sample = self._turned(sample, rng)
        for step in (self.affine, self.stain, self.colour, self.invert, self.intensity, self.blur, self.noise):
            if step is not None and rng.random() < step.probability:
                sample = step.apply(sample, rng)
        return sample

    def _turned(self, sample: Pair, rng: np.random.Generator) -> Pair:
        if "slices" in self.flip and sample.image.ndim < 4:
            raise SettingsError("augment.flip: a 2-D sample has no slices to reverse; leave `slices` out")
        axes = tuple(_AXES[name] for name in self.flip if rng.random() < 0.5)
        turns = 0
        if self.rot90:
            square = sample.image.shape[-1] == sample.image.shape[-2]
            turns = int(rng.integers(4)) if square else 2 * int(rng.integers(2))

        def move(values: Array) -> Array:
            return np.ascontiguousarray(np.rot90(np.flip(values, axes), turns, (-2, -1)))

        return Pair(move(sample.image), None if sample.target is None else move(sample.target))


def _both(sample: Pair, change: Any) -> Pair:
    """The change on the image, and on a clean target; never on labels."""
    target = sample.target
    if target is not None and target.dtype.kind == "f":
        target = change(target)
    return Pair(change(sample.image), target)


def _turn_of_colours(angle: float, factor: float) -> NDArray[np.float32]:
    """(3, 3): Rodrigues' rotation about (1, 1, 1), then the distance to the grey of the same mean times `factor`."""
    grey = np.full((3, 3), 1 / 3)
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turn = np.cos(angle) * (np.eye(3) - grey) + np.sin(angle) * across
    return np.asarray(grey + factor * turn, np.float32)


@cache
def _affine(settings: Affine, dims: int) -> Any:
    from monai.transforms import RandAffine

    still = (0.0,) * (dims - 2)
    angle = float(np.radians(settings.rotation_degrees))
    return RandAffine(
        prob=1,
        # in 3-D MONAI's first angle turns about the first axis, the slices
        rotate_range=angle if dims == 2 else (angle, 0.0, 0.0),
        scale_range=(*still, settings.scale, settings.scale),
        mode="bilinear",
        padding_mode="reflection",
    )
