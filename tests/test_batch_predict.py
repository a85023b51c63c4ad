"""`medae predict`: a bad item fails alone, and nothing half-written is left."""

import csv
import errno
import json
import logging
import os
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from medae import io
from medae.batch import predict, work
from medae.batch.folder import require_writable
from medae.batch.item import Item
from medae.batch.manifest import list_items
from medae.batch.predict import predict_items
from medae.batch.progress import Progress
from medae.batch.work import Outcome
from medae.errors import OutputError, UsageError
from medae.package import ModelPackage
from medae.predictor import Predictor
from tests.batch_parts import segmenter, write_pictures


@pytest.fixture(scope="module")
def package() -> ModelPackage:
    return segmenter()


@pytest.fixture(scope="module")
def predictor(package: ModelPackage) -> Predictor:
    return Predictor(package, device="cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "in")


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


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
    real, bad = work.read_image, (pictures / "b.png").read_bytes()
    monkeypatch.setattr(
        work, "read_image", lambda source, **settings: 1 / 0 if source == bad else real(source, **settings)
    )
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
    done = Outcome(item, "done", {"predict": 1.5}, {"scores": {"b": 2.0, "a": 1.0}, "gate": {"verdict": "ok"}})
    failed = Outcome(item, "failed", code="bad-series", reason='three slices, "mixed"')
    lines = list(csv.DictReader(predict._results([done, failed], with_paths=True).data.decode().splitlines()))
    assert list(lines[0]) == [*predict.COLUMNS[:3], "a", "b", *predict.COLUMNS[3:]]
    assert (lines[0]["a"], lines[0]["gate"], lines[1]["a"]) == ("1.0", "ok", "")
    assert lines[1]["reason"] == 'three slices, "mixed"'


@pytest.fixture
def outcomes() -> list[Outcome]:
    items = [Item(name, (Path(f"{name}.png"),)) for name in ("a", "b[red]")]
    return [Outcome(items[0], "done", {"predict": 0.5}), Outcome(items[1], "failed", reason="the file is empty")]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_names_failures_and_where_results_are(terminal: bool, outcomes: list[Outcome]) -> None:
    console = Console(file=StringIO(), force_terminal=terminal, width=120, soft_wrap=True, color_system=None)
    with Progress(Path("out/results.csv"), console) as watch:
        watch.begin(2, passed_over=3)
        for outcome in outcomes:
            watch.see((outcome,))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "b[red]: the file is empty" in said
    assert "1 done, 1 failed of 2; files passed over, no images or not asked for: 3; results in out/results.csv" in said
    assert ("[1/2] a: done" in said) is not terminal


def test_progress_of_many_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10**6, 2))
    monkeypatch.setattr("medae.batch.progress.time.monotonic", lambda: next(clock))
    console = Console(file=StringIO(), width=120, soft_wrap=True)
    with Progress(Path("out/results.parquet"), console) as watch:
        watch.begin(6000, before=1000)
        for number in range(300):
            watch.see((Outcome(Item(f"x{number}", ()), "failed" if number < 150 else "done", reason="bad"),))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1000 of 6000 cases were finished before" in said
    assert said.count(": bad") == 100 and "further failures" in said
    assert 0 < said.count("min left") < 30


def test_progress_is_silent_where_the_call_was_wrong() -> None:
    console = Console(file=StringIO(), width=120, soft_wrap=True)
    with pytest.raises(UsageError), Progress(Path("out/results.csv"), console):
        raise UsageError("no such output")
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_progress_promises_no_results_where_none_could_be_written() -> None:
    console = Console(file=StringIO(), width=120, soft_wrap=True)
    with pytest.raises(OutputError), Progress(Path("out/results.csv"), console):
        raise OutputError("no space left")
    assert "nothing done of 0" in console.file.getvalue()  # type: ignore[attr-defined]
    assert "results.csv" not in console.file.getvalue()  # type: ignore[attr-defined]
