"""Checks: facts of an input that need no network: modality, voxel size, extent, saturation, sharpness.

Each is learnt as a range from the images that a model was trained on. How far outside is too far is stated here, in the
units in which the range is wide: it is a matter of kind (another scanner, another protocol), not of probability, and so
beside the gate's p-value.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from medae.preparation import Prepared
from medae.settings import Settings
from medae.verdict import Degree, Reason

SPACING = {"review": 1.25, "reject": 2.0}
"""So many times finer or coarser than any training image."""
EXTENT = {"review": 2.0, "reject": 4.0}
"""So many times smaller than any training image; of volumes, larger too."""
SATURATION = {"review": 0.05, "reject": 0.25}
"""So much more of the image at one end of its range than in any training image."""
SHARPNESS = {"review": 0.5, "reject": 1.5}
"""So many widths of the training images' range below or above it."""


class Range(Settings):
    """Of the training images, from the lowest to the highest."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        return cls(low=float(min(values)), high=float(max(values)))

    @property
    def width(self) -> float:
        return self.high - self.low

    def factor(self, value: float) -> float:
        """How many times below or above the range a positive value is; 1 inside."""
        if value <= 0:
            return np.inf
        return max(self.low / value, value / self.high, 1.0)

    def __str__(self) -> str:
        return f"{self.low:.3g}" if self.width < 1e-9 * max(abs(self.high), 1) else f"{self.low:.3g}..{self.high:.3g}"


class Facts(NamedTuple):
    """What is checked of one image."""

    modality: str | None
    spacing_mm: tuple[float, ...] | None
    extent: tuple[int, ...]
    """Voxels on the network's grid, along the axes that it looks along."""
    saturation: float
    """0..1: the part of the voxels at the two ends of the stored range."""
    sharpness: float
    """Energy of the Laplacian to that of the contrast, as a natural logarithm: blur lowers it, noise raises it."""


def facts_of(prepared: Prepared, dims: int) -> Facts:
    """Of an image as the network sees it. dims: whether it looks along slices."""
    geometry, original = prepared.image.geometry, prepared.original
    return Facts(
        modality=original.source.modality,
        spacing_mm=None if original.geometry.unit != "mm" else original.geometry.spacing_mm[3 - dims :],
        extent=geometry.shape[3 - dims :],
        saturation=_saturation(original.pixels),
        sharpness=_sharpness(prepared.image.pixels),
    )


class InputChecks(Settings):
    """What the training images of a model were like."""

    dims: int
    modalities: tuple[str, ...] = ()
    """DICOM's, such as CT; none: the training images did not say."""
    spacing_mm: tuple[Range, ...] | None = None
    """Along the axes that the network looks along; None: pictures of unknown size."""
    extent: tuple[Range, ...]
    saturation: Range
    sharpness: Range

    @classmethod
    def learn(cls, seen: Sequence[Facts], dims: int) -> Self:
        """From the facts of training images, at least one."""
        spacings = [facts.spacing_mm for facts in seen]
        known = [spacing for spacing in spacings if spacing is not None]
        return cls(
            dims=dims,
            modalities=tuple(sorted({facts.modality for facts in seen if facts.modality})),
            spacing_mm=_ranges(known) if len(known) == len(spacings) else None,
            extent=_ranges([facts.extent for facts in seen]),
            saturation=Range.of([facts.saturation for facts in seen]),
            sharpness=Range.of([facts.sharpness for facts in seen]),
        )

    def __call__(self, facts: Facts) -> list[Reason]:
        """What speaks against an image."""
        return [
            *self._modality(facts),
            *self._spacing(facts),
            *self._extent(facts),
            *self._saturation(facts),
            *self._sharpness(facts),
        ]

    def _modality(self, facts: Facts) -> Iterator[Reason]:
        if self.modalities and facts.modality and facts.modality not in self.modalities:
            yield Reason("reject", f"the model knows {', '.join(self.modalities)} images, this one is {facts.modality}")

    def _spacing(self, facts: Facts) -> Iterator[Reason]:
        if self.spacing_mm is None:
            return
        if facts.spacing_mm is None:
            yield Reason("review", f"the image does not say its voxel size; the model knows {_mm(self.spacing_mm)}")
            return
        far = max(known.factor(value) for known, value in zip(self.spacing_mm, facts.spacing_mm, strict=True))
        if degree := _degree(far, SPACING):
            here = " x ".join(f"{value:.3g}" for value in facts.spacing_mm)
            yield Reason(degree, f"voxels of {here} mm; the model knows {_mm(self.spacing_mm)}")

    def _extent(self, facts: Facts) -> Iterator[Reason]:
        pairs = list(zip(self.extent, facts.extent, strict=True))
        far = max(known.low / value for known, value in pairs)
        if self.dims == 3:  # a part of a body or a whole one; pictures are tiles of something larger anyway
            far = max(far, *(value / known.high for known, value in pairs))
        if degree := _degree(far, EXTENT):
            here, usual = (" x ".join(map(str, shape)) for shape in (facts.extent, self.extent))
            yield Reason(degree, f"{here} voxels on the model's grid; the model knows {usual}")

    def _saturation(self, facts: Facts) -> Iterator[Reason]:
        if degree := _degree(facts.saturation - self.saturation.high, SATURATION):
            yield Reason(
                degree,
                f"{facts.saturation:.0%} of the voxels are at an end of the image's range; the model knows up to "
                f"{self.saturation.high:.0%}",
            )

    def _sharpness(self, facts: Facts) -> Iterator[Reason]:
        width = max(self.sharpness.width, 0.1)  # of few images alike, a tenth of a factor e
        below, above = self.sharpness.low - facts.sharpness, facts.sharpness - self.sharpness.high
        if degree := _degree(max(below, above) / width, SHARPNESS):
            what = "more blurred" if below > above else "sharper or noisier"
            yield Reason(degree, f"the image is {what} than any that the model was made from")


def _degree(far: float, limits: dict[str, float]) -> Degree | None:
    if far > limits["reject"]:
        return "reject"
    return "review" if far > limits["review"] else None


def _ranges(rows: Sequence[Sequence[float]]) -> tuple[Range, ...]:
    return tuple(Range.of(column) for column in zip(*rows, strict=True))


def _mm(ranges: Sequence[Range]) -> str:
    return " x ".join(map(str, ranges)) + " mm"


def _saturation(pixels_CSRW: NDArray[Any]) -> float:
    """The part of the voxels that hold the lowest or the highest value, the larger of the two."""
    low, high = pixels_CSRW.min(), pixels_CSRW.max()
    if low == high:
        return 1.0
    return max(float((pixels_CSRW == low).mean()), float((pixels_CSRW == high).mean()))


def _sharpness(pixels_CSRW: NDArray[np.float32]) -> float:
    """In the plane of rows and columns, the mean over slices and channels."""
    values = pixels_CSRW.astype(np.float64)
    inner = values[..., 1:-1, 1:-1]
    around = values[..., :-2, 1:-1] + values[..., 2:, 1:-1] + values[..., 1:-1, :-2] + values[..., 1:-1, 2:]
    energy = np.square(4 * inner - around).mean() if inner.size else 0.0
    return float(0.5 * np.log((energy + 1e-10) / (values.var() + 1e-10)))
