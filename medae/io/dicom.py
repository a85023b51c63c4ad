"""DICOM series <-> Image: CT, MR, PET, radiographs, ultrasound, secondary capture, of one frame or of many.

Pixels: grey images become float32 modality values (stored x slope + intercept, for each instance its own), also for
MONOCHROME1, whose values stay as they are (only the way to show them differs); colour stays in its integers, as RGB.
Geometry: DICOM's LPS becomes RAS+ here and nowhere else. Slices are sorted along the normal (row direction x column
direction). An image without position, such as a radiograph or a secondary capture, becomes a picture; several
frames without position (ultrasound, angiography) become a pile of pictures whose spacing is unknown.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medae.errors import InputError, SeriesError
from medae.image import Image
from medae.io.dicom_derived import encode_restored
from medae.io.dicom_even import evenly, off_normal, places, upright, upright_grid
from medae.io.dicom_file import DicomSource, NoPicture, guarded, is_dicom
from medae.io.dicom_frames import Slice, read_slices
from medae.io.dicom_pixels import modality_values, padding_values, stored_frames, value_type
from medae.io.dicom_stacks import description, geometry_of, in_order, listing, stacks_of
from medae.io.guard import DEFAULT_LIMITS, Limits

__all__ = [
    "DicomSource",
    "SeriesFiles",
    "choose_series",
    "encode_restored",
    "group_series",
    "is_dicom",
    "read_dicom",
]

logger = logging.getLogger(__name__)


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


def read_dicom(
    files: Sequence[Path | bytes],
    limits: Limits = DEFAULT_LIMITS,
    *,
    series: int | str | None = None,
    regular_grid: bool = False,
) -> Image:
    """One image from one file, or from the slices of one series in any order.

    Among several files, objects without a picture (reports, a DICOMDIR) are passed over, and so are localisers beside
    a scan. series: of several, its number in the list that the refusal gives, from 1, or its SeriesInstanceUID.
    regular_grid: make unevenly spaced grey slices even, and not refuse them, where at most one is missing in a row; and
    move those of a tilted gantry straight above each other, where else the grid is sheared as they are.
    Raises UnreadableImage, UnsupportedImage, LimitExceeded or GeometryError for a file; SeriesError where files do
    not form one series: mixed kinds, two slices at one place, gaps, slices off a straight line, no positions.
    """
    limits.admit_files(len(files))
    if not files:
        raise SeriesError("no files came; a series has at least one")
    slices, number = _all_slices(files, limits)
    slices = in_order(_chosen(stacks_of(slices), series))
    sizes = {id(at.dataset): at.size for at in slices}
    first = slices[0]
    limits.admit_grid(
        slices=len(slices),
        rows=first.rows,
        columns=first.columns,
        bytes_per_voxel=max(4, first.bits // 8) * first.channels,
        stored=sum(sizes.values()),
    )
    try:
        geometry = geometry_of(slices)
    except SeriesError:
        if not regular_grid or first.channels != 1:
            raise
        places(slices)  # before pixels are read for nothing
        image = evenly(_pixels(slices)[0], slices)
    else:
        pixels, padding = _pixels(slices)
        image = Image(pixels, geometry, _source(slices, number, padding))
    return _upright(image, limits) if regular_grid and first.channels == 1 else image


def _upright(image: Image, limits: Limits) -> Image:
    if not off_normal(image.geometry).any():
        return image
    slices, rows, columns = upright_grid(image.geometry).shape
    size = image.pixels.itemsize
    limits.admit_grid(slices=slices, rows=rows, columns=columns, bytes_per_voxel=size, stored=image.pixels.nbytes)
    return upright(image)


def _all_slices(files: Sequence[Path | bytes], limits: Limits) -> tuple[list[Slice], dict[int, int]]:
    """The frames of all files, and of each header which file it is of."""
    slices: list[Slice] = []
    number: dict[int, int] = {}
    size = 0
    passed_over: NoPicture | None = None
    for index, file in enumerate(files):
        try:
            frames = read_slices(file, limits)
        except NoPicture as error:
            passed_over = error
            continue
        slices += frames
        number[id(frames[0].dataset)] = index
        size += frames[0].size
        limits.admit_bytes(size)
    if passed_over and not slices:
        raise passed_over
    return slices, number


def _chosen(stacks: list[list[Slice]], series: int | str | None) -> list[Slice]:
    """The one stack that is meant. Raises SeriesError where that is not clear, and lists what there is."""
    found = stacks
    if isinstance(series, int):
        found = stacks[series - 1 : series] if series > 0 else []
    elif series is not None:
        found = [stack for stack in stacks if stack[0].series == series]
    if len(found) > 1:  # an overview beside the scan is not what is meant
        found = [stack for stack in found if not stack[0].is_localiser] or found
    if not found:
        raise SeriesError(f"the series that was asked for is not among the {len(stacks)} that came: {listing(stacks)}")
    if len(found) > 1:
        raise SeriesError(
            f"what came is not one series but {len(stacks)}: {listing(stacks)}. Give the slices of one series, all of "
            "one size, spacing and orientation, or choose one by its number"
        )
    (stack,) = found
    if len(stack) > 1 and not stack[0].in_space and stack[0].frames == 1:
        raise SeriesError(
            f"{description(stack)} without position, orientation or pixel spacing do not form a volume; "
            "give them one by one"
        )
    return stack


def choose_series(
    files: Sequence[Path], series: int | str, limits: Limits = DEFAULT_LIMITS
) -> tuple[tuple[Path, ...], int | None]:
    """The files of the one series that is meant, by their headers alone; and, where they hold several volumes, which of
    these it is, as `read_dicom` counts them.

    Numbers are those of `read_dicom`'s refusal of the same files in the order of their paths; files that are damaged
    or hold no picture are passed over. Raises SeriesError, which lists what there is.
    """
    slices: list[Slice] = []
    for path in sorted(files):
        try:
            slices += read_slices(path, limits, whole=False)
        except InputError:
            logger.info("a DICOM file without readable pictures was passed over")
    if not slices:
        raise SeriesError("there is no DICOM series to choose")
    chosen = _chosen(stacks_of(slices), series)
    paths = tuple(dict.fromkeys(at.file for at in chosen if isinstance(at.file, Path)))
    within = stacks_of(at for at in slices if at.file in set(paths))
    number = next(number for number, stack in enumerate(within, 1) if stack[0] is chosen[0])
    return paths, number if len(within) > 1 else None


def _source(slices: Sequence[Slice], number: dict[int, int], padding: NDArray[np.bool_] | None) -> DicomSource:
    of_file = {id(at.dataset): at for at in slices}
    place = {key: index for index, key in enumerate(of_file)}
    has_frames = any(at.frames > 1 for at in slices)
    return DicomSource(
        "dicom",
        datasets=tuple(at.dataset for at in of_file.values()),
        padding=padding,
        origins=tuple((number[key], at.header_size) for key, at in of_file.items()),
        frames=tuple((place[id(at.dataset)], at.frame) for at in slices) if has_frames else (),
    )


def group_series(files: Sequence[Path], limits: Limits = DEFAULT_LIMITS) -> list[SeriesFiles]:
    """The images among `files`, by their headers alone: a group for each series, size and orientation.

    Left out: files that are not DICOM, DICOM objects without a picture (reports, plans, DICOMDIR), and the localisers
    of a study that has scans. Kept: images
    that reading will refuse, each in a group of its own, so that the refusal names them. Images without position are
    groups of one, and so is a file that holds several volumes. Groups and the paths within are in the order of their
    paths.
    """
    slices: list[Slice] = []
    groups: list[SeriesFiles] = []
    for path in sorted(files):
        if not _looks_like_dicom(path):
            continue
        try:
            slices += read_slices(path, limits, whole=False)
        except NoPicture:
            logger.info("a DICOM object without a picture was left out")
        except InputError:
            groups.append(SeriesFiles((path,), "unreadable"))
    stacks = stacks_of(slices)
    scanned = {stack[0].study for stack in stacks if not stack[0].is_localiser}
    stacks = [stack for stack in stacks if not (stack[0].is_localiser and stack[0].study in scanned)]
    homes: dict[object, int] = {}
    for stack in stacks:
        for key in {id(at.dataset) for at in stack}:
            homes[key] = homes.get(key, 0) + 1
    grouped: set[Path] = set()
    for stack in stacks:
        is_volume = stack[0].in_space and all(homes[id(at.dataset)] == 1 for at in stack)
        for one in [stack] if is_volume else [[at] for at in stack]:
            paths = tuple(dict.fromkeys(at.file for at in one if isinstance(at.file, Path)))
            if not grouped.issuperset(paths):
                grouped.update(paths)
                groups.append(SeriesFiles(paths, one[0].modality, one[0].is_localiser))
    return sorted(groups, key=lambda group: group.paths)


def _looks_like_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_dicom(stream.read(132))
    except OSError:
        return False


def _pixels(slices: Sequence[Slice]) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(C, S, R, W) values, and where they are padding."""
    first = slices[0]
    shape = (first.channels, len(slices), first.rows, first.columns)
    pixels: NDArray[Any] | None = None
    padding: NDArray[np.bool_] | None = None
    for s, (at, stored_CRW) in enumerate(_stored(slices)):
        is_grey = first.channels == 1
        if pixels is None:
            pixels = np.empty(shape, value_type(stored_CRW.dtype) if is_grey else stored_CRW.dtype)
        if not is_grey:
            pixels[:, s] = stored_CRW
            continue
        with guarded("the DICOM rescale, modality table or padding value is damaged"):
            pixels[0, s] = modality_values(stored_CRW[0], at)
            outside = _padded(stored_CRW[0], at)
        if outside is not None:
            padding = np.zeros(shape[1:], bool) if padding is None else padding
            padding[s] = outside
    assert pixels is not None
    return pixels, padding


def _stored(slices: Sequence[Slice]) -> Iterator[tuple[Slice, NDArray[Any]]]:
    """Each slice with its stored values; a file is opened once for all slices in a row that it holds."""
    for _, group in groupby(slices, key=lambda at: id(at.dataset)):
        of_file = list(group)
        yield from zip(of_file, stored_frames(of_file), strict=True)


def _padded(stored_RW: NDArray[Any], at: Slice) -> NDArray[np.bool_] | None:
    ends = padding_values(at.dataset)
    if ends is None:
        return None
    outside = (stored_RW >= min(ends)) & (stored_RW <= max(ends))
    return outside if outside.any() else None
