"""The pictures of one DICOM file, by its header: a Slice for each frame, with its place where the file tells it.

A file of one frame says where it lies at the top of its header; an enhanced one (PS3.3 C.7.6.16) in functional groups,
shared by all frames or kept for each. Frames of other multi-frame files (ultrasound, angiography, nuclear medicine) are
times or views; they have no place, and nothing is made up for them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset

from medae.errors import GeometryError, UnreadableImage, UnsupportedImage
from medae.io.dicom_file import HEADER_BYTES, NoPicture, as_plain, guarded, opened, read_dataset
from medae.io.guard import Limits

# fmt: off
MODALITIES = frozenset((
    "CR", "CT", "DX", "ES", "GM", "IO", "MG", "MR", "NM", "OP", "OPT", "OT", "PT", "PX", "RF", "RG", "SC", "SM", "US",
    "XA", "XC",
))
# fmt: on
"""Modalities that messages name; any other value could be anything, so it is called "other"."""

GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
PALETTE = "PALETTE COLOR"

FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Where real pixels are, and how wide they are there (PS3.3 C.7.6.24, C.7.6.25)."""

_NOT_PICTURES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map segmentation",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
    "1.2.840.10008.5.1.4.1.1.77.1.6": "a whole-slide image in tiles",
}
_PARAMETRIC_MAP = "1.2.840.10008.5.1.4.1.1.30"
# fmt: off
_SLICE_TAGS = [
    "SOPClassUID", "Modality", "ImageType", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing",
    "NominalScannedPixelSpacing", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
]
# fmt: on
_IN_STACK, _POSITION = 0x00209057, 0x00200032  # what numbers the places within one volume


@dataclass(frozen=True, eq=False)
class Slice:
    """One frame by its header. Lengths in mm, directions and positions in DICOM's LPS axes."""

    file: Path | bytes
    size: int
    """Bytes of the file."""
    header_size: int
    """Those before its pixels, inflated."""
    is_deflated: bool
    dataset: FileDataset
    """Of the file: its frames share it."""
    frame: int
    """Which of the file's frames it is, from 0."""
    frames: int
    """How many the file has."""
    series: str
    study: str
    modality: str
    rows: int
    columns: int
    channels: int
    bits: int
    """Of one stored sample: 8, 16, 32 or 64."""
    position: NDArray[np.float64] | None
    """Of the centre of the first pixel."""
    directions: NDArray[np.float64] | None
    """(2, 3) unit vectors: where rows run (column index grows), where columns run (row index grows)."""
    spacing: tuple[float, float] | None
    """Between rows, between columns."""
    frame_of_reference: str | None
    is_localiser: bool
    kind: tuple[str | int, ...]
    """What the slices of one volume have in common, beside their directions and spacing."""
    volume: tuple[int, ...]
    """Which of several volumes of an enhanced file, by its dimension indices; empty where it says nothing."""

    @property
    def in_space(self) -> bool:
        return self.position is not None and self.directions is not None and self.spacing is not None

    @property
    def normal(self) -> NDArray[np.float64]:
        assert self.directions is not None
        return np.cross(*self.directions)

    @property
    def stored_bytes(self) -> int:
        """Of all the file's pixels, decoded."""
        return self.frames * self.rows * self.columns * self.channels * self.bits // 8


def read_slices(file: Path | bytes, limits: Limits, *, whole: bool = True) -> list[Slice]:
    """The frames of one file by their header, or just what a Slice says of it; pixels stay undecoded.

    Raises UnreadableImage, UnsupportedImage (NoPicture for other DICOM objects), GeometryError or LimitExceeded.
    """
    with opened(file) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        limits.admit_bytes(size)
        plain, is_deflated = as_plain(stream, HEADER_BYTES)
        dataset = read_dataset(plain, pixels=False, tags=None if whole else _SLICE_TAGS)
        header_size = plain.tell()
    with guarded("the DICOM header is damaged"):
        # looked at in a copy: an element that stays undecoded in the header is written as it came
        facts = Dataset(dict(dataset.items()))
        _require_picture(facts)
        frames = frame_count(facts)
        facts = facts if frames == 1 else dataset  # whose groups are decoded once for all frames
        rows, columns = int(facts.Rows), int(facts.Columns)
        # before a Slice is made for each of the frames that a forged header counts
        limits.admit_grid(slices=frames, rows=rows, columns=columns, bytes_per_voxel=1, stored=size)
        make = partial(Slice, file, size, header_size, is_deflated, dataset)
        slices = list(_frames(facts, frames, make))
    if is_deflated:
        limits.admit_inflated(header_size + slices[0].stored_bytes, stored=size)
    return slices


def frame_count(dataset: Dataset) -> int:
    """Frames of a file; 1 where its header does not count them."""
    frames = dataset.get("NumberOfFrames")
    return 1 if frames in (None, "") else int(frames)


def functional_group(dataset: Dataset, frame: int, name: str) -> Dataset | None:
    """The item of a functional group macro that holds for a frame: its own, or the one shared by all."""
    for sequence, at in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        groups = dataset.get(sequence)
        if groups and at < len(groups) and (found := groups[at].get(name)):
            item: Dataset = found[0]
            return item
    return None


def of_frame(dataset: Dataset, frame: int, group: str, name: str) -> Any:
    """What a frame's functional group says, or the top of the header of a file of one frame."""
    # one place at the top of a header says nothing of many frames
    top = dataset if frame_count(dataset) == 1 else Dataset()
    return (functional_group(dataset, frame, group) or top).get(name)


def _require_picture(dataset: Dataset) -> None:
    """Raises UnsupportedImage unless these are grey or colour pictures of a kind that is read."""
    sop_class = str(dataset.get("SOPClassUID", ""))
    kind = _NOT_PICTURES.get(sop_class)
    if kind is not None:
        raise UnsupportedImage(f"this DICOM file is {kind}, not an image; give the images that it was made from")
    if dataset.get("Rows") is None or dataset.get("Columns") is None:
        raise NoPicture(
            "this DICOM file holds no picture (a report, plan, waveform or directory, or an image cut short); "
            "give the image files"
        )
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored", allocated))  # real pixels have none
    is_real = sop_class == _PARAMETRIC_MAP and "BitsStored" not in dataset
    known = (32, 64) if is_real else (8, 16, 32)
    if (
        allocated not in known
        or not 1 <= stored <= allocated
        or (not is_real and dataset.get("HighBit", stored - 1) != stored - 1)
    ):
        raise UnsupportedImage(
            f"the pixels have {stored} of {allocated} bits; 8, 16 and 32 bits allocated, low bits stored, are read"
        )


def _frames(dataset: Dataset, frames: int, make: Callable[..., Slice]) -> Iterator[Slice]:
    modality = str(dataset.get("Modality", ""))
    kinds = dataset.get("ImageType") or ()
    is_localiser = not isinstance(kinds, str) and "LOCALIZER" in [str(kind).strip() for kind in kinds]
    reference = str(dataset.get("FrameOfReferenceUID") or "")
    rows, columns, channels = int(dataset.Rows), int(dataset.Columns), _channels(dataset)
    sop_class, bits = str(dataset.get("SOPClassUID", "")), int(dataset.BitsAllocated)
    places = _volume_indices(dataset)
    for frame in range(frames):
        position, directions = _vectors(dataset, frame)
        yield make(
            frame=frame,
            frames=frames,
            series=str(dataset.get("SeriesInstanceUID", "")),
            study=str(dataset.get("StudyInstanceUID", "")),
            modality=modality if modality in MODALITIES else "other",
            rows=rows,
            columns=columns,
            channels=channels,
            bits=bits,
            position=position,
            directions=directions,
            spacing=_spacing(dataset, frame, in_space=position is not None),
            frame_of_reference=reference or None,
            is_localiser=is_localiser,
            kind=(sop_class, modality, reference, rows, columns, channels, bits, is_localiser),
            volume=_volume(dataset, frame, places),
        )


def _channels(dataset: Dataset) -> int:
    photometric, samples = str(dataset.PhotometricInterpretation), int(dataset.get("SamplesPerPixel", 1))
    if photometric in GREY and samples == 1:
        return 1
    if (photometric in COLOUR and samples == 3) or (photometric == PALETTE and samples == 1):
        return 3
    raise UnsupportedImage(
        f"the pixels have {samples} samples in a colour space that is not read; "
        "grey (MONOCHROME1, MONOCHROME2), RGB, YBR and PALETTE COLOR are"
    )


def _vectors(dataset: Dataset, frame: int) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Position and (2, 3) directions in LPS, both or neither. Raises GeometryError where they are no frame."""
    position = of_frame(dataset, frame, "PlanePositionSequence", "ImagePositionPatient")
    orientation = of_frame(dataset, frame, "PlaneOrientationSequence", "ImageOrientationPatient")
    if not position or not orientation:
        return None, None
    origin = np.array([float(value) for value in position])
    directions = np.array([float(value) for value in orientation])
    if origin.shape != (3,) or directions.shape != (6,) or not np.isfinite([*origin, *directions]).all():
        raise GeometryError("the DICOM position needs 3 and the orientation 6 finite numbers; this header has others")
    directions = directions.reshape(2, 3)
    lengths = np.linalg.norm(directions, axis=1)
    # two-digit direction cosines are met in practice; beyond a hundredth the angle would shift the picture's rim
    if np.abs(lengths - 1).max() > 1e-2 or abs(float(directions[0] @ directions[1])) > 1e-2:
        raise GeometryError(
            f"the DICOM orientation is not two perpendicular unit vectors: lengths {lengths.round(3).tolist()}, "
            f"dot product {float(directions[0] @ directions[1]):.3g} (at most 0.01 off is allowed)"
        )
    return origin, directions / lengths[:, None]


def _spacing(dataset: Dataset, frame: int, *, in_space: bool) -> tuple[float, float] | None:
    measures = functional_group(dataset, frame, "PixelMeasuresSequence")
    # a projection's detector spacing is the best there is for a picture; for a slice in space it would be wrong
    names = ["PixelSpacing"] if in_space else ["PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"]
    for values in [measures.get("PixelSpacing") if measures else None, *(dataset.get(name) for name in names)]:
        if values:
            between_rows, between_columns = (float(value) for value in values)
            if not (0 < between_rows < np.inf and 0 < between_columns < np.inf):
                raise GeometryError(
                    f"the DICOM pixel spacing is {between_rows:g} x {between_columns:g} mm; both must be above 0"
                )
            return between_rows, between_columns
    return None


def _volume_indices(dataset: Dataset) -> list[int]:
    """Which of the dimension indices tell volumes apart: all but the place within a stack (PS3.3 C.7.6.17)."""
    dimensions = dataset.get("DimensionIndexSequence") or ()
    pointers = [item.get("DimensionIndexPointer") for item in dimensions]
    return [index for index, pointer in enumerate(pointers) if pointer not in (_IN_STACK, _POSITION)]


def _volume(dataset: Dataset, frame: int, indices: list[int]) -> tuple[int, ...]:
    content = functional_group(dataset, frame, "FrameContentSequence") if indices else None
    values = content.get("DimensionIndexValues") if content else None
    if values is None:
        return ()
    values = [values] if isinstance(values, int) else values
    if len(values) <= max(indices):
        raise UnreadableImage("a frame of the DICOM file has too few dimension indices; its header is damaged")
    return tuple(int(values[index]) for index in indices)
