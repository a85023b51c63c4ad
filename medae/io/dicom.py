"""DICOM series <-> Image: CT, MR, secondary capture and other single-frame images.

Pixels: grey images become float32 modality values (stored x slope + intercept, for each instance its own), also for
MONOCHROME1, whose values stay as they are (only the way to show them differs); colour stays in its integers, as RGB.
Geometry: DICOM's LPS becomes RAS+ here and nowhere else. Slices are sorted along the normal (row direction x column
direction). An image without position, such as a radiograph or a secondary capture, becomes a picture.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medae.errors import InputError, SeriesError
from medae.image import Geometry, Image
from medae.io.dicom_derived import encode_restored
from medae.io.dicom_file import (
    DicomSource,
    NoPicture,
    Slice,
    guarded,
    is_dicom,
    read_slice,
)
from medae.io.dicom_pixels import padding_values, rescale, stored_pixels
from medae.io.guard import DEFAULT_LIMITS, Limits

__all__ = ["DicomSource", "SeriesFiles", "encode_restored", "group_series", "is_dicom", "read_dicom"]

logger = logging.getLogger(__name__)

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
_SAME_PLACE_MM = 1e-3
# of the spacing: scanners round positions, but a missing slice is at least one spacing
_SPACING_TOLERANCE = 0.02
_LINE_TOLERANCE = 0.1


@dataclass(frozen=True)
class SeriesFiles:
    """Files that belong together: the slices of one volume, or one picture."""

    paths: tuple[Path, ...]
    modality: str
    """CT, MR, ...; "other" for unusual ones, "unreadable" for a DICOM file that reading will refuse with a reason."""
    is_localiser: bool = False
    """An overview that a scan was planned on, not a scan: whoever walks a folder may leave it out."""

    @property
    def count(self) -> int:
        return len(self.paths)


def read_dicom(files: Sequence[Path | bytes], limits: Limits = DEFAULT_LIMITS) -> Image:
    """One image from one file, or from the slices of one series in any order.

    Raises UnreadableImage, UnsupportedImage, LimitExceeded or GeometryError for a file; SeriesError where files do
    not form one series: mixed kinds, two slices at one place, gaps, slices off a straight line, no positions.
    """
    limits.admit_files(len(files))
    if not files:
        raise SeriesError("no files came; a series has at least one")
    slices = [read_slice(file, limits) for file in files]
    limits.admit_bytes(sum(at.size for at in slices))
    _require_one_stack(slices)
    number = {id(at): index for index, at in enumerate(slices)}
    first = slices[0]
    limits.admit_grid(
        slices=len(slices),
        rows=first.rows,
        columns=first.columns,
        bytes_per_voxel=4 * first.channels,
        stored=sum(at.size for at in slices),
    )
    slices = _sorted_along_normal(slices)
    geometry = _geometry(slices)
    pixels, padding = _pixels(slices)
    origins = tuple((number[id(at)], at.header_size) for at in slices)
    return Image(pixels, geometry, DicomSource("dicom", tuple(at.dataset for at in slices), padding, origins))


def group_series(files: Sequence[Path], limits: Limits = DEFAULT_LIMITS) -> list[SeriesFiles]:
    """The images among `files`, by their headers alone: a group for each series, size and orientation.

    Left out: files that are not DICOM, and DICOM objects without a picture (reports, plans, DICOMDIR). Kept: images
    that reading will refuse, each in a group of its own, so that the refusal names them. Images without position are
    groups of one. Groups and the paths within are in the order of their paths.
    """
    slices: list[Slice] = []
    groups: list[SeriesFiles] = []
    for path in sorted(files):
        if not _looks_like_dicom(path):
            continue
        try:
            slices.append(read_slice(path, limits, whole=False))
        except NoPicture:
            logger.info("a DICOM object without a picture was left out")
        except InputError:
            groups.append(SeriesFiles((path,), "unreadable"))
    for stack in _stacks(slices):
        for one in [stack] if stack[0].in_space else [[at] for at in stack]:
            paths = tuple(at.file for at in one if isinstance(at.file, Path))
            groups.append(SeriesFiles(paths, one[0].modality, one[0].is_localiser))
    return sorted(groups, key=lambda group: group.paths)


def _looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def _stacks(slices: Iterable[Slice]) -> list[list[Slice]]:
    """Slices of one series, kind, size, orientation and spacing together; in the order of their first slices."""
    of_series: dict[str, list[list[Slice]]] = {}
    stacks: list[list[Slice]] = []
    for at in slices:
        known = of_series.setdefault(at.series, [])
        stack = next((stack for stack in known if _same_stack(stack[0], at)), None)
        if stack is None:
            stack = []
            known.append(stack)
            stacks.append(stack)
        stack.append(at)
    return stacks


def _same_stack(one: Slice, other: Slice) -> bool:
    if one.kind != other.kind or one.in_space != other.in_space:
        return False
    if one.directions is None or other.directions is None or one.spacing is None or other.spacing is None:
        return True
    same_directions = np.allclose(one.directions, other.directions, rtol=0, atol=1e-3)
    return same_directions and np.allclose(one.spacing, other.spacing, rtol=1e-3)


def _require_one_stack(slices: Sequence[Slice]) -> None:
    stacks = _stacks(slices)
    if len(stacks) > 1:
        named = sorted(stacks, key=len, reverse=True)
        more = f"; and {len(named) - 8} other kinds" if len(named) > 8 else ""
        raise SeriesError(
            f"{len(slices)} files are not one series but {len(stacks)}: "
            f"{'; '.join(_description(stack) for stack in named[:8])}{more}. "
            "Give the slices of one series, all of one size, spacing and orientation"
        )
    if len(slices) > 1 and not slices[0].in_space:
        raise SeriesError(
            f"{_description(slices)} without position, orientation or pixel spacing do not form a volume; "
            "give them one by one"
        )


def _description(stack: Sequence[Slice]) -> str:
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


def _sorted_along_normal(slices: list[Slice]) -> list[Slice]:
    if len(slices) == 1:
        return slices
    normal = slices[0].normal
    return sorted(slices, key=lambda at: float(normal @ _position(at)))


def _position(at: Slice) -> NDArray[np.float64]:
    assert at.position is not None  # of a slice in space
    return at.position


def _geometry(slices: Sequence[Slice]) -> Geometry:
    first = slices[0]
    if first.directions is None or first.position is None or first.spacing is None:
        return Geometry.picture(first.rows, first.columns, spacing_mm=first.spacing)
    affine = np.eye(4)
    affine[:3, 0] = _step(slices)
    affine[:3, 1] = first.directions[1] * first.spacing[0]
    affine[:3, 2] = first.directions[0] * first.spacing[1]
    affine[:3, 3] = first.position
    affine[:3] = _LPS_TO_RAS @ affine[:3]
    return Geometry((len(slices), first.rows, first.columns), affine, "mm", frame_of_reference=first.frame_of_reference)


def _step(slices: Sequence[Slice]) -> NDArray[np.float64]:
    """From one slice to the next, LPS mm; off the normal where a gantry was tilted.

    Raises SeriesError unless slices are evenly spaced on a straight line.
    """
    if len(slices) == 1:
        return slices[0].normal * _thickness(slices[0])
    positions = np.array([_position(at) for at in slices])
    gaps = np.diff(positions @ slices[0].normal)
    if gaps.min() < _SAME_PLACE_MM:
        raise SeriesError(
            f"{int((gaps < _SAME_PLACE_MM).sum()) + 1} of {len(slices)} slices share their place with another "
            "(a file given twice, time points, echoes or phases); give each place once"
        )
    # the lower median: of two gaps, the smaller is the spacing and the larger misses a slice
    expected = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    worst = float(gaps[np.abs(gaps - expected).argmax()])
    if abs(worst - expected) > _SPACING_TOLERANCE * expected + _SAME_PLACE_MM:
        raise SeriesError(
            f"a gap in the series: {expected:.4g} mm between slices expected, {worst:.4g} mm found; "
            "slices are missing or belong to another series"
        )
    step: NDArray[np.float64] = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = float(np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1).max())
    if off > _LINE_TOLERANCE * expected + _SAME_PLACE_MM:
        raise SeriesError(f"the slices do not lie on a straight line: up to {off:.3g} mm off; give one straight series")
    return step


def _thickness(at: Slice) -> float:
    """How far a single slice reaches along its normal, mm; 1 where the header does not say."""
    with guarded("the DICOM slice thickness is damaged"):
        for name in ("SpacingBetweenSlices", "SliceThickness"):
            value = at.dataset.get(name)
            if value not in (None, "") and 0 < abs(float(value)) < np.inf:
                return abs(float(value))
    return 1.0


def _pixels(slices: Sequence[Slice]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(C, S, R, W) values, and where they are padding."""
    first = slices[0]
    shape = (first.channels, len(slices), first.rows, first.columns)
    pixels: NDArray[Any] | None = None
    padding: NDArray[np.bool_] | None = None
    for s, at in enumerate(slices):
        stored_CRW = stored_pixels(at)
        if pixels is None:
            pixels = np.empty(shape, np.float32 if first.channels == 1 else stored_CRW.dtype)
        if first.channels == 3:
            pixels[:, s] = stored_CRW
            continue
        with guarded("the DICOM rescale or padding value is damaged"):
            slope, intercept = rescale(at.dataset)
            pixels[:, s] = stored_CRW * slope + intercept  # float64 until it is stored
            outside = _padded(stored_CRW[0], at)
        if outside is not None:
            padding = np.zeros(shape[1:], bool) if padding is None else padding
            padding[s] = outside
    assert pixels is not None
    return pixels, padding


def _padded(stored_RW: NDArray[Any], at: Slice) -> NDArray[np.bool_] | None:
    ends = padding_values(at.dataset)
    if ends is None:
        return None
    outside = (stored_RW >= min(ends)) & (stored_RW <= max(ends))
    return outside if outside.any() else None
