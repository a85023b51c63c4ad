"""A series whose slices are uneven, or of a tilted gantry -> one on a regular grid, where its reader asks for it.

Uneven: doubled slices with the same pixels count once. Between neighbours values are interpolated linearly, and at most
two spacings are bridged: what lies in a wider gap was not measured, and is not made up. Tilted: slices lie aslant above
each other; each is moved within its plane to where a grid without shear has its pixels. The result is no longer the
scan: its answers are NIfTI, since no instance of the series lies where its slices do.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medae.errors import SeriesError
from medae.image import Geometry, Image
from medae.io.dicom_frames import Slice
from medae.io.dicom_stacks import SAME_PLACE_MM, geometry_of
from medae.resample import resample_onto

_WIDEST = 2.1
"""Spacings between two slices: one may be missing, and positions are rounded."""
_OFF_LINE = 0.1
_SHEARED = 0.1
"""Pixels that the last slice is off the normal through the first: less than that is how positions are rounded."""


def places(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """Where slices in their order lie along the line from the first to the last, mm.

    Raises SeriesError where they do not lie on one, or where a gap is too wide to be bridged.
    """
    positions = np.array([at.position for at in slices], np.float64)
    line = positions[-1] - positions[0]
    length = float(np.linalg.norm(line))
    if len(slices) < 2 or length < SAME_PLACE_MM:
        raise SeriesError("all slices share one place; give each place once")
    along: NDArray[np.float64] = (positions - positions[0]) @ (line / length)
    off = float(np.linalg.norm(positions - positions[0] - along[:, None] * (line / length), axis=1).max())
    spacing = spacing_of(along)
    if off > _OFF_LINE * spacing:
        raise SeriesError(f"the slices do not lie on a straight line: up to {off:.3g} mm off; give one straight series")
    widest = float(np.diff(along).max())
    if widest > _WIDEST * spacing:
        raise SeriesError(
            f"a gap of {widest:.4g} mm where {spacing:.4g} mm is usual: more than one slice is missing, too much to be "
            "interpolated"
        )
    return along


def spacing_of(along: NDArray[np.float64]) -> float:
    """The usual one: the lower median of those that are none."""
    gaps = np.sort(np.diff(along))
    gaps = gaps[gaps > SAME_PLACE_MM]
    return float(gaps[(len(gaps) - 1) // 2])


def evenly(image_CSRW: NDArray[np.floating], slices: Sequence[Slice]) -> Image:
    """Grey values (1, slices, rows, columns), of slices in their order, on evenly spaced places from first to last.

    Raises SeriesError as `places` does, and for doubled places with different pixels.
    """
    along = places(slices)
    kept = [0]
    for at in range(1, len(slices)):
        if along[at] - along[kept[-1]] >= SAME_PLACE_MM:
            kept.append(at)
        elif not np.array_equal(image_CSRW[:, at], image_CSRW[:, kept[-1]]):
            raise SeriesError(
                "slices at one place have different pixels (time points, echoes or phases); give each place once"
            )
    along = along[kept]
    count = round(along[-1] / spacing_of(along)) + 1
    targets = np.linspace(0, along[-1], count)
    pixels = np.empty((1, count, *image_CSRW.shape[2:]), image_CSRW.dtype)
    for number, target in enumerate(targets):
        above = int(np.clip(np.searchsorted(along, target), 1, len(along) - 1))
        weight = (target - along[above - 1]) / (along[above] - along[above - 1])
        low, high = image_CSRW[:, kept[above - 1]], image_CSRW[:, kept[above]]
        pixels[:, number] = low if weight == 0 else high if weight == 1 else low + weight * (high - low)
    return Image(pixels, _geometry(slices, count))


def _geometry(slices: Sequence[Slice], count: int) -> Geometry:
    ends = geometry_of([slices[0], slices[-1]])  # two slices are always even
    affine = ends.affine.copy()
    affine[:3, 0] /= count - 1
    return Geometry((count, *ends.shape[1:]), affine, frame_of_reference=ends.frame_of_reference)


def off_normal(geometry: Geometry) -> NDArray[np.float64]:
    """(2,) rows and columns by which the last slice of a volume is shifted from the normal through the first; 0 where
    that is only how positions are rounded."""
    step, row, column = geometry.affine[:3, :3].T
    normal = np.cross(row, column)
    in_plane = step - normal * (step @ normal) / (normal @ normal)
    shift = np.array([in_plane @ row / (row @ row), in_plane @ column / (column @ column)])
    shift *= geometry.shape[0] - 1
    return shift if np.abs(shift).max() > _SHEARED else np.zeros(2)


def upright_grid(geometry: Geometry) -> Geometry:
    """Slices straight above each other that cover all of a sheared volume; the first keeps its pixels' places."""
    shift = off_normal(geometry)
    before, behind = np.floor(np.minimum(shift, 0)), np.ceil(np.maximum(shift, 0))
    rows, columns = (int(length) for length in np.array(geometry.shape[1:]) + behind - before)
    affine = geometry.affine.copy()
    affine[:3, 3] = geometry.world((0, *before))
    affine[:3, 0] -= affine[:3, 1:3] @ shift / max(geometry.shape[0] - 1, 1)
    return replace(geometry, shape=(geometry.shape[0], rows, columns), affine=affine)


def upright(image: Image) -> Image:
    """A sheared volume on its `upright_grid`; beyond what was measured lies its lowest value, in CT that of air."""
    grid, fill = upright_grid(image.geometry), float(image.pixels.min())
    pixels = np.empty((image.pixels.shape[0], *grid.shape), image.pixels.dtype)
    for at in range(grid.shape[0]):
        # within its plane: as a slice that is alone, over its place on the grid
        onto = grid.moved((at, 0, 0), (1, *grid.shape[1:]))
        affine = onto.affine.copy()
        affine[:3, 3] = image.geometry.world((at, 0, 0))
        alone = Image(image.pixels[:, at : at + 1], replace(onto, shape=(1, *image.geometry.shape[1:]), affine=affine))
        pixels[:, at] = resample_onto(alone, onto, fill=fill).pixels[:, 0]
    return Image(pixels, grid)
