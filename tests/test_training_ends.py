"""How a training ends when something is wrong, what it says, and that what was good is kept."""

import json
import math
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from medae.errors import OutputError, SettingsError, TrainingError, UsageError
from medae.objectives.fidelity import _MSE
from medae.package import ModelPackage
from medae.training import train
from medae.training.log import Log
from medae.training.state import State
from medae.training.stopping import Stop
from tests.training_toys import denoising, disc_pictures, lines, require_same_end, segmentation, tensors


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return disc_pictures(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def broken(monkeypatch):
    """The term mse goes wrong at this step (its value, or its gradient alone)."""

    def broken(step: int, wrong) -> None:
        calls = 0
        plain = _MSE.forward

        def forward(self, output, target):
            nonlocal calls
            calls += 1
            value = plain(self, output, target)
            return wrong(value, output.prediction) if calls == step else value

        monkeypatch.setattr(_MSE, "forward", forward)

    return broken


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda value, prediction: value * math.nan, "the loss term mse is nan at step 5"),
        (lambda value, prediction: value + math.inf, "the loss term mse is inf at step 5"),
        # the root of 0 is fine, its slope is not
        (lambda value, prediction: value + (0 * prediction).sqrt().sum(), "the gradient is nan at step 5"),
    ],
)
def test_a_loss_that_is_no_number_stops_and_keeps_what_was_good(wrong, named, discs, tmp_path, broken):
    broken(5, wrong)
    with pytest.raises(TrainingError, match=named) as caught:
        train(denoising(discs), tmp_path)
    assert "package/ keeps the best weights (step 3)" in str(caught.value)
    assert "after 3 training steps" in ModelPackage.load(tmp_path / "package").card.metrics["validation"]["protocol"]
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert all(value.isfinite().all() for value in tensors(tmp_path).values())
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["status"] == "failed" and named in run["reason"]


def test_nothing_to_resume(discs, tmp_path):
    with pytest.raises(UsageError, match="to resume from"):
        train(denoising(discs), tmp_path / "new", resume=True)
    (tmp_path / "last.pt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(TrainingError, match="damaged"):
        train(denoising(discs), tmp_path, resume=True)


def test_a_checkpoint_runs_no_code(discs, tmp_path):
    torch.save({"experiment": "{}", "network": Path("x")}, tmp_path / "last.pt")
    with pytest.raises(TrainingError, match="damaged"):
        train(denoising(discs), tmp_path, resume=True)


def test_an_output_that_is_a_file(discs, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        train(denoising(discs), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_what_was_there(discs, tmp_path, monkeypatch):
    saved = 0
    plain = State.save

    def full_at_the_second(self, out, experiment):
        nonlocal saved
        saved += 1
        if saved == 2:

            def full(*_):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(os, "write", full)
        plain(self, out, experiment)

    monkeypatch.setattr(State, "save", full_at_the_second)
    experiment = denoising(discs)
    with pytest.raises(OutputError, match="No space left"):
        train(experiment, tmp_path / "parts")
    monkeypatch.undo()
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == 3
    assert not [path for path in (tmp_path / "parts").rglob(".*")]
    train(experiment, tmp_path / "parts", resume=True)
    train(experiment, tmp_path / "whole")
    require_same_end(tmp_path / "whole", tmp_path / "parts")


def test_a_bad_case_is_named_and_the_others_go_on(tmp_path, caplog):
    root = disc_pictures(tmp_path / "data")
    experiment = segmentation(root)
    bad = experiment.data.cases("train")[0]
    bad.image.write_bytes(b"")
    package = train(experiment, tmp_path / "out")
    assert package.card.metrics["validation"]["cases"] == 1
    (case,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"]
    assert (case["id"], case["status"], case["split"]) == (bad.id, "failed", "train") and case["reason"]
    assert f"case {bad.id} (train) is left out" in caplog.text


@pytest.mark.parametrize("split", ["train", "validation"])
def test_no_case_left(split, tmp_path):
    root = disc_pictures(tmp_path / "data")
    experiment = segmentation(root)
    for case in experiment.data.cases(split):
        case.image.write_bytes(b"")
    with pytest.raises(SettingsError, match=f"no usable case in the {split} split"):
        train(experiment, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "run.json").read_text())["status"] == "failed"


def test_lines_of_steps_to_be_done_again_are_cut(tmp_path):
    kept = '{"step": 2}\n{"step": 4}\n'
    (tmp_path / "metrics.jsonl").write_text(kept + '{"step": 6}\n{"st')
    Log(tmp_path, step=4, steps=9, every=2, progress=False)
    assert (tmp_path / "metrics.jsonl").read_text() == kept


def test_lines_are_plain_where_there_is_no_terminal(tmp_path, capsys):
    def say(progress):
        with Log(tmp_path, step=0, steps=4, every=2, progress=progress) as log:
            log.trained(1, {"loss": 1.0, "mse": 1.0}, 0.1, 0.0)
            log.trained(2, {"loss": 3.0, "mse": 3.0}, 0.1, 0.0)
            log.validated(2, {"psnr": {"mean": None}}, "psnr", best=False, seconds=1.0)
        return capsys.readouterr()

    said = say(True)
    assert said.out == ""
    assert said.err.splitlines() == ["step 2/4  loss 2  mse 2", "step 2/4  validation: psnr no number"]
    assert say(None).err == say(False).err == ""
    assert lines(tmp_path)[0] == {"step": 2, "train": {"loss": 2.0, "mse": 2.0, "learning_rate": 0.1}, "seconds": 0.0}


def test_a_second_signal_is_not_held_back():
    with Stop() as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_takes_no_signals():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with Stop() as stop:
            seen.append((stop.asked, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
