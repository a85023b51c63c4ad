"""The command-line door: exit codes, one clear message for each wrong call and each bad input, never a traceback."""

import csv
import gzip
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, get_args

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
import yaml
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from medae import __version__, answers, cli, io
from medae.image import Geometry, Image
from medae.io.answer import Label
from medae.preparation import Preparation, ZScore
from medae.tasks import Segmentation
from tests.conftest import SEGNET, untrained_package
from tests.training_toys import denoising, disc_pictures


class Done(NamedTuple):
    """What a command left: its exit code and what it said."""

    code: int
    out: str
    err: str

    @property
    def one_line(self) -> str:
        """All that it said on stderr, as one line: terminals wrap."""
        return " ".join(self.err.replace("│", " ").split())


Cli = Callable[..., Done]


@pytest.fixture
def medae(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Runs a command in this process, through `main`, as the script would."""
    loggers = [logging.getLogger(name) for name in (None, "medae", "medae_service")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["medae", *map(str, arguments)])
        code: object = 0
        with warnings.catch_warnings():
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code
        said = capsys.readouterr()
        return Done(code if isinstance(code, int) else 0, said.out, said.err)

    yield run
    signal.signal(signal.SIGTERM, handler)
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-D segmentation package for grey images of any range, with random weights."""
    task = Segmentation(kind="segmentation", labels=(Label(name="thing", colour=(255, 0, 0)),))
    folder = tmp_path_factory.mktemp("package") / "things"
    untrained_package(task, SEGNET, Preparation(channels=1, intensity=ZScore())).save(folder)
    return folder


def grey(rows: int = 24, columns: int = 31) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 255, (rows, columns), dtype=np.uint8)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    io.write_image(Image.from_picture(grey()), path)
    return path


# bad input: each a file or folder that `predict` must name, with a word that its reason must hold


def _nifti(path: Path, pixels: np.ndarray, affine: np.ndarray | None = None) -> None:
    nibabel.save(nibabel.Nifti1Image(pixels, np.eye(4) if affine is None else affine), path)


def _broken_header(path: Path, **fields: object) -> None:
    """A NIfTI whose header says what nibabel itself would not write."""
    image = nibabel.Nifti1Image(np.ones((8, 9, 3), np.int16), np.eye(4))
    raw = bytearray(image.to_bytes())
    header = image.header.copy()
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)


def _forged_nifti(path: Path) -> None:
    header = nibabel.Nifti1Header()
    header["dim"] = [3, 32767, 32767, 32767, 1, 1, 1, 1]
    header.set_data_dtype(np.int16)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header["srow_x"], header["srow_y"], header["srow_z"] = np.eye(4)[:3]
    header["sform_code"] = 1
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))


def _forged_tiff(path: Path) -> None:
    tifffile.imwrite(path, np.zeros((4, 4), np.uint8), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tiff.pages[0].tags[name].overwrite(60000)  # type: ignore[union-attr]


def _dicom(path: Path, **changes: object) -> None:
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.SeriesInstanceUID = generate_uid()
    for name, value in changes.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.save_as(path)


def _series_with_a_gap(folder: Path) -> None:
    folder.mkdir()
    uid = generate_uid()
    for number, position in enumerate((0, 5, 10, 20, 25)):
        _dicom(folder / f"{number}.dcm", SeriesInstanceUID=uid, ImagePositionPatient=[0, 0, position])


NO_SIZE = [1, 0, 1, 1, 0, 0, 0, 0]
SINGULAR = np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty.png": (lambda path: path.write_bytes(b""), "empty"),
    "truncated.png": (lambda path: path.write_bytes(_png(120, 130)[:9000]), "truncated|damaged|incomplete"),
    "cut_slice.dcm": (lambda path: path.write_bytes(_ct()[:20000]), "pixel"),
    "cut_volume.nii.gz": (lambda path: path.write_bytes(_gz_volume()[:-4000]), "truncated|damaged|incomplete|end"),
    "magic.png": (lambda path: path.write_text("this is no picture"), "PNG"),
    "dot.png": (lambda path: path.write_bytes(_png(1, 1)), "1 x 1"),
    "nan.nii": (lambda path: _nifti(path, np.full((9, 8, 3), np.nan, np.float32)), "NaN|finite|number"),
    "inf.nii": (lambda path: _nifti(path, np.full((9, 8, 3), np.inf, np.float32)), "inf|finite|number"),
    "axes.nii": (lambda path: _nifti(path, np.zeros((9, 8, 3, 1, 1, 5), np.int16)), "has axes"),
    "flat.nii": (lambda path: _broken_header(path, pixdim=NO_SIZE, sform_code=0, qform_code=1), "spac|size"),
    "singular.nii": (
        lambda path: _broken_header(path, srow_x=SINGULAR[0], srow_y=SINGULAR[1], srow_z=SINGULAR[2], sform_code=2),
        "singular",
    ),
    "forged_volume.nii.gz": (_forged_nifti, "32767"),
    "forged_picture.tif": (_forged_tiff, "60000"),
    "without_pixels.dcm": (lambda path: _dicom(path, PixelData=None), "pixel"),
    "with_gap": (_series_with_a_gap, "gap|missing"),
}  # fmt: skip


def _png(rows: int, columns: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        io.write_image(Image.from_picture(grey(rows, columns)), Path(folder) / "x.png")
        return (Path(folder) / "x.png").read_bytes()


def _ct() -> bytes:
    return Path(get_testdata_file("CT_small.dcm")).read_bytes()


def _gz_volume() -> bytes:
    pixels = np.random.default_rng(6).integers(0, 1000, (20, 19, 18), dtype=np.int16)
    return gzip.compress(nibabel.Nifti1Image(pixels, np.eye(4)).to_bytes())


def program(*arguments: object) -> Done:
    """Runs a command as a process of its own."""
    command = [sys.executable, "-m", "medae", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return Done(done.returncode, done.stdout, done.stderr)


class Batch(NamedTuple):
    done: Done
    rows: dict[str, dict[str, str]]
    out: Path


@pytest.fixture(scope="module")
def bad_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    for name, (make, _) in BAD.items():
        make(folder / name)
    (folder / "good.png").write_bytes(_png(24, 31))
    return folder


@pytest.fixture(scope="module")
def batch(package: Path, bad_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """One call with every bad input and a good one, by the real program."""
    out = tmp_path_factory.mktemp("answers")
    done = program("predict", package, bad_folder, "--out", out)
    with (out / "results.csv").open(newline="") as file:
        return Batch(done, {row["id"]: row for row in csv.DictReader(file)}, out)


def test_bad_inputs_fail_with_exit_code_3_and_the_good_one_is_answered(batch: Batch) -> None:
    assert batch.done.code == 3
    assert "Traceback" not in batch.done.err
    assert len(batch.rows) == len(BAD) + 1
    assert batch.rows["good"]["status"] == "done"
    assert (batch.out / "good_labels.png").is_file()


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_named_with_its_reason(name: str, batch: Batch) -> None:
    stem, word = name.split(".")[0], BAD[name][1]
    row = batch.rows[stem]
    assert row["status"] == "failed"
    assert re.search(word, row["reason"], re.IGNORECASE), row["reason"]
    assert f"{stem}: {row['reason']}" in batch.done.err
    assert name not in row["reason"]
    assert not list(batch.out.glob(f"{stem}_*"))


@pytest.mark.parametrize("name", BAD)
def test_check_and_info_say_the_same(name: str, batch: Batch, bad_folder: Path, package: Path, medae: Cli) -> None:
    stem, path = name.split(".")[0], bad_folder / name
    checked = medae("check", path, "--package", package)
    assert checked.code == 3
    assert checked.out.startswith(f"{stem}: not accepted ({batch.rows[stem]['code']}): {batch.rows[stem]['reason']}")
    if stem not in ("dot", "nan", "inf"):  # sound images, which only a model cannot take
        told = medae("info", path)
        assert told.code == 3
        assert "Traceback" not in told.err


def test_slices_of_several_series_are_refused_as_one_image_and_answered_as_several(
    tmp_path: Path, package: Path, medae: Cli
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for series in range(2):
        uid = generate_uid()
        for number in range(2):
            _dicom(folder / f"{series}{number}.dcm", SeriesInstanceUID=uid, ImagePositionPatient=[0, 0, 5 * number])
    told = medae("info", folder)
    assert told.code == 3
    assert "2" in told.one_line and "series" in told.one_line
    assert medae("predict", package, folder, "--out", tmp_path / "out").code == 0
    assert len(list((tmp_path / "out").glob("*_seg.dcm"))) == 2


# wrong calls: exit 2, one message, nothing left behind


def test_a_missing_input_is_a_wrong_call_and_stops_before_any_work(
    package: Path, picture: Path, tmp_path: Path, medae: Cli
) -> None:
    done = medae("predict", package, picture, tmp_path / "gone.png", "--out", tmp_path / "out")
    assert done.code == 2
    assert "no such file or folder" in done.one_line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate", "info"])
def test_an_unknown_package_is_named(command: str, picture: Path, tmp_path: Path, medae: Cli) -> None:
    arguments = {"predict": [picture, "--out", tmp_path / "out"], "evaluate": ["--out", tmp_path / "out"]}
    done = medae(command, "no-such-model", *arguments.get(command, []))
    assert done.code == 2
    assert "no-such-model" in done.one_line
    assert "Traceback" not in done.err


def test_a_changed_package_is_refused(package: Path, picture: Path, tmp_path: Path, medae: Cli) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(package, changed)
    weights = bytearray((changed / "weights.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "weights.safetensors").write_bytes(weights)
    done = medae("predict", changed, picture, "--out", tmp_path / "out")
    assert (done.code, "digest differs" in done.one_line) == (2, True)


def test_a_newer_package_is_refused(package: Path, picture: Path, tmp_path: Path, medae: Cli) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(package, newer)
    card = json.loads((newer / "card.json").read_text())
    (newer / "card.json").write_text(json.dumps(card | {"format": 99}))
    done = medae("predict", newer, picture, "--out", tmp_path / "out")
    assert (done.code, "update medae" in done.one_line) == (2, True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--threshold", "7"], "threshold"),
        (["--output", "everything"], "everything"),
        (["--device", "abacus"], "abacus"),
        (["--threshold", "high"], "number"),
    ],
)
def test_a_wrong_option_is_named(
    options: list[str], word: str, package: Path, picture: Path, tmp_path: Path, medae: Cli
) -> None:
    done = medae("predict", package, picture, "--out", tmp_path / "out", *options)
    assert done.code == 2
    assert word in done.one_line
    assert "Traceback" not in done.err


def test_an_output_folder_that_cannot_be_written_is_refused(
    package: Path, picture: Path, tmp_path: Path, medae: Cli
) -> None:
    (tmp_path / "file").write_text("")
    done = medae("predict", package, picture, "--out", tmp_path / "file" / "out")
    assert done.code == 2
    assert "output folder cannot be written" in done.one_line


def test_the_outputs_of_the_command_line_are_those_of_the_answers() -> None:
    assert get_args(cli.Output) == get_args(answers.Output)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("name: x\nnetwrok: {}\n", "netwrok"),
        ("name: [1, 2]\n", "name"),
        ("name: x\n  task: y\n", ":2"),
        ("", "expected"),
    ],
)
def test_a_configuration_that_does_not_hold_says_where(text: str, word: str, tmp_path: Path, medae: Cli) -> None:
    config = tmp_path / "experiment.yaml"
    config.write_text(text)
    done = medae("train", config, "--out", tmp_path / "out")
    assert done.code == 2
    assert word in done.one_line
    assert "experiment.yaml" in done.one_line
    assert not (tmp_path / "out").exists()


def test_a_missing_configuration_lists_the_shipped_ones(tmp_path: Path, medae: Cli) -> None:
    done = medae("train", "no/such.yaml", "--out", tmp_path / "out")
    assert done.code == 2
    assert "no such configuration" in done.one_line


# what goes well


def test_predict_answers_a_picture(package: Path, picture: Path, tmp_path: Path, medae: Cli) -> None:
    out = tmp_path / "out"
    done = medae("predict", package, picture, "--out", out)
    assert done.code == 0
    assert "1 done of 1" in done.one_line
    answer = io.read_labels(out / "picture_labels.png")
    assert answer.pixels.shape == (1, 1, *grey().shape)


@pytest.mark.parametrize("output", ["probabilities", "labels-nifti", "summary", "overlay"])
def test_every_output_can_be_had(output: str, package: Path, picture: Path, tmp_path: Path, medae: Cli) -> None:
    assert medae("predict", package, picture, "--out", tmp_path / "out", "--output", output).code == 0
    summary = json.loads((tmp_path / "out/picture_summary.json").read_text())
    assert len(summary["files"]) == (0 if output == "summary" else 1)
    assert all((tmp_path / "out" / file["name"]).is_file() for file in summary["files"])


def test_from_a_configuration_to_answers(tmp_path: Path, medae: Cli) -> None:
    root = disc_pictures(tmp_path / "discs")
    config = tmp_path / "denoise.yaml"
    config.write_text(yaml.safe_dump(denoising(root).model_dump(mode="json")))
    trained = medae("train", config, "--out", tmp_path / "run", "--set", "training.steps=4", "--set", "name=quiet")
    assert trained.code == 0, trained.err
    model = tmp_path / "run/package"
    assert str(model) in trained.out and "quiet" in trained.out
    again = medae("train", config, "--out", tmp_path / "run", "--set", "training.steps=4")
    assert again.code == 2, "another training's results would be overwritten"

    measured = medae("evaluate", model, "--out", tmp_path / "measured")
    assert measured.code == 0, measured.err
    assert json.loads(measured.out) == json.loads((tmp_path / "measured/metrics.json").read_text())

    listed = tmp_path / "cases.csv"
    (tmp_path / "empty.png").write_bytes(b"")
    listed.write_text("id,image\nwhole,discs/images/disc-0.png\nbroken,empty.png\n")
    some = medae("evaluate", model, listed, "--out", tmp_path / "some")
    assert (some.code, "broken: the file is empty" in some.one_line) == (3, True)
    assert "whole: measured" in some.err

    done = medae("predict", model, root / "images", "--out", tmp_path / "answers")
    assert done.code == 0
    assert len(list((tmp_path / "answers").glob("*_restored.png"))) == 8


def test_info_describes_packages_and_images(package: Path, picture: Path, medae: Cli) -> None:
    of_package = json.loads(medae("info", package, "--json").out)
    assert of_package["what"] == "model package"
    assert of_package["digest"].startswith("sha256:")
    of_image = json.loads(medae("info", picture, "--json").out)
    assert (of_image["format"], of_image["rows"], of_image["columns"]) == ("png", *grey().shape)
    assert "untrained" in medae("info", package).out


def test_info_of_values_that_are_not_numbers_is_json(tmp_path: Path, medae: Cli) -> None:
    pixels = np.zeros((1, 2, 3, 4), np.float32)
    for count, values in ((1, [0.0, 0.0]), (24, None)):
        pixels.flat[:count] = np.nan
        io.write_image(Image(pixels.copy(), Geometry((2, 3, 4), np.eye(4))), tmp_path / "nan.nii")
        told = json.loads(medae("info", tmp_path / "nan.nii", "--json").out, parse_constant=pytest.fail)
        assert (told["values"], told["not_finite"]) == (values, count)


def test_info_names_nobody(tmp_path: Path, medae: Cli) -> None:
    path = tmp_path / "slice.dcm"
    _dicom(path, PatientName="Doe^Jane", PatientID="4711-0815")
    said = medae("info", path, "--json").out + medae("info", path).out
    assert "CT" in said or "dicom" in said
    assert "Doe" not in said and "4711-0815" not in said


def test_check_accepts_what_predict_would(package: Path, picture: Path, medae: Cli) -> None:
    done = medae("check", picture, "--package", package)
    assert done.code == 0
    assert done.out.startswith("picture: accepted: png")


def test_models_and_doctor_are_read_by_programs(medae: Cli) -> None:
    assert isinstance(json.loads(medae("models", "--json").out), list)
    assert medae("models").code == 0
    findings = json.loads(medae("doctor", "--json").out)
    assert findings["medae"] == __version__
    assert findings["problems"] == []
    assert "torch" in medae("doctor").out


def test_version_and_schema(tmp_path: Path, medae: Cli) -> None:
    assert medae("--version").out == f"medae {__version__}\n"
    path = tmp_path / "schema.json"
    assert medae("schema", "--out", path).code == 0
    assert json.loads(path.read_text()) == json.loads(medae("schema").out)


def test_serve_refuses_to_listen_beyond_this_machine_without_a_token(package: Path, medae: Cli) -> None:
    done = medae("serve", package, "--host", "0.0.0.0")
    assert (done.code, "--token-file" in done.one_line) == (2, True)


# stopping


def test_a_fault_of_ours_keeps_its_traceback(package: Path, picture: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['medae', 'models']\n"
        "import medae.inspection, medae.cli\n"
        "medae.inspection.list_models = lambda: 1 / 0\n"
        "medae.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_batch_leaves_whole_files_and_a_record(
    number: signal.Signals, code: int, package: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    data = _png(200, 200)
    for item in range(400):
        (folder / f"{item:03}.png").write_bytes(data)
    command = [sys.executable, "-m", "medae", "predict", str(package), str(folder), "--out", str(out)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*_labels.png"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(number)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == code, said
    assert "Traceback" not in said
    assert not list(out.glob("*.part"))
    answered = {path.name[:3] for path in out.glob("*_labels.png")}
    assert 0 < len(answered) < 400
    with (out / "results.csv").open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} <= answered
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"
