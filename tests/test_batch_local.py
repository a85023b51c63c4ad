"""The local batch: what its inputs mean, that a bad item fails alone, and that nothing half-written is left."""

import csv
import errno
import json
import logging
import os
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from rich.console import Console

from medae import io
from medae.batch import local
from medae.batch.local import Outcome, predict_items, require_writable
from medae.batch.manifest import Item, Manifest, expand, list_items
from medae.batch.progress import Progress
from medae.errors import OutputError, UsageError
from medae.image import Image
from medae.io.answer import Label
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.tasks import Segmentation
from tests.conftest import untrained_package


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    task = Segmentation(kind="segmentation", labels=(Label(name="thing", colour=(255, 0, 0)),))
    return untrained_package(task, {"kind": "unet", "dims": 2, "features": (4, 8), "strides": (2,)})


@pytest.fixture(scope="module")
def predictor(package: ModelPackage) -> Predictor:
    return Predictor(package, device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three grey pictures of odd sizes in a folder, with a note beside them."""
    folder = tmp_path / "in"
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


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


# what the inputs mean


def test_a_folder_gives_an_item_for_each_image(pictures: Path) -> None:
    manifest = list_items([str(pictures)])
    assert [item.id for item in manifest.items] == ["a", "b", "c"]
    assert manifest.passed_over == 1


def test_a_damaged_image_of_a_folder_is_not_passed_over(pictures: Path) -> None:
    (pictures / "d.nii.gz").write_bytes(b"")
    assert [item.id for item in list_items([str(pictures)]).items] == ["a", "b", "c", "d"]


def test_a_pattern_gives_what_it_matches_in_order(pictures: Path) -> None:
    assert [path.name for path in expand(str(pictures / "[ac].png"))] == ["a.png", "c.png"]
    assert expand(str(pictures / "*.tif")) == []


def test_a_file_whose_name_looks_like_a_pattern_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "scan[1].png"
    path.write_bytes(b"")
    assert expand(str(path)) == [path]


def test_items_with_one_stem_get_names_of_their_own(tmp_path: Path) -> None:
    for name in ("x.png", "x.nii.gz", "x-2.png", "X.tif"):
        (tmp_path / name).write_bytes(b"")
    ids = [item.id for item in list_items([str(tmp_path / "x.png"), str(tmp_path)]).items]
    assert len({name.casefold() for name in ids}) == 4
    assert ids[0] == "x"


def test_an_answer_is_called_after_the_link_that_was_named(pictures: Path) -> None:
    (pictures.parent / "case-7.png").symlink_to(pictures / "a.png")
    assert [item.id for item in list_items([str(pictures.parent / "case-7.png")]).items] == ["case-7"]


@pytest.mark.parametrize("name", ["back\\slash", "two\nlines", "no text \udcff", "\N{SNOWMAN}" * 83])
def test_any_name_that_a_file_can_have_is_answered(
    name: str, predictor: Predictor, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.png").rename(pictures / f"{name}.png")
    outcomes = predict_items(predictor, list_items([str(pictures)]).items, tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    made = next(outcome for outcome in outcomes if outcome.item.id not in "ac").item.id
    assert made.isprintable() and (tmp_path / "out" / f"{made}_labels.png").is_file()
    assert len(rows(tmp_path / "out")) == 3


def test_slices_of_one_series_are_one_item_however_they_are_given(tmp_path: Path) -> None:
    first = write_series(tmp_path / "first", [0, 5, 10])
    write_series(tmp_path / "second", [0, 5])
    by_folder = list_items([str(tmp_path)])
    assert [(item.id, len(item.files)) for item in by_folder.items] == [("first", 3), ("second", 2)]
    by_files = list_items([str(path) for path in first])
    assert [len(item.files) for item in by_files.items] == [3]


def test_dicom_without_a_picture_fails_when_named_and_is_passed_over_in_a_folder(tmp_path: Path) -> None:
    report = get_testdata_file("reportsi.dcm")
    assert len(list_items([report]).items) == 1
    (tmp_path / "report.dcm").write_bytes(Path(report).read_bytes())
    write_series(tmp_path / "scan", [0, 5])
    manifest = list_items([str(tmp_path)])
    assert ([item.id for item in manifest.items], manifest.passed_over) == (["scan"], 1)


def test_answers_of_an_earlier_run_are_no_inputs(pictures: Path) -> None:
    out = pictures / "answers"
    out.mkdir()
    (out / "a_labels.png").write_bytes(b"")
    assert len(list_items([str(pictures)], out=out).items) == 3
    with pytest.raises(UsageError, match="output folder is one of the inputs"):
        list_items([str(pictures)], out=pictures)


def test_inputs_without_an_image_are_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(UsageError, match="no image among the inputs"):
        list_items([str(tmp_path)])
    with pytest.raises(UsageError, match="input 2 of 2"):
        list_items([str(tmp_path), str(tmp_path / "gone.png")])


def test_a_circle_of_links_ends(pictures: Path) -> None:
    (pictures / "again").symlink_to(pictures, target_is_directory=True)
    assert len(list_items([str(pictures)]).items) == 3


# what becomes of them


def test_each_item_is_answered_in_its_own_format(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    seen: list[Outcome] = []
    out = tmp_path / "out"
    outcomes = predict_items(predictor, list_items([str(pictures)]).items, out, watch=seen.append)
    assert seen == outcomes
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}_{what}" for name in "abc" for what in ("labels.png", "summary.json")),
        *("results.csv", "run.json"),
    }
    answer = io.read_labels(out / "a_labels.png")
    direct = predictor(io.read_image(pictures / "a.png"))
    np.testing.assert_array_equal(answer.pixels, direct.image.pixels)
    summary = json.loads((out / "a_summary.json").read_text())
    assert [file["name"] for file in summary["files"]] == ["a_labels.png"]
    assert rows(out)["a"]["status"] == "done"
    run = json.loads((out / "run.json").read_text())
    assert run["digests"] == {"package": predictor.package.digest}
    assert [case["id"] for case in run["cases"]] == ["a", "b", "c"]


def test_a_bad_item_is_named_with_its_reason_and_the_others_go_on(
    predictor: Predictor, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "b.png").write_bytes(b"")
    out = tmp_path / "out"
    outcomes = predict_items(predictor, list_items([str(pictures)]).items, out)
    assert [outcome.status for outcome in outcomes] == ["done", "failed", "done"]
    row = rows(out)["b"]
    assert (row["status"], row["code"]) == ("failed", "unreadable-image")
    assert "empty" in row["reason"]
    assert not list(out.glob("b_*"))


def test_a_file_that_vanished_fails_alone(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    items = list_items([str(pictures)]).items
    (pictures / "a.png").unlink()
    outcomes = predict_items(predictor, items, tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["failed", "done", "done"]


def test_a_fault_of_ours_costs_one_item_and_is_not_called_bad_input(
    predictor: Predictor,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = local.read_image
    monkeypatch.setattr(local, "read_image", lambda source: 1 / 0 if source.name == "b.png" else real(source))
    with caplog.at_level(logging.ERROR):
        outcomes = predict_items(predictor, list_items([str(pictures)]).items, tmp_path / "out")
    assert [outcome.status for outcome in outcomes] == ["done", "fault", "done"]
    assert "ZeroDivisionError" in outcomes[1].reason
    assert "Traceback" in caplog.text


def test_a_wrong_output_is_refused_before_any_work(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="everything"):
        predict_items(predictor, list_items([str(pictures)]).items, tmp_path / "out", output="everything")
    with pytest.raises(UsageError, match="threshold"):
        predict_items(predictor, list_items([str(pictures)]).items, tmp_path / "out", threshold=2)
    assert not list((tmp_path / "out").iterdir())


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            require_writable(out)


def test_a_full_disk_stops_the_batch_and_leaves_whole_answers_only(
    predictor: Predictor, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [2]

    def full_after_two_files(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full_after_two_files)
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="No space left"):
        predict_items(predictor, list_items([str(pictures)]).items, out)
    assert {path.name for path in out.rglob("*")} == {"a_labels.png", "a_summary.json"}


def test_a_stopped_batch_says_what_it_did(predictor: Predictor, pictures: Path, tmp_path: Path) -> None:
    def stop_at_two(outcome: Outcome) -> None:
        if outcome.item.id == "b":
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        predict_items(predictor, list_items([str(pictures)]).items, out, watch=stop_at_two)
    assert list(rows(out)) == ["a", "b"]
    assert json.loads((out / "run.json").read_text())["status"] == "interrupted"


def test_scores_are_columns_between_the_fixed_ones() -> None:
    item = Item("x", (Path("x.png"),))
    done = Outcome(item, "done", 1.5, {"scores": {"b": 2.0, "a": 1.0}, "gate": {"verdict": "ok"}, "files": []})
    failed = Outcome(item, "failed", 0.1, code="bad-series", reason='three slices, "mixed"')
    lines = list(csv.DictReader(local._results([done, failed]).data.decode().splitlines()))
    assert list(lines[0]) == [*local.COLUMNS[:3], "a", "b", *local.COLUMNS[3:]]
    assert (lines[0]["a"], lines[0]["gate"], lines[1]["a"]) == ("1.0", "ok", "")
    assert lines[1]["reason"] == 'three slices, "mixed"'


@pytest.fixture
def outcomes() -> Iterator[list[Outcome]]:
    items = [Item(name, (Path(f"{name}.png"),)) for name in ("a", "b[red]")]
    yield [Outcome(items[0], "done", 0.5), Outcome(items[1], "failed", 0.1, reason="the file is empty")]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_failures_and_where_results_are(terminal: bool, outcomes: list[Outcome]) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=120, soft_wrap=True, color_system=None)
    with Progress(Manifest(tuple(outcome.item for outcome in outcomes), 3), Path("out"), console) as watch:
        for outcome in outcomes:
            watch(outcome)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "b[red]: the file is empty" in said
    assert "1 done, 1 failed of 2; files passed over as no images: 3; results in out/results.csv" in said
    assert ("[1/2] a: done" in said) is not terminal


def test_progress_is_silent_where_the_call_was_wrong() -> None:
    console = Console(file=StringIO(), width=120, soft_wrap=True)
    with pytest.raises(UsageError), Progress(Manifest((), 0), Path("out"), console):
        raise UsageError("no such output")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_progress_promises_no_results_where_none_could_be_written() -> None:
    console = Console(file=StringIO(), width=120, soft_wrap=True)
    with pytest.raises(OutputError), Progress(Manifest((), 0), Path("out"), console):
        raise OutputError("no space left")
    assert "nothing done of 0" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "results.csv" not in console.file.getvalue()  # type: ignore[attr-defined]
