"""Image and Geometry: pixels that know where they lie.

Axes are named everywhere in this order: C channels, S slices, R rows, W columns.
One convention inside: affines map (slice, row, column) to RAS+ millimetres; readers convert once, at the border.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medae.errors import GeometryError, UnreadableImage

Shape3 = tuple[int, int, int]

# (slice, row, column) -> (x, y, z) of a picture: as an axial slice lies, columns to the left, rows to posterior
_PICTURE_AXES = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [1.0, 0.0, 0.0]])


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where a grid of voxels lies. Valid if it exists.

    shape: (slices, rows, columns), each at least 1.
    affine: 4x4, (slice, row, column, 1) of a voxel's centre -> RAS+ in `unit`.
    unit: "mm", or "px" for a picture whose size is unknown; sizes in mm are then refused, never guessed.
    Raises GeometryError for an empty shape and for an affine that is not finite, not affine or singular.
    """

    shape: Shape3
    affine: NDArray[np.float64]
    unit: Literal["mm", "px"] = "mm"
    frame_of_reference: str | None = None
    """DICOM Frame of Reference UID, where one is known."""

    def __post_init__(self) -> None:
        shape = tuple(int(length) for length in self.shape)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(f"a grid has three axes of at least one voxel (slices, rows, columns), got {shape}")
        affine = np.array(self.affine, np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise GeometryError(
                f"an affine is 4x4 and finite, got shape {affine.shape} with values that are not numbers"
            )
        if not np.array_equal(affine[3], [0, 0, 0, 1]):
            raise GeometryError("the last row of an affine is 0 0 0 1; this one is a projection")
        _require_regular(affine)
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @classmethod
    def picture(
        cls, rows: int, columns: int, *, slices: int = 1, spacing_mm: tuple[float, float] | None = None
    ) -> Self:
        """The place of a picture: `spacing_mm` is (row, column) spacing; without it the unit is px."""
        affine = np.eye(4)
        scale = (1.0, 1.0, 1.0) if spacing_mm is None else (1.0, *spacing_mm)
        affine[:3, :3] = _PICTURE_AXES * scale
        return cls((slices, rows, columns), affine, "px" if spacing_mm is None else "mm")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbours along (slices, rows, columns), in `unit`."""
        s, r, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return s, r, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing in mm. Raises GeometryError for a picture of unknown size."""
        if self.unit != "mm":
            raise GeometryError("this picture does not say how large its pixels are, so sizes in mm are unknown")
        return self.spacing

    @property
    def axis_codes(self) -> str:
        """Where each array axis points, e.g. "SPL": slices to superior, rows to posterior, columns to left."""
        codes = ["", "", ""]
        weight = np.abs(self.affine[:3, :3] / np.asarray(self.spacing))
        for _ in range(3):  # the clearest axis first, so that oblique grids still get three different letters
            world, axis = np.unravel_index(int(np.argmax(weight)), weight.shape)
            codes[axis] = ("LR", "PA", "IS")[world][int(self.affine[world, axis] > 0)]
            weight[world, :] = -1
            weight[:, axis] = -1
        return "".join(codes)

    def world(self, index: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) voxel indices -> (..., 3) RAS+ coordinates in `unit`."""
        at: NDArray[np.float64] = np.asarray(index, float) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return at

    def index(self, world: ArrayLike) -> NDArray[np.float64]:
        """(..., 3) RAS+ coordinates -> (..., 3) fractional voxel indices."""
        inverse = np.linalg.inv(self.affine)
        at: NDArray[np.float64] = np.asarray(world, float) @ inverse[:3, :3].T + inverse[:3, 3]
        return at

    def moved(self, offset: Sequence[float], shape: Sequence[int]) -> Self:
        """The same axes with another first voxel (`offset` in voxels) and another shape: a crop or a pad."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(offset)
        s, r, w = (int(length) for length in shape)
        return replace(self, shape=(s, r, w), affine=affine)

    def require_same_grid(self, other: "Geometry", *, tolerance_mm: float = 1e-3) -> None:
        """Raises GeometryError unless both grids have the same voxels at the same places."""
        corners = np.array(np.meshgrid(*[(0, max(length - 1, 1)) for length in self.shape])).reshape(3, -1).T
        shift = float(np.abs(self.world(corners) - other.world(corners)).max())
        if self.shape != other.shape or self.unit != other.unit or shift > tolerance_mm:
            raise GeometryError(
                f"grids differ: {self.shape} {self.unit} and {other.shape} {other.unit}, "
                f"corners up to {shift:.3g} apart (allowed {tolerance_mm:g}). Resample one image onto the other first."
            )


def _require_regular(affine: NDArray[np.float64]) -> None:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing < 1e-9).any():
        raise GeometryError(f"voxels need a size along each axis, got spacing {spacing.tolist()}")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise GeometryError("the affine is singular: its axes lie in one plane, so voxels have no volume")


@dataclass(frozen=True)
class Source:
    """What the writer needs to answer in the same format; each format in medae.io adds its own fields."""

    format: str = "array"
    """png, jpeg, tiff, nifti, metaimage, nrrd, dicom; array when the image was made in Python."""

    @property
    def modality(self) -> str | None:
        """DICOM's code of what made the image, such as CT; None where the file does not say."""
        return None


@dataclass(frozen=True, eq=False)
class Image:
    """Pixels (channels, slices, rows, columns) and their geometry. Never changed in place; valid if it exists.

    A picture has one slice; colour is channels. A file of several volumes on one grid (times, directions of diffusion)
    has them one behind the other along the first axis: (volumes x channels, slices, rows, columns). Integers keep their
    stored type; rescaled values (CT in HU, NIfTI with slope) are float32.
    Raises GeometryError where pixels and geometry disagree, UnreadableImage for pixels that are not numbers.
    """

    pixels: NDArray[Any]
    geometry: Geometry
    source: Source = field(default_factory=Source)
    volumes: int = 1

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.dtype.kind not in "buif":
            raise UnreadableImage(f"pixels are whole or real numbers, got {pixels.dtype}")
        if pixels.ndim != 4 or pixels.shape[0] < 1 or pixels.shape[1:] != self.geometry.shape:
            raise GeometryError(
                f"pixels are (channels, slices, rows, columns) on a grid of {self.geometry.shape}, got {pixels.shape}"
            )
        if self.volumes < 1 or pixels.shape[0] % self.volumes:
            raise GeometryError(f"{pixels.shape[0]} channels are not {self.volumes} volumes of equally many")
        pixels = pixels.view()
        pixels.flags.writeable = False
        object.__setattr__(self, "pixels", pixels)

    @classmethod
    def from_picture(cls, pixels: ArrayLike, *, spacing_mm: tuple[float, float] | None = None) -> Self:
        """A picture, (rows, columns) grey or (rows, columns, channels) colour."""
        array = np.asarray(pixels)
        if array.ndim not in (2, 3):
            raise GeometryError(f"a picture is (rows, columns) or (rows, columns, channels), got {array.shape}")
        planes = array[None] if array.ndim == 2 else np.moveaxis(array, 2, 0)
        geometry = Geometry.picture(array.shape[0], array.shape[1], spacing_mm=spacing_mm)
        return cls(planes[:, None], geometry)

    @property
    def channels(self) -> int:
        """Of one volume."""
        return int(self.pixels.shape[0]) // self.volumes

    def volume(self, number: int) -> Self:
        """One of its volumes, from 0; a view."""
        start = number * self.channels
        return replace(self, pixels=self.pixels[start : start + self.channels], volumes=1)

    def with_pixels(self, pixels: NDArray[Any]) -> Self:
        """Other values at the same place from the same source: the way every result is made."""
        return replace(self, pixels=pixels)
