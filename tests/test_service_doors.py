"""The same file and package give the same files at every door: Python, command line, HTTP and tiles, alone and while
others ask; for all tasks and formats, through a real service with two workers."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nibabel
import numpy as np
import pytest
import tifffile
from pydicom import dcmread
from typer.testing import CliRunner

from medae.answers import answer_files
from medae.cli import app
from medae.io import read_image
from medae.package import ModelPackage
from medae.predictor import Predictor
from tests.conftest import tilted_affine
from tests.dicom_made import as_files, ct_series, written
from tests.service_parts import denoiser, png, scorer, segmenter
from tests.test_service_process import Running, start, stop

PACKAGES = {"segment": segmenter(), "restore": denoiser(), "score": scorer()}
OBLIQUE = ((0.9, 0.3, 0.3162278), (-0.3162278, 0.9486833, 0.0))
CLOCK = ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime")
"""When a DICOM answer was made; all else of it is compared."""

Files = dict[str, Any]
"""What follows the stem in a file's name -> what must be equal."""


def _directions() -> Sequence[Sequence[float]]:
    """Two unit vectors at a right angle, along no axis of the patient."""
    rows = np.array(OBLIQUE[0]) / np.linalg.norm(OBLIQUE[0])
    columns = np.array(OBLIQUE[1]) - rows * (rows @ np.array(OBLIQUE[1]))
    return [list(rows), list(columns / np.linalg.norm(columns))]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """One image a format, odd sizes; the files of each."""
    folder, draw = tmp_path_factory.mktemp("in"), np.random.default_rng(1)
    (folder / "picture.png").write_bytes(png(83, 61))
    tifffile.imwrite(folder / "scan.tif", draw.integers(0, 60000, (53, 47), np.uint16))
    voxels = nibabel.Nifti1Image(draw.integers(-50, 900, (39, 33, 5), np.int16), tilted_affine())
    nibabel.save(voxels, folder / "volume.nii.gz")
    series = as_files(ct_series(draw.integers(-1000, 1000, (4, 35, 45), np.int16), _directions()))
    (folder / "series").mkdir()
    alone = ct_series(draw.integers(-1000, 1000, (1, 41, 37), np.int16), _directions(), change=_of_another_series)
    (folder / "slice.dcm").write_bytes(as_files(alone)[0])
    found = {name: [folder / name] for name in ("picture.png", "scan.tif", "volume.nii.gz", "slice.dcm")}
    return found | {"series": written(series, folder / "series")}


def _of_another_series(dataset: Any, index: int) -> None:
    """The command line puts the files of one series together, wherever they lie."""
    dataset.SeriesInstanceUID += ".1"
    dataset.SOPInstanceUID += ".1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


@dataclass(frozen=True)
class Doors:
    service: Running
    inputs: dict[str, list[Path]]

    def python(self, endpoint: str, name: str) -> Files:
        package: ModelPackage = PACKAGES[endpoint]
        paths = self.inputs[name]
        image = read_image(paths[0] if len(paths) == 1 else paths)
        prediction = Predictor(package, device="cpu")(image)
        return compared({file.name: file.data for file in answer_files(prediction, package, stem="x", original=image)})

    def http(self, endpoint: str, name: str) -> Files:
        sent = [("file", path.read_bytes()) for path in self.inputs[name]]
        return unzipped(self._post(f"/v1/{endpoint}", sent))

    def tiles(self, endpoint: str, name: str) -> Files:
        """As the second of two items."""
        sent = [("file", png()), ("file", self.inputs[name][0].read_bytes())]
        return {
            name: data for name, data in unzipped(self._post(f"/v1/tiles/{endpoint}", sent), prefix="000001").items()
        }

    def _post(self, path: str, sent: list[tuple[str, bytes]]) -> bytes:
        answer = httpx.post(self.service.url + path, files=sent, headers={"Accept": "application/zip"}, timeout=120)
        assert answer.status_code == 200, answer.text
        return answer.content


def unzipped(data: bytes, prefix: str = "") -> Files:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return compared({name: archive.read(name) for name in archive.namelist() if name.startswith(prefix)})


def compared(files: dict[str, bytes]) -> Files:
    """Without summaries (they have the request's id) and without the names' stems."""
    answers = {name: data for name, data in files.items() if not name.endswith(".json")}
    assert answers
    return dict(sorted((_kind(name), _without_clock(data)) for name, data in answers.items()))


def _kind(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{'/' if folder else ''}{file.partition('_')[2] or file}"


def _without_clock(data: bytes) -> object:
    if data[128:132] != b"DICM":
        return data
    dataset = dcmread(io.BytesIO(data))
    for keyword in CLOCK:
        if keyword in dataset:
            del dataset[keyword]
    return dataset.to_json()


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, list[Path]]) -> Iterator[Doors]:
    folder = tmp_path_factory.mktemp("s")
    for package in PACKAGES.values():
        package.save(folder / package.card.name)
    (folder / "service.yaml").write_text("waiting: 256\n")
    names = [package.card.name for package in PACKAGES.values()]
    running = start(folder, *names, "--workers", "2", "--config", "service.yaml")
    yield Doors(running, inputs)
    stop(running)


FORMATS = ("picture.png", "scan.tif", "volume.nii.gz", "slice.dcm", "series")


@pytest.mark.parametrize("endpoint", PACKAGES)
def test_every_door_gives_the_same_files_alone_and_under_load(doors: Doors, tmp_path: Path, endpoint: str) -> None:
    expected = {name: doors.python(endpoint, name) for name in FORMATS}
    alone = {name: doors.http(endpoint, name) for name in FORMATS}
    assert alone == expected
    with ThreadPoolExecutor(16) as threads:
        others = [threads.submit(doors.http, other, name) for other in PACKAGES for name in FORMATS]
        asked = [(name, threads.submit(doors.http, endpoint, name)) for name in FORMATS * 3]
        tiles = [(name, threads.submit(doors.tiles, endpoint, name)) for name in FORMATS[:-1] * 2]
        for name, answer in [*asked, *tiles]:
            assert answer.result() == expected[name], name
        assert all(other.result() for other in others)
    assert by_command(doors.inputs, endpoint, tmp_path) == expected


def by_command(inputs: dict[str, list[Path]], endpoint: str, folder: Path) -> dict[str, Files]:
    """`medae predict` for all inputs in one call."""
    PACKAGES[endpoint].save(folder / "package")
    given = [str(paths[0] if len(paths) == 1 else paths[0].parent) for paths in inputs.values()]
    done = CliRunner().invoke(
        app, ["predict", str(folder / "package"), *given, "--out", str(folder / "out"), "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    found: dict[str, dict[str, bytes]] = {name: {} for name in inputs}
    for path in sorted((folder / "out").rglob("*")):
        local = path.relative_to(folder / "out").as_posix()
        owner = next((name for name in inputs if local.startswith(name.split(".")[0])), None)
        if path.is_file() and owner is not None:
            found[owner][local] = path.read_bytes()
    return {name: compared(files) for name, files in found.items()}
