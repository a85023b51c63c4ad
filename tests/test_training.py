"""Training: what it leaves, that it resumes to the bit, and that it learns."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from medae.data.patches import Patches
from medae.errors import OutputError, SettingsError
from medae.experiment import Experiment, TrainingSettings
from medae.io import read_image
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.record import Run
from medae.settings import load_settings
from medae.training import loop, train
from medae.training.loop import learning_rate
from medae.training.material import pair, read_material, seed_of
from medae.training.state import State
from medae.training.validation import Validated
from tests.training_toys import anomaly, denoising, disc_pictures, lines, require_same_end, segmentation, tensors

TOYS = {"segmentation": segmentation, "denoising": denoising, "anomaly": anomaly}


@pytest.fixture(scope="module")
def discs(tmp_path_factory) -> Path:
    return disc_pictures(tmp_path_factory.mktemp("discs"))


@pytest.fixture
def stop_after(monkeypatch):
    """SIGTERM reaches the process during this step."""

    def stop_after(step: int) -> None:
        plain = loop._step

        def signalled(training, batch):
            plain(training, batch)
            if training.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(loop, "_step", signalled)

    return stop_after


@pytest.mark.parametrize("kind", TOYS)
def test_what_a_training_leaves(kind, discs, tmp_path):
    experiment = TOYS[kind](discs)
    package = train(experiment, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("package", "last.pt", "metrics.jsonl", "pictures", "experiment.yaml", "run.json")
    }
    assert ModelPackage.load(tmp_path / "package").digest == package.digest
    assert load_settings(tmp_path / "experiment.yaml", Experiment) == experiment
    assert package.card.experiment == experiment.resolved

    logged = lines(tmp_path)
    assert [line["step"] for line in logged if "train" in line] == [2, 4, 6]
    terms = {objective.kind for objective in experiment.objectives}
    assert {"loss", "gradient", "learning_rate", *terms} == set(logged[0]["train"])
    validations = [line for line in logged if "validation" in line]
    assert [line["step"] for line in validations] == [3, 6]
    best = [line for line in validations if line["best"]][-1]
    kept = package.card.metrics["validation"]
    assert f"after {best['step']} training steps" in kept["protocol"]
    assert {**best["validation"], "protocol": kept["protocol"]} == kept

    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["command"], run["status"], run["seed"]) == ("train", "done", 0)
    assert run["digests"] == {"package": package.digest} and run["best_step"] == best["step"]

    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["step-000003.png", "step-000006.png"]
    columns = {"segmentation": 3, "denoising": 3, "anomaly": 2}[kind]
    with Pillow.open(pictures[0]) as picture:
        cases = kept["cases"] if kept["cases"] < 2 else 2
        assert picture.size == (columns * (32 + 4), cases * (32 + 4)) and picture.mode == "RGB"
    answer = Predictor(package)(read_image(discs / "images" / "disc-0.png"))
    assert answer.image.pixels.shape == (1, 1, 32, 32)


@pytest.mark.parametrize(("kind", "step"), [("segmentation", 2), ("denoising", 3), ("anomaly", 4)])
def test_stopped_and_resumed_is_never_stopped(kind, step, discs, tmp_path, stop_after, monkeypatch):
    experiment = TOYS[kind](discs)
    train(experiment, tmp_path / "whole")
    stop_after(step)
    with pytest.raises(SystemExit) as ended:
        train(experiment, tmp_path / "parts")
    assert ended.value.code == 128 + signal.SIGTERM
    run = json.loads((tmp_path / "parts" / "run.json").read_text())
    assert run["status"] == "interrupted"
    assert torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"] == step
    monkeypatch.undo()
    resumed = train(experiment, tmp_path / "parts", resume=True)
    require_same_end(tmp_path / "whole", tmp_path / "parts")
    # there is nothing left to do, and nothing is done
    before = (tmp_path / "parts" / "last.pt").stat().st_mtime_ns
    assert train(experiment, tmp_path / "parts", resume=True).digest == resumed.digest
    assert (tmp_path / "parts" / "last.pt").stat().st_mtime_ns == before


def test_half_of_the_steps_are_the_first_half(discs, tmp_path, stop_after, monkeypatch):
    """What step n does depends on nothing that comes after it: 6 steps are 3, stopped by Ctrl-C, and 3 more."""
    experiment = denoising(discs)
    train(experiment, tmp_path / "whole")
    plain = loop._validate

    def interrupted(training):
        if training.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        plain(training)

    monkeypatch.setattr(loop, "_validate", interrupted)
    with pytest.raises(KeyboardInterrupt):  # before the validation, which the resumed training makes up for
        train(experiment, tmp_path / "parts")
    assert not [line for line in lines(tmp_path / "parts") if "validation" in line]
    monkeypatch.undo()
    train(experiment, tmp_path / "parts", resume=True)
    require_same_end(tmp_path / "whole", tmp_path / "parts")


SCRIPT = """
import sys
from pathlib import Path
from medae.training import train
from tests.training_toys import segmentation
train(segmentation(Path(sys.argv[1]), steps=40, validate_every=10, workers=int(sys.argv[3])), Path(sys.argv[2]))
"""


def test_sigterm_in_the_middle_of_a_process_with_workers(discs, tmp_path):
    """The workers end with it, and one worker more or less changes nothing afterwards."""
    slow = SCRIPT.replace("train(seg", "from medae.training import loop\nimport time\nplain = loop._step\n"
                          "loop._step = lambda *a: (plain(*a), time.sleep(0.1))\ntrain(seg")  # fmt: skip
    command = [sys.executable, "-c", slow, str(discs), str(tmp_path / "parts"), "2"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], start_new_session=True)
    try:
        metrics = tmp_path / "parts" / "metrics.jsonl"
        until = time.monotonic() + 60
        while not (metrics.is_file() and len(metrics.read_text().splitlines()) >= 3) and time.monotonic() < until:
            time.sleep(0.05)
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
        with pytest.raises(ProcessLookupError):  # nobody of its group is left
            os.killpg(process.pid, 0)
    finally:
        if process.poll() is None:
            process.kill()
    experiment = segmentation(discs, steps=40, validate_every=10)
    step = torch.load(tmp_path / "parts" / "last.pt", weights_only=True)["step"]
    assert 4 <= step < 40
    train(experiment, tmp_path / "parts", resume=True)
    train(experiment, tmp_path / "whole")
    require_same_end(tmp_path / "whole", tmp_path / "parts")


def test_workers_change_nothing_and_the_seed_does(discs, tmp_path):
    train(segmentation(discs), tmp_path / "none")
    train(segmentation(discs, workers=2), tmp_path / "two")
    one, other = tensors(tmp_path / "none"), tensors(tmp_path / "two")
    assert all(torch.equal(one[name], other[name]) for name in one)
    train(segmentation(discs, seed=1), tmp_path / "seed")
    assert any(not torch.equal(one[name], value) for name, value in tensors(tmp_path / "seed").items())


def test_each_step_has_noise_of_its_own(discs):
    experiment = denoising(discs)
    batch = {"image": torch.full((2, 1, 16, 16), 0.5)}

    def noise(seed, step, stream=1):
        x, target = pair(batch, experiment, torch.Generator().manual_seed(seed_of(seed, step, stream)))
        assert torch.equal(target, batch["image"])
        return x - target

    assert torch.equal(noise(0, 3), noise(0, 3))
    assert not any(torch.equal(noise(0, 3), other) for other in (noise(0, 4), noise(1, 3), noise(0, 3, 0)))


def test_the_caller_keeps_its_own_chances_and_threads(discs, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(denoising(discs, threads=2, steps=1), tmp_path)
    assert torch.equal(torch.rand(3), expected) and torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_it_learns(discs, tmp_path):
    settings = {"steps": 120, "validate_every": 120, "batch_size": 4, "learning_rate": 0.01}
    package = train(denoising(discs, **settings), tmp_path / "denoise")
    found = package.card.metrics["validation"]
    assert found["psnr"]["mean"] > found["psnr_input"]["mean"] + 1
    package = train(segmentation(discs, **settings), tmp_path / "segment")
    assert package.card.metrics["validation"]["dice"]["mean"] > 0.8


def test_half_precision_trains(discs, tmp_path):
    train(segmentation(discs, precision="bf16"), tmp_path)
    assert all(value.dtype != torch.bfloat16 for value in tensors(tmp_path).values())
    assert math.isfinite(lines(tmp_path)[0]["train"]["loss"])


def test_early_stopping(discs, tmp_path):
    # so small a rate changes no label
    package = train(segmentation(discs, steps=60, early_stopping=2, learning_rate=1e-12), tmp_path)
    assert [line["step"] for line in lines(tmp_path) if "validation" in line] == [3, 6, 9]
    assert "after 3 training steps" in package.card.metrics["validation"]["protocol"]


def test_time_limit_ends_with_a_package(discs, tmp_path):
    started = time.monotonic()
    train(denoising(discs, steps=100_000, validate_every=50_000, time_limit_minutes=0.02), tmp_path)
    assert time.monotonic() - started < 10
    rates = [line["train"]["learning_rate"] for line in lines(tmp_path) if "train" in line]
    assert rates[-1] < 0.05 * max(rates)  # the schedule came to its end
    assert torch.load(tmp_path / "last.pt", weights_only=True)["finished"]


def test_a_changed_experiment_is_not_resumed(discs, tmp_path, stop_after, monkeypatch):
    stop_after(2)
    with pytest.raises(SystemExit):
        train(denoising(discs), tmp_path)
    monkeypatch.undo()
    with pytest.raises(
        SettingsError, match=r"training.steps \(was 6, is 9\), training.learning_rate \(was 0.001, is 0.1\)"
    ):
        train(denoising(discs, learning_rate=0.1, steps=9), tmp_path, resume=True)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "interrupted"  # not overwritten
    train(denoising(discs, workers=1, pictures=0, log_every=1), tmp_path, resume=True)


def test_a_training_is_never_overwritten(discs, tmp_path):
    package = train(denoising(discs), tmp_path)
    with pytest.raises(OutputError, match="holds a training already"):
        train(denoising(discs), tmp_path)
    assert ModelPackage.load(tmp_path / "package").digest == package.digest


def cases_csv(root: Path, rows: list[str]) -> Path:
    (root / "cases.csv").write_text("\n".join(["id,image,split,label", *rows]) + "\n")
    return root / "cases.csv"


def test_an_anomaly_model_learns_and_is_calibrated_on_normal_cases_alone(tmp_path, monkeypatch):
    root = disc_pictures(tmp_path / "data", 118)
    splits = ["train"] * 12 + ["validation"] * 106
    labels = (["normal"] * 9 + ["fold"] * 3) + (["normal"] * 100 + ["ink"] * 6)
    rows = [f"c{n},images/disc-{n}.png,{s},{label}" for n, (s, label) in enumerate(zip(splits, labels, strict=True))]
    data = anomaly(root).resolved | {"data": {"kind": "cases", "path": str(cases_csv(root, rows))}}
    seen = []
    plain = Patches.__init__
    monkeypatch.setattr(
        Patches, "__init__", lambda self, cases, **rest: (seen.append(len(cases)), plain(self, cases, **rest))[1]
    )
    package = train(Experiment.model_validate(data), tmp_path / "out")
    assert seen == [9] and package.card.metrics["validation"]["cases"] == 100
    assert package.calibration is not None and len(package.calibration.deciding.values) == 100
    assert ModelPackage.load(tmp_path / "out" / "package").calibration == package.calibration
    predictor = Predictor(package)
    image = read_image(root / "images" / "disc-12.png")
    assert predictor(image).scores["l2_mean"] in package.calibration.deciding.values
    assert 0 < predictor(image).p_value <= 1


def test_better_is_lower_for_anomaly_scores_and_higher_for_the_others(discs):
    def better(experiment, value, best):
        return Validated(None, {}, value, []).better_than(best, experiment)

    for experiment, good, bad in ((anomaly(discs), 0.1, 0.2), (denoising(discs), 30.0, 20.0)):
        assert better(experiment, good, bad) and not better(experiment, bad, good)
        assert better(experiment, bad, None) and not better(experiment, math.nan, None)
        assert not better(experiment, good, good)


def test_too_few_references_are_said_and_not_used(discs, tmp_path, caplog):
    package = train(anomaly(discs), tmp_path)
    assert package.calibration is None and "3 reference images are too few" in caplog.text


def test_paired_restoration_keeps_both_images_in_one_range(tmp_path):
    """Input and target go through the input's own range: only that is known when the model is used."""
    root = disc_pictures(tmp_path / "data")
    for path in sorted((root / "images").iterdir()):
        with Pillow.open(path) as picture:
            darker = (np.asarray(picture) // 2).astype(np.uint8)
        Pillow.fromarray(darker).save(root / "masks" / path.name)
    data = denoising(root).resolved | {
        "data": {"kind": "folder", "root": str(root), "images": "images/*.png", "targets": "masks/*.png"},
        "task": {"kind": "restoration"},
        "preparation": {"intensity": {"kind": "percentile", "lower": 0, "upper": 100}},
        "network": {"kind": "unet", "features": [4, 8], "strides": [2], "residual_units": 0},
    }
    experiment = Experiment.model_validate(data)
    case = experiment.data.cases("train")[0]
    material = read_material(experiment, Run("train"))
    noisy, clean = (read_image(path).pixels.astype(float) for path in (case.image, case.target))
    lower, upper = noisy.min(), noisy.max()
    np.testing.assert_allclose(material.train[0].image, (noisy - lower) / (upper - lower), atol=1e-6)
    np.testing.assert_allclose(material.train[0].target, ((clean - lower) / (upper - lower)).clip(0, 1), atol=1e-6)
    package = train(experiment, tmp_path / "out")
    assert package.card.metrics["validation"]["psnr"]["mean"] > 0


def test_volumes_train_in_3d(tmp_path, tilted_volume):
    from medae.io import write_image

    (tmp_path / "data" / "images").mkdir(parents=True)
    for number in range(3):
        write_image(tilted_volume, tmp_path / "data" / "images" / f"v{number}.nii.gz")
    data = denoising(tmp_path / "data").resolved
    data["data"]["images"] = "images/*.nii.gz"
    data["network"] |= {"dims": 3}
    data["preparation"]["intensity"] = {"kind": "window", "lower": -100, "upper": 600}
    data["training"] |= {"patch": [4, 8, 8], "steps": 2, "validate_every": 2}
    package = train(Experiment.model_validate(data), tmp_path / "out")
    assert Predictor(package)(tilted_volume).image.pixels.shape == tilted_volume.pixels.shape


def test_the_learning_rate_rises_then_falls_to_nothing():
    settings = TrainingSettings(steps=100, warm_up=0.1, learning_rate=0.5)
    rates = [learning_rate(settings, step / 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * n for n in range(1, 11)])
    assert rates[10] == 0.5 and all(a > b for a, b in pairwise(rates[10:]))
    assert learning_rate(settings, 1.0) == pytest.approx(0, abs=1e-12)
    assert learning_rate(settings, 0.55) == pytest.approx(0.25)
    assert learning_rate(TrainingSettings(warm_up=0), 0) == TrainingSettings().learning_rate


def test_the_average_follows_weights_and_batch_statistics(discs):
    state = State.fresh(segmentation(discs, ema=0.5), torch.device("cpu"))
    name = next(name for name in state.network.state_dict() if name.endswith("running_mean"))
    values = []
    for value in (1.0, 2.0, 4.0, 8.0):
        with torch.no_grad():
            for tensor in (*state.network.parameters(), state.network.get_buffer(name)):
                tensor.fill_(value)
        state.averaged.update_parameters(state.network)
        values.append(state.served.get_buffer(name)[0].item())
        assert next(state.served.parameters()).flatten()[0].item() == values[-1]
    # decay min(0.5, (1 + n) / (10 + n)): the first is a copy, then 2/11, 3/12, 4/13
    expected = [1.0]
    for n, value in ((1, 2.0), (2, 4.0), (3, 8.0)):
        keep = (1 + n) / (10 + n)
        expected.append(keep * expected[-1] + (1 - keep) * value)
    assert values == pytest.approx(expected)
    assert State.fresh(segmentation(discs, ema=None), torch.device("cpu")).averaged is None
