"""A batch: every case exactly once over interruptions, changes that are noticed, and a table one can trust.

Here it runs in one process; what the processes of the engine add is tested in test_batch_engine.py.
"""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from medae import io, shipped
from medae.batch import journal, lease, work
from medae.batch.export import export_csv
from medae.batch.folder import Folder
from medae.batch.merge import merge
from medae.batch.run import recorded, run
from medae.batch.settings import BatchSettings, Shard, parse_bytes
from medae.batch.state import state
from medae.calibration import Calibration, benjamini_hochberg
from medae.errors import OutputError, SettingsError, UsageError
from medae.image import Image
from medae.predictor import Predictor
from medae.settings import load_settings, validate_settings
from medae.tasks import Anomaly
from tests.batch_parts import Seen, answers, everything, segmenter, table
from tests.conftest import untrained_package

COUNT = 9


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter, another of the same name, and a calibrated scorer."""
    folder = tmp_path_factory.mktemp("packages")
    segmenter().save(folder / "segmenter")
    segmenter(seed=1).save(folder / "other")
    scorer = untrained_package(Anomaly(), {"kind": "conv_autoencoder", "dims": 2})
    reference = np.linspace(0.01, 0.3, 500).tolist()
    calibration = Calibration.from_scores({"l2_mean": reference}, package_digest=scorer.digest)
    scorer.calibrated(calibration).save(folder / "scorer")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number in range(COUNT):
        pixels = rng.integers(0, 30 + 25 * number, (16 + number % 3, 17 + 2 * (number % 4)), dtype=np.uint8)
        io.write_image(Image.from_picture(pixels), folder / f"p{number}.png")
    return folder


Ask = Callable[..., BatchSettings]


@pytest.fixture
def ask(packages: Path, pictures: Path, tmp_path: Path) -> Ask:
    """Settings of a batch of the pictures with the segmenter, in one process, with a commit after two cases."""

    def ask(out: str = "out", *, models: tuple[str, ...] = ("segmenter",), **given: Any) -> BatchSettings:
        paths = tuple(str(packages / model) for model in models)
        fixed = {"inputs": (str(pictures),), "workers": 0, "batch": 4, "device": "cpu"} | given
        return BatchSettings(packages=paths, out=tmp_path / out, **fixed)

    return ask


def test_each_case_is_answered_as_the_predictor_does(ask: Ask, packages: Path, pictures: Path, tmp_path: Path) -> None:
    seen = Seen()
    counts = run(ask(), seen)
    assert (counts.total, counts.done, counts.left, seen.total, len(seen.ids)) == (COUNT, COUNT, 0, COUNT, COUNT)
    predictor = Predictor(segmenter(), device="cpu")
    rows = table(tmp_path / "out")
    assert [row["id"] for row in rows] == [f"p{number}" for number in range(COUNT)]
    for row in rows:
        direct = predictor(io.read_image(pictures / f"{row['id']}.png"))
        answer = io.read_labels(tmp_path / "out" / row["outputs"][0])
        np.testing.assert_array_equal(answer.pixels, direct.image.pixels)
        assert row["thing_voxels"] == direct.scores["thing_voxels"]
        assert row["package"] == "untrained" and row["device"] == "cpu" and row["status"] == "done"
    assert not list((tmp_path / "out" / ".batch").rglob("*.part")), "nothing temporary is left"
    assert not list((tmp_path / "out" / ".batch" / "staging").iterdir())


def test_a_finished_batch_does_nothing_again(ask: Ask, tmp_path: Path) -> None:
    run(ask(), Seen())
    before = everything(tmp_path / "out")
    seen = Seen()
    run(ask(), seen)
    assert (seen.ids, seen.before) == ([], COUNT)
    assert everything(tmp_path / "out") == before


@pytest.mark.parametrize("stop_after", range(1, COUNT))
def test_a_batch_that_was_stopped_goes_on_to_the_same_end(ask: Ask, tmp_path: Path, stop_after: int) -> None:
    run(ask("whole"), Seen())
    with pytest.raises(KeyboardInterrupt):
        run(ask(), Seen(stop_after))
    seen = Seen()
    run(ask(), seen)
    assert len(seen.ids) == COUNT - stop_after, "Ctrl-C keeps all that was done"
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_work_without_a_record_is_done_again(ask: Ask, tmp_path: Path) -> None:
    """As after SIGKILL or a power cut: answers in their places and in staging, some half-written, and no record."""
    run(ask("whole"), Seen())
    run(ask(), Seen())
    out = Folder(tmp_path / "out")
    last = journal.segments(out)[-1]
    (lost,) = (set(journal.read([last], ["id"])["id"].to_pylist()),)
    last.rename(last.with_name(f".{last.name}.part"))
    for id in lost:
        (tmp_path / "out/answers" / f"{id}_labels.png").write_bytes(b"half")
    (out.staging / "dead").mkdir()
    (out.staging / "dead" / "0123").write_bytes(b"half")
    seen = Seen()
    run(ask(), seen)
    assert set(seen.ids) == lost and len(lost) <= 4, "never more than a batch"
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert not list(out.staging.iterdir()) and not list(out.own.rglob("*.part"))


def test_a_bad_case_fails_alone_and_can_be_tried_again(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    good = (pictures / "p3.png").read_bytes()
    run(ask("clean"), Seen())
    (pictures / "p3.png").write_bytes(good[:-40])
    counts = run(ask(), Seen())
    assert (counts.done, counts.failed, counts.reasons) == (COUNT - 1, 1, {"unreadable-image": 1})
    rows, clean = table(tmp_path / "out"), table(tmp_path / "clean")
    assert rows[3]["status"] == "failed" and rows[3]["reason"] and not rows[3]["outputs"]
    assert rows[:3] + rows[4:] == clean[:3] + clean[4:]
    seen = Seen()
    run(ask(), seen)
    assert not seen.ids, "what failed is not tried again by itself"
    run(recorded(tmp_path / "out"), seen := Seen(), again=True)
    assert seen.ids == ["p3"]
    (pictures / "p3.png").write_bytes(good)
    counts = run(ask(), seen := Seen())
    assert seen.ids == ["p3"] and counts.failed == 0, "a file that was mended is taken at once"
    assert table(tmp_path / "out") == clean


def test_a_changed_input_is_noticed(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    run(ask(), Seen())
    before = everything(tmp_path / "out")
    later = (pictures / "p1.png").stat().st_mtime + 10
    os.utime(pictures / "p1.png", (later, later))
    with pytest.raises(UsageError, match="1 inputs that were answered have changed"):
        run(ask(), Seen())
    run(ask(verify=True), seen := Seen())
    assert not seen.ids, "the bytes are the same"
    data = (pictures / "p2.png").read_bytes()
    times = (pictures / "p2.png").stat()
    io.write_image(Image.from_picture(np.zeros((16, 17), np.uint8)), pictures / "p2.png")
    os.utime(pictures / "p2.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UsageError, match="changed"):
        run(ask(verify=True), Seen())
    assert everything(tmp_path / "out") == before, "a call that is refused changes nothing"
    run(ask(rescore=True), seen := Seen())
    assert seen.ids == ["p1", "p2"]
    (pictures / "p2.png").write_bytes(data)
    run(ask(rescore=True), Seen())
    assert everything(tmp_path / "out") == before


def test_another_model_or_setting_is_noticed(ask: Ask, tmp_path: Path) -> None:
    run(ask("other", models=("other",)), Seen())
    run(ask(), Seen())
    before = everything(tmp_path / "out")
    for changed in (ask(models=("other",)), ask(threshold=0.2), ask(output="overlay")):
        with pytest.raises(UsageError, match="another version of the model untrained or with other settings"):
            run(changed, Seen())
    assert everything(tmp_path / "out") == before and recorded(tmp_path / "out").threshold is None
    run(ask(models=("other",), rescore=True), seen := Seen())
    assert len(seen.ids) == COUNT
    assert everything(tmp_path / "out") == everything(tmp_path / "other")
    run(ask("overlays", models=("other",), output="overlay"), Seen())
    run(ask(models=("other",), output="overlay", rescore=True), Seen())
    assert everything(tmp_path / "out") == everything(tmp_path / "overlays"), "no answer of before is left"


def test_several_models_decode_once(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(ask("scores", models=("scorer",), output="table"), Seen())
    run(ask("both", models=("segmenter",), output="table"), Seen())
    read, decoded = work.read_image, []
    monkeypatch.setattr(work, "read_image", lambda *given, **named: decoded.append(1) or read(*given, **named))
    run(ask("one", models=("segmenter", "scorer"), output="table", report=False), Seen())
    assert len(decoded) == COUNT, "the pictures of a report are read again"
    counts = run(ask("both", models=("segmenter", "scorer"), output="table"), seen := Seen())
    assert (len(seen.ids), counts.done) == (COUNT, COUNT), "a model that was added answers all; the other nothing again"
    assert everything(tmp_path / "both") == everything(tmp_path / "one")
    rows = table(tmp_path / "one")
    assert sorted(row["package"] for row in rows) == ["untrained"] * COUNT + ["untrained-0.1"] * COUNT
    alone = table(tmp_path / "scores")
    scored = [{**row, "package": "untrained"} for row in rows if row["package"] == "untrained-0.1"]
    assert [{name: row[name] for name in alone[0]} for row in scored] == alone


def test_a_score_has_its_place_among_all_of_the_batch(ask: Ask, tmp_path: Path) -> None:
    run(ask(models=("scorer",), threshold=0.2), Seen())
    rows = table(tmp_path / "out")
    p_values = [row["p_value"] for row in rows]
    assert len(set(p_values)) > 2
    np.testing.assert_allclose([row["p_adjusted"] for row in rows], benjamini_hochberg(p_values))
    assert {row["decision"] for row in rows} <= {"normal", "anomalous"}
    assert all(0 <= row["percentile"] <= 100 for row in rows)


def test_shards_make_one_batch(ask: Ask, tmp_path: Path) -> None:
    run(ask("whole"), Seen())
    done: list[str] = []
    for number in (2, 0, 1):
        run(ask(shard=f"{number}/3"), seen := Seen())
        run(ask(f"part{number}", shard=f"{number}/3"), Seen())
        done += seen.ids
    assert sorted(done) == sorted(row["id"] for row in table(tmp_path / "whole"))
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    counts = merge([tmp_path / f"part{number}" for number in range(3)], tmp_path / "merged")
    assert (counts.done, counts.left) == (COUNT, 0)
    assert everything(tmp_path / "merged") == everything(tmp_path / "whole")
    assert "p0" in (tmp_path / "merged" / "report.html").read_text()
    run(recorded(tmp_path / "merged"), seen := Seen())
    assert not seen.ids, "a merged folder is a batch like any other"


def test_the_table_is_written_by_the_shard_that_ends_the_batch_and_not_again(ask: Ask, tmp_path: Path) -> None:
    run(ask("whole"), Seen())
    out = tmp_path / "out"
    rows = []
    for number in (1, 0, 2):
        run(ask(shard=f"{number}/3"), Seen())
        rows.append(len(table(out)))
    assert rows[0] == rows[1] < rows[2] == COUNT, "the first is alone, the last has all"
    written = {path: path.stat().st_ino for path in (out / "report.html", *out.glob("results.parquet/*/*"))}
    for shard in ("1/3", None):
        run(ask(shard=shard), Seen())
    assert {path: path.stat().st_ino for path in written} == written
    assert everything(out) == everything(tmp_path / "whole")
    (out / "results.parquet").rename(tmp_path / "gone")
    assert export_csv(out, tmp_path / "x.csv") == COUNT
    assert everything(out) == everything(tmp_path / "whole")


def test_what_is_merged_where_its_models_are_not_has_a_table_and_says_why_no_report(
    ask: Ask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(ask("a"), Seen())
    said = Folder(tmp_path / "a").settings
    said.write_text(re.sub(r'"packages": \[[^]]*\]', '"packages": ["/nowhere/model"]', said.read_text()))
    merge([tmp_path / "a"], tmp_path / "m")
    assert len(table(tmp_path / "m")) == COUNT and not (tmp_path / "m" / "report.html").exists()
    assert "models of these folders are not here" in caplog.text


def test_only_what_fits_is_merged(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    run(ask("a"), Seen())
    run(ask("b", models=("other",)), Seen())
    with pytest.raises(UsageError, match="different models"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "m")
    (pictures / "p0.png").write_bytes((pictures / "p1.png").read_bytes())
    run(ask("c"), Seen())
    with pytest.raises(UsageError, match="different answers"):
        merge([tmp_path / "a", tmp_path / "c"], tmp_path / "m")
    with pytest.raises(UsageError, match="no batch"):
        merge([tmp_path / "a", pictures], tmp_path / "m2")


def test_two_processes_do_not_do_the_same_work(ask: Ask, tmp_path: Path) -> None:
    run(ask(), Seen())
    folder = Folder(tmp_path / "out")
    with lease.held(folder, Shard(0, 1)) as held:
        assert held.first and state(tmp_path / "out")["running"]
        with pytest.raises(UsageError, match="at work on shard 0"):
            run(ask(), Seen())
        with pytest.raises(UsageError, match="with 1 shards"):
            run(ask(shard="1/2"), Seen())
    with lease.held(folder, Shard(0, 2)) as held:
        held.share()
        with lease.held(folder, Shard(1, 2)) as other:
            assert not other.first
        run(ask(shard="1/2"), seen := Seen())
    assert not seen.ids and not state(tmp_path / "out")["running"]


def test_a_job_that_recurs_takes_what_is_new_and_keeps_what_was_taken_away(
    ask: Ask, pictures: Path, tmp_path: Path
) -> None:
    run(ask(), Seen())
    before = table(tmp_path / "out")
    (pictures / "p0.png").unlink()
    (pictures / "a").mkdir()
    (pictures / "a" / "p1.png").write_bytes((pictures / "p2.png").read_bytes())
    run(ask(), seen := Seen())
    assert seen.ids == ["p1-2"], "p1 keeps its name, though another now comes before it"
    after = table(tmp_path / "out")
    assert sorted(row["id"] for row in after) == sorted([row["id"] for row in before] + ["p1-2"])
    assert [row for row in after if row["id"] != "p1-2"] == before[1:] + before[:1]
    for path in pictures.rglob("*.png"):
        path.unlink()
    run(ask(), seen := Seen())
    assert not seen.ids and len(table(tmp_path / "out")) == COUNT + 1


def test_a_list_says_what_is_to_be_done(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    (pictures / "list.csv").write_text(
        "id,path,patient,other\n007,p0.png,ann,x\nb/c,p1.png,,y\n,p2.png,bob,z\n8,gone.png,,\n"
    )
    counts = run(ask(inputs=(str(pictures / "list.csv"),)), Seen())
    assert (counts.done, counts.failed) == (3, 1)
    rows = table(tmp_path / "out")
    assert [(row["id"], row["patient"]) for row in rows] == [("007", "ann"), ("b/c", None), ("p2", "bob"), ("8", None)]
    assert rows[1]["outputs"] == ["answers/b_c_labels.png"]
    columns = {"image": [str(pictures / f"p{number}.png") for number in range(3)], "id": [1, 2, 3]}
    pq.write_table(pa.table(columns), pictures / "list.parquet")
    run(ask("two", inputs=(str(pictures / "list.parquet"),)), Seen())
    assert [row["id"] for row in table(tmp_path / "two")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("id,path\na,p0.png\nA,p1.png\n", "two of the 2 cases have one id"),
        ("id,path\na/b,p0.png\na_b,p1.png\n", "have one id"),
        ("id,file\na,p0.png\n", "column `path`"),
        ("id,path\na,\n", "row 1 of a list of cases has no path"),
        ("id,path\na,p0.png,secret\n", "cannot be read beyond row 0"),
        ("", "column `path`"),
    ],
)
def test_a_list_that_does_not_hold_is_refused(ask: Ask, pictures: Path, tmp_path: Path, text: str, said: str) -> None:
    (pictures / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        run(ask(inputs=(str(pictures / "list.csv"),)), Seen())
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "out" / ".batch" / "plan.parquet").exists()


def test_a_full_disk_is_named_and_the_batch_goes_on_later(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(ask("whole"), Seen())
    write, room = os.write, [6]  # the first is of batch.json

    def full(descriptor: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= 1
        return write(descriptor, data)

    monkeypatch.setattr(journal.os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        run(ask(), Seen())
    monkeypatch.undo()
    assert state(tmp_path / "out")["done"] == 5, "what was done before is committed"
    run(ask(), seen := Seen())
    assert len(seen.ids) == COUNT - 5
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")


def test_an_output_folder_that_is_not_writable_is_named(
    ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run(ask("file"), Seen())
    run(ask(), Seen())
    replace = os.replace

    def refused(source: Path, target: Path) -> None:
        if "answers" in str(target):
            raise PermissionError(errno.EACCES, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(journal.os, "replace", refused)
    with pytest.raises(OutputError, match="Permission denied"):
        run(ask("again"), Seen())
    monkeypatch.undo()
    run(ask("again"), Seen())
    assert everything(tmp_path / "again") == everything(tmp_path / "out")


def test_an_input_that_vanishes_meanwhile_fails_alone(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    class Thief(Seen):
        def begin(self, total: int, before: int) -> None:
            (pictures / "p4.png").unlink()

    counts = run(ask(), Thief())
    assert (counts.done, counts.failed) == (COUNT - 1, 1)
    assert "cannot be opened" in table(tmp_path / "out")[4]["reason"]


def test_the_state_and_the_csv_say_what_the_table_says(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    (pictures / "p5.png").write_bytes(b"")
    with pytest.raises(UsageError, match="no batch"):
        state(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        run(ask(), Seen(7))
    found = state(tmp_path / "out")
    assert (found["done"], found["failed"], found["left"], found["running"]) == (6, 1, 2, False)
    assert found["failures"][0]["id"] == "p5" and "empty" in found["failures"][0]["reason"]
    assert export_csv(tmp_path / "out", tmp_path / "x.csv") == 7, "of a batch that was stopped, what is done"
    run(ask(), Seen())
    assert export_csv(tmp_path / "out", tmp_path / "x.csv") == COUNT
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[0].startswith("package,id,patient,target,status,thing_voxels,percentile")
    assert lines[1].startswith("untrained,p0,,,done,") and ",answers/p0_labels.png," in lines[1]


def test_many_cases_are_spread_over_folders(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medae.batch.run.FAN_OUT", COUNT - 1)
    run(ask(), Seen())
    names = list(answers(tmp_path / "out"))
    assert len({Path(name).parent for name in names}) > 3
    assert sorted(names) == sorted(row["outputs"][0] for row in table(tmp_path / "out"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"shard": "3/3"}, "counts from 0 to n-1"),
        ({"shard": "one"}, "pattern"),
        ({"max_ram": "much"}, "such as 8G"),
        ({"max_ram": "8G", "workers": 0}, "max_ram is kept by the worker processes .* leave it out with workers: 0"),
        ({"max_vram": "8G", "engine": "ray"}, "max_vram is kept .* with engine: ray"),
        ({"ray_address": "auto"}, "give engine: ray too"),
        ({"packages": []}, "at least 1"),
        ({"worker": 3}, "worker"),
    ],
)
def test_settings_that_do_not_hold_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        validate_settings({"packages": ["p"], "inputs": ["i"], "out": "o"} | given, BatchSettings, "x")


@pytest.mark.parametrize(("text", "size"), [("8G", 8 << 30), ("1.5 GiB", 3 << 29), ("512MB", 512 << 20), (7, 7)])
def test_bytes_are_said_as_people_say_them(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "path", sorted((shipped.configs_folder() / "batch").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configurations_of_batches_hold(path: Path) -> None:
    assert load_settings(path, BatchSettings).packages


def test_the_report_shows_what_the_table_says(ask: Ask, pictures: Path, tmp_path: Path) -> None:
    (pictures / "p5.png").write_bytes(b"")
    run(ask(models=("scorer",)), Seen())
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Highest l2_mean" in page and "the file is empty" in page and ">p5<" in page
    assert f"of {COUNT - 1} cases are anomalous at a false discovery rate of 5%" in page
    assert "Most of it is <b>" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "it asks nobody for anything"
    best = max((row for row in table(tmp_path / "out") if row["status"] == "done"), key=lambda row: row["l2_mean"])
    assert page.index(f"<b>{best['id']}</b>") < page.index("Lowest")
