"""run.json says what happened, however the work ended, and nothing about a patient."""

import json
import os
import subprocess
import sys
from datetime import datetime

import numpy as np
import pytest

import medae
from medae import record
from medae.errors import OutputError, TrainingError
from medae.record import Run, recording


def read(out):
    return json.loads((out / "run.json").read_text())


def test_says_what_ran(tmp_path):
    with recording(tmp_path, "evaluate", seed=7, digests={"package": "sha256:ab"}) as run:
        run.done("first", dice=0.5)
        run.failed("second", "this image is too small")
        run.facts["device"] = "cpu"
    data = read(tmp_path)
    assert (data["command"], data["status"], data["seed"], data["device"]) == ("evaluate", "done", 7, "cpu")
    assert data["digests"] == {"package": "sha256:ab"}
    assert data["cases"] == [
        {"id": "first", "status": "done", "dice": 0.5},
        {"id": "second", "status": "failed", "reason": "this image is too small"},
    ]
    assert data["versions"]["medae"] == medae.__version__
    assert data["versions"]["numpy"] == np.__version__
    assert {"torch", "monai", "python"} <= set(data["versions"])
    started, finished = datetime.fromisoformat(data["started"]), datetime.fromisoformat(data["finished"])
    assert started <= finished and started.tzinfo is not None


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (TrainingError("the loss is not a number"), "failed", "the loss is not a number"),
        (ValueError("/home/anna/JOHN_DOE.nii"), "failed", "ValueError"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (SystemExit(143), "interrupted", "SystemExit"),
    ],
)
def test_is_written_when_the_work_fails(tmp_path, error, status, reason):
    with pytest.raises(type(error)), recording(tmp_path, "train"):
        raise error
    data = read(tmp_path)
    assert (data["status"], data["reason"]) == (status, reason)
    assert "JOHN" not in (tmp_path / "run.json").read_text()


def test_holds_no_arguments_and_no_paths(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["medae", "predict", "JOHN_DOE.nii"])
    Run("predict").write(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert "JOHN" not in text and str(tmp_path) not in text


def test_nothing_is_written_without_a_place():
    with recording(None, "evaluate") as run:
        run.done("one")
    assert [case["id"] for case in run.cases] == ["one"]


def test_a_place_that_is_a_file_is_refused_and_hides_no_earlier_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Run("train").write(tmp_path / "file")
    with pytest.raises(TrainingError), recording(tmp_path / "file", "train"):
        raise TrainingError("first")


def test_commit_is_that_of_the_checkout_or_none(tmp_path, monkeypatch):
    monkeypatch.setattr(medae, "__file__", str(tmp_path / "medae" / "__init__.py"))
    assert record.commit() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e@x"]
    if subprocess.run([*git, "init", "-q"], check=False).returncode:
        pytest.skip("git is not installed")
    (tmp_path / "a").write_text("1")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-q", "--no-verify", "-m", "a"], check=True)
    clean = record.commit()
    assert clean is not None and len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert record.commit() == f"{clean}-dirty"


def test_a_half_written_file_is_never_seen(tmp_path, monkeypatch):
    Run("first").write(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        Run("second").write(tmp_path)
    monkeypatch.undo()
    assert read(tmp_path)["command"] == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
