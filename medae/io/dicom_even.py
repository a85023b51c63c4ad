"""A series whose slices are unevenly spaced -> one that is even, where its reader asks for it.

Doubled slices with the same pixels count once. Between neighbours values are interpolated linearly, and at most two
spacings are bridged: what lies in a wider gap was not measured, and is not made up. The result is no longer the scan:
its answers are NIfTI, since no instance of the series lies where its slices do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medae.errors import SeriesError
from medae.image import Geometry, Image
from medae.io.dicom_frames import Slice
from medae.io.dicom_stacks import SAME_PLACE_MM, geometry_of

_WIDEST = 2.1
"""Spacings between two slices: one may be missing, and positions are rounded."""
_OFF_LINE = 0.1


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
