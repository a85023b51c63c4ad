"""What the tests of the batch share: a small model, pictures, DICOM series."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medae import io
from medae.batch import results
from medae.batch.folder import Folder
from medae.batch.work import Outcome
from medae.image import Image
from medae.io.answer import Label
from medae.package import ModelPackage
from medae.tasks import Segmentation
from tests.conftest import SEGNET, untrained_package


def segmenter(seed: int = 0) -> ModelPackage:
    task = Segmentation(kind="segmentation", labels=(Label(name="thing", colour=(255, 0, 0)),))
    return untrained_package(task, SEGNET, seed=seed)


def write_pictures(folder: Path) -> Path:
    """Three grey pictures of odd sizes in a folder, with a note beside them."""
    folder.mkdir()
    for name, shape in (("a", (17, 23)), ("b", (21, 16)), ("c", (16, 16))):
        pixels = np.random.default_rng(3).integers(0, 255, shape, dtype=np.uint8)
        io.write_image(Image.from_picture(pixels), folder / f"{name}.png")
    (folder / "notes.txt").write_text("about these pictures")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return folder


def write_series(folder: Path, positions_mm: list[float], uid: str | None = None) -> list[Path]:
    """A CT series whose slices lie at the given positions, in files of mixed order."""
    folder.mkdir(parents=True, exist_ok=True)
    uid = uid or generate_uid()
    paths = []
    for number, position in enumerate(positions_mm):
        dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
        dataset.SeriesInstanceUID = uid
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = [0, 0, position]
        paths.append(folder / f"{(number * 7) % 10}{number}.dcm")
        dataset.save_as(paths[-1])
    return paths


class Seen:
    """Watches a batch, and stops it after some cases where it is told to."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.total = self.before = 0
        self.ids: list[str] = []
        self._stop_after = stop_after

    def begin(self, total: int, before: int) -> None:
        self.total, self.before = total, before

    def see(self, outcomes: Sequence[Outcome]) -> None:
        self.ids.append(outcomes[0].item.id)
        if len(self.ids) == self._stop_after:
            raise KeyboardInterrupt


def table(out: Path) -> list[dict[str, Any]]:
    """The results without what no two runs have in common: the seconds."""
    found = results.read(Folder(out)).to_table().to_pylist()
    return [{name: value for name, value in row.items() if not name.startswith("seconds_")} for row in found]


def answers(out: Path) -> dict[str, bytes]:
    """Every answer, by its name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "answers").rglob("*.*"))}


def everything(out: Path) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """What two runs of one batch must have in common, byte for byte."""
    return table(out), answers(out)
