"""`medae calibrate` and `medae rescore`, by their command lines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from medae import fitting
from medae.errors import OutputError, SettingsError, UsageError
from medae.io import read_image
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.tasks import Anomaly, Restoration
from tests.conftest import run, untrained_package

NETWORK: dict[str, Any] = {"kind": "conv_autoencoder", "features": [4], "bottleneck": 2}


def cases(folder: Path, normal: int, *, seed: int = 0, train: int = 0, gain: int = 256) -> Path:
    """Pictures and their list: normal ones of validation (and of training), and two with ink."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    rows = ["id,image,split,label"]
    for number in range(normal + train + 2):
        Pillow.fromarray(rng.integers(0, gain, (8, 8), np.uint8)).save(folder / f"{number}.png")
        split, label = "validation" if number >= train else "train", "ink" if number >= normal + train else "normal"
        rows.append(f"c{number},{number}.png,{split},{label}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    untrained_package(Anomaly(), NETWORK).save(tmp_path / "model")  # type: ignore[arg-type]
    return tmp_path / "model"


def test_a_new_site_calibrates_without_touching_the_model(saved: Path, tmp_path: Path) -> None:
    before = {name: (saved / name).read_bytes() for name in ("card.json", "weights.safetensors")}
    told = json.loads(run("calibrate", saved, cases(tmp_path / "here", 120), "--json"))
    here = ModelPackage.load(saved)
    assert {name: (saved / name).read_bytes() for name in before} == before
    assert told["images"] == 120 and told["digest"] == here.digest
    assert here.calibration is not None and here.calibration.version == told["calibration"]
    scores = [Predictor(here)(read_image(tmp_path / "here" / f"{n}.png")).scores["l2_mean"] for n in range(120)]
    assert here.calibration.deciding.values == pytest.approx(sorted(scores))
    assert [row["rate"] for row in told["thresholds"]] == [0.01, 0.05, 0.1]
    assert all(row["band"][0] < row["rate"] < row["band"][1] for row in told["thresholds"])
    text = run("calibrate", saved, cases(tmp_path / "there", 100, gain=128))
    there = ModelPackage.load(saved).calibration
    assert there is not None and there.version != here.calibration.version and there.version in text
    assert "false alarms 5% (in truth 2.0% to 8.9%)" in text


def test_too_few_images_and_other_tasks_are_refused(saved: Path, tmp_path: Path) -> None:
    listed = cases(tmp_path / "few", 99)
    with pytest.raises(UsageError, match="99 reference images are too few"):
        run("calibrate", saved, listed)
    assert not (saved / "calibration.json").exists()
    untrained_package(Restoration(), NETWORK).save(tmp_path / "other")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="does restoration"):
        run("calibrate", tmp_path / "other", listed)


def test_a_calibration_that_does_not_hold_is_made_again(saved: Path, tmp_path: Path) -> None:
    (saved / "calibration.json").write_text('{"format": 1}')
    run("calibrate", saved, cases(tmp_path / "here", 100), "--out", tmp_path / "copy")
    assert ModelPackage.load(tmp_path / "copy").calibration is not None


def test_a_trained_autoencoder_gets_a_variance_head(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "HEAD_STEPS", 20)
    listed = cases(tmp_path / "data", 100, train=12)
    (tmp_path / "scores.yaml").write_text("scores:\n  - kind: variance_head\n  - kind: residual\n")
    run("rescore", saved, tmp_path / "scores.yaml", "--cases", listed, "--out", tmp_path / "new")
    old, new = ModelPackage.load(saved), ModelPackage.load(tmp_path / "new")
    image = read_image(tmp_path / "data" / "0.png")
    scores = Predictor(new)(image).scores
    assert scores["l2_mean"] == pytest.approx(Predictor(old)(image).scores["l2_mean"], rel=1e-5)
    assert new.calibration is not None and set(new.calibration.references) == {"variance_head_mean", "l2_mean"}
    assert new.digest != old.digest
    (tmp_path / "scores.yaml").write_text("scores:\n  - kind: kl\n")
    with pytest.raises(SettingsError, match="a distribution: vae"):
        run("rescore", saved, tmp_path / "scores.yaml", "--cases", listed, "--out", tmp_path / "bad")


@pytest.mark.parametrize("command", ["calibrate", "rescore"])
def test_a_folder_that_holds_something_else_is_refused_before_any_image_is_read(
    command: str, saved: Path, tmp_path: Path
) -> None:
    listed = cases(tmp_path / "data", 3)  # far too few, which is what the work would say
    (tmp_path / "scores.yaml").write_text("scores:\n  - kind: residual\n")
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "letter.txt").write_text("mine")
    told = [listed] if command == "calibrate" else [tmp_path / "scores.yaml", "--cases", listed]
    with pytest.raises(OutputError, match="holds something else than a model package"):
        run(command, saved, *told, "--out", taken)
    assert [path.name for path in taken.iterdir()] == ["letter.txt"]
