"""DICOM files made for tests, from pydicom's CT_small: any orientation, spacing and pixels; and answers to them."""

import copy
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset

from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, CodedTerm, Label
from medae.io.dicom import encode_restored
from medae.io.dicom_seg import encode_labels

DIRECTIONS = {
    "axial": [[1, 0, 0], [0, 1, 0]],
    "axial, columns turned": [[1, 0, 0], [0, -1, 0]],
    "axial, rows turned": [[-1, 0, 0], [0, 1, 0]],
    "sagittal": [[0, 1, 0], [0, 0, -1]],
    "coronal": [[1, 0, 0], [0, 0, -1]],
    "oblique": [[0.8, 0.6, 0], [-0.36, 0.48, 0.8]],
}


ALGORITHM = Algorithm("demo-denoiser", "1.2.0", "sha256:" + "0123456789abcdef" * 4)
NOW = datetime(2026, 3, 4, 5, 6, 7, 890)
LESION = Label(
    name="Lesion",
    colour=(255, 0, 0),
    category=CodedTerm(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure"),
    term=CodedTerm(value="108369006", scheme="SCT", meaning="Neoplasm"),
)
ORGAN = Label(name="Organ", colour=(0, 128, 255))


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


def written(files: list[bytes], folder: Path) -> list[Path]:
    """The files in a folder, named 0.dcm and on."""
    paths = [folder / f"{at}.dcm" for at in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    return paths


def restore(image: Image, **other) -> list[Dataset]:
    made = encode_restored(
        image, stem="scan", **{"algorithm": ALGORITHM, "description": "denoised", "now": NOW, **other}
    )
    return [opened(file) for file in made]


def opened(file: AnswerFile) -> Dataset:
    return dcmread(BytesIO(file.data))


def segment(labels: np.ndarray, image: Image, infos=(LESION, ORGAN), **other) -> Dataset:
    (file,) = encode_labels(
        image.with_pixels(labels), stem="scan", labels_info=infos, **{"algorithm": ALGORITHM, "now": NOW, **other}
    )
    assert file.name == "scan_seg.dcm" and file.media_type == "application/dicom"
    return opened(file)


def some_labels(image: Image, highest: int = 2) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, highest + 1, (1, *image.geometry.shape)).astype(np.uint8 if highest < 256 else np.uint16)


def item_of_lut() -> Dataset:
    """A modality table of 64 entries."""
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [64, 0, 16], "US"
    table.add_new("LUTData", "OW", np.arange(64, dtype="<u2").tobytes())
    return table
