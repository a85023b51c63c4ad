"""DICOM files made for tests, from pydicom's CT_small: any orientation, spacing and pixels."""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset

DIRECTIONS = {
    "axial": [[1, 0, 0], [0, 1, 0]],
    "axial, columns turned": [[1, 0, 0], [0, -1, 0]],
    "axial, rows turned": [[-1, 0, 0], [0, 1, 0]],
    "sagittal": [[0, 1, 0], [0, 0, -1]],
    "coronal": [[1, 0, 0], [0, 0, -1]],
    "oblique": [[0.8, 0.6, 0], [-0.36, 0.48, 0.8]],
}


def sample(name: str) -> Path:
    """A file that comes with pydicom."""
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), name
    return Path(path)


def series_folder(name: str) -> list[Path]:
    """A series that comes with pydicom, such as "98892001/CT5N"."""
    return sorted((sample("CT_small.dcm").parent / "dicomdirtests" / name).iterdir())


@cache
def _template() -> FileDataset:
    return dcmread(sample("CT_small.dcm"))


def ct(pixels: np.ndarray, **changes: object) -> FileDataset:
    """A CT slice with these (rows, columns) pixels, int16 or uint16; `changes` set attributes, None removes them."""
    dataset = copy.deepcopy(_template())
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    for name, value in changes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def ct_series(
    volume: np.ndarray,
    directions: Sequence[Sequence[float]] = DIRECTIONS["axial"],
    *,
    step: float = 2.5,
    spacing: tuple[float, float] = (0.7, 1.1),
    origin: tuple[float, float, float] = (-31.5, 17.25, 40.0),
    change: Callable[[Dataset, int], None] = lambda dataset, index: None,
) -> list[FileDataset]:
    """Slices of `volume` (S, R, W) along the normal; `change(dataset, index)` may alter each."""
    normal = np.cross(*directions)
    made = []
    for index, pixels in enumerate(volume):
        dataset = ct(
            pixels,
            SOPInstanceUID=f"1.2.826.0.1.3680043.8.498.{index + 1}",
            InstanceNumber=index + 1,
            ImageOrientationPatient=[float(value) for direction in directions for value in direction],
            ImagePositionPatient=[round(float(value), 6) for value in origin + index * step * normal],
            PixelSpacing=list(spacing),
            SliceThickness=abs(step),
            SpacingBetweenSlices=abs(step),
        )
        change(dataset, index)
        made.append(dataset)
    return made


def as_file(dataset: Dataset) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def as_files(datasets: Sequence[Dataset]) -> list[bytes]:
    return [as_file(dataset) for dataset in datasets]
