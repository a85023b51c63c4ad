"""Slices -> stacks: which belong together, in which order they lie, and where the whole lies in space."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from medae.errors import SeriesError
from medae.image import Geometry
from medae.io.dicom_file import guarded
from medae.io.dicom_frames import Slice, functional_group

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
SAME_PLACE_MM = 1e-3
# of the spacing: scanners round positions, but a missing slice is at least one spacing
_SPACING_TOLERANCE = 0.02
_LINE_TOLERANCE = 0.1
_NAMED = 32
"""Of several series: their list is where people find the number of the one they mean."""


def stacks_of(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices of one series, kind, size, orientation and spacing together; in the order of their first slices.

    Frames without a place form a stack with those of their file alone. An enhanced file that has several volumes at
    one place (times, echoes, directions of diffusion) gives a stack for each.
    """
    of_series: dict[object, list[list[Slice]]] = {}
    stacks: list[list[Slice]] = []
    for at in slices:
        known = of_series.setdefault(at.series, [])
        stack = next((stack for stack in known if _same_stack(stack[0], at)), None)
        if stack is None:
            stack = []
            known.append(stack)
            stacks.append(stack)
        stack.append(at)
    return [volume for stack in stacks for volume in _volumes(stack)]


def _same_stack(one: Slice, other: Slice) -> bool:
    if one.kind != other.kind or one.in_space != other.in_space or (one.frames > 1) != (other.frames > 1):
        return False
    if not one.in_space and one.frames > 1:
        return one.dataset is other.dataset
    if one.directions is None or other.directions is None or one.spacing is None or other.spacing is None:
        return True
    same_directions = np.allclose(one.directions, other.directions, rtol=0, atol=1e-3)
    return same_directions and np.allclose(one.spacing, other.spacing, rtol=1e-3)


def _volumes(stack: list[Slice]) -> list[list[Slice]]:
    """The stack itself or, where frames share places and say which volume they are of, its volumes."""
    keys = {at.volume for at in stack}
    if len(keys) == 1 or not stack[0].in_space or not _shares_places(stack):
        return [stack]
    volumes: dict[tuple[int, ...], list[Slice]] = {}
    for at in stack:
        volumes.setdefault(at.volume, []).append(at)
    return list(volumes.values())


def _shares_places(stack: Sequence[Slice]) -> bool:
    along = np.sort([float(stack[0].normal @ _position(at)) for at in stack])
    return bool((np.diff(along) < SAME_PLACE_MM).any())


def listing(stacks: Sequence[Sequence[Slice]]) -> str:
    """Stacks with their numbers, the largest first: "[1] 5 x CT 16x16 axial; [2] 1 x CT 16x16 sagittal localiser"."""
    order = sorted(range(len(stacks)), key=lambda index: len(stacks[index]), reverse=True)
    more = f"; and {len(stacks) - _NAMED} more" if len(stacks) > _NAMED else ""
    return "; ".join(f"[{index + 1}] {description(stacks[index])}" for index in order[:_NAMED]) + more


def description(stack: Sequence[Slice]) -> str:
    """What a stack is, without a word of whose it is: "5 x CT 16x16 axial"."""
    first = stack[0]
    what = "localiser" if first.is_localiser else "colour" if first.channels == 3 else ""
    return " ".join(
        filter(None, [f"{len(stack)} x {first.modality} {first.rows}x{first.columns}", _plane(first), what])
    )


def _plane(at: Slice) -> str:
    if not at.in_space:
        return "not placed in space"
    weight = np.abs(at.normal)
    return "oblique" if weight.max() < 0.99 else ("sagittal", "coronal", "axial")[int(weight.argmax())]


def in_order(slices: list[Slice]) -> list[Slice]:
    """Along the normal; frames without a place as their file has them."""
    if len(slices) == 1 or not slices[0].in_space:
        return slices
    normal = slices[0].normal
    return sorted(slices, key=lambda at: float(normal @ _position(at)))


def _position(at: Slice) -> NDArray[np.float64]:
    assert at.position is not None  # of a slice in space
    return at.position


def geometry_of(slices: Sequence[Slice]) -> Geometry:
    """Of slices in their order. Several frames without a place are a pile of pictures whose spacing nobody knows: px.

    Raises SeriesError unless slices are evenly spaced on a straight line.
    """
    first = slices[0]
    if first.directions is None or first.position is None or first.spacing is None:
        spacing = first.spacing if len(slices) == 1 else None
        return Geometry.picture(first.rows, first.columns, slices=len(slices), spacing_mm=spacing)
    affine = np.eye(4)
    affine[:3, 0] = _step(slices)
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = first.directions[0] * first.spacing[1]
    affine[:3, 3] = first.position
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return Geometry((len(slices), first.rows, first.columns), affine, "mm", frame_of_reference=first.frame_of_reference)


def _step(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """From one slice to the next, LPS mm; off the normal where a gantry was tilted."""
    if len(slices) == 1:
        return slices[0].normal * _thickness(slices[0])
    positions = np.array([_position(at) for at in slices])
    gaps = np.diff(positions @ slices[0].normal)
    if gaps.min() < SAME_PLACE_MM:
        raise SeriesError(
            f"{int((gaps < SAME_PLACE_MM).sum()) + 1} of {len(slices)} slices share their place with another "
            "(a file given twice, time points, echoes or phases); give each place once"
        )
    # the lower median: of two gaps, the smaller is the spacing and the larger misses a slice
    expected = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    worst = float(gaps[np.abs(gaps - expected).argmax()])
    if abs(worst - expected) > _SPACING_TOLERANCE * expected + SAME_PLACE_MM:
        raise SeriesError(
            f"a gap in the series: {expected:.4g} mm between slices expected, {worst:.4g} mm found; "
            "slices are missing or belong to another series"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = float(np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max())
    if off > _LINE_TOLERANCE * expected + SAME_PLACE_MM:
        raise SeriesError(f"the slices do not lie on a straight line: up to {off:.3g} mm off; give one straight series")
    return step


def _thickness(at: Slice) -> float:
    """How far a single slice reaches along its normal, mm; 1 where the header does not say."""
    with guarded("the DICOM slice thickness is damaged"):
        measures = functional_group(at.dataset, at.frame, "PixelMeasuresSequence")
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            value = (measures.get(name) if measures else None) or at.dataset.get(name)
            if value not in (None, "") and 0 < abs(float(value)) < np.inf:
                return abs(float(value))
    return 1.0
