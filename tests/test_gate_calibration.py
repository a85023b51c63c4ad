"""Calibrating the gate of a package at a new site: what was strange there is usual, and no answer changes."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from medae.data import Folder
from medae.data.seen import Seen
from medae.errors import OutputError, PackageError, UsageError
from medae.evaluation import calibrate
from medae.gate import doubt_of
from medae.inspection import describe
from medae.io import read_image
from medae.metrics.doubt import COMBINED, OF_SOFT_DICE, Usual
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.preparation import Preparation
from medae.scores import Residual
from medae.tasks import Anomaly, Restoration, Segmentation
from medae.uncertainty import RepeatedPredictor
from tests.conftest import SEGNET, run, untrained_package
from tests.service_parts import AUTOENCODER, DNCNN, LABELS, client_of, named

SIDE = 16
PARTS = ("gate", "shape")


def pictures(folder: Path, count: int, *, light: float = 0, targets: int = 0, seed: int = 0) -> Path:
    """Noise around one grey level, some of it with masks (of 0 and 255), and the list of all."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rng, rows = np.random.default_rng(seed), ["id,image,target"]
    for number in range(count):
        pixels = (60 + light + rng.normal(0, 12, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)
        Pillow.fromarray(pixels).save(folder / "images" / f"{number}.png")
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[2 : 3 + int(rng.integers(1, 9)), 4:12] = 255
        Pillow.fromarray(mask).save(folder / "masks" / f"{number}.png")
        rows.append(f"c{number},images/{number}.png,{f'masks/{number}.png' if number < targets else ''}")
    (folder / "cases.csv").write_text("\n".join(rows) + "\n")
    return folder / "cases.csv"


def gated(home: Path, task: Segmentation | Restoration | None = None) -> ModelPackage:
    """An untrained model whose gate and model of shapes are calibrated on 110 dark images of its own."""
    pictures(home, 220, targets=220)
    data = Folder(root=home, images="images/*.png", targets="masks/*.png")
    segments = task is None

    def inside(name: str, **more: Any) -> ModelPackage:
        task = Anomaly(scores=(Residual(two_sided=True),))
        package = named(untrained_package(task, AUTOENCODER, Preparation()), name)
        seen = Seen(of=data, references=110, **more)
        return package.retold(experiment={"data": seen.model_dump(mode="json")})

    gate, shape = inside("gate"), inside("shape", masks=1) if segments else None
    network = SEGNET if segments else DNCNN
    package = untrained_package(task or Segmentation(labels=LABELS), network, Preparation())
    return calibrate(package.gated(gate, shape), version="1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def package(home: Path) -> ModelPackage:
    return gated(home)


@pytest.fixture
def saved(package: ModelPackage, tmp_path: Path) -> Path:
    package.save(tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_site(folder: Path) -> list[Any]:
    return [read_image(path) for path in sorted((folder / "images").glob("*.png"))]


def test_what_was_strange_is_usual_and_the_answer_stays(saved: Path, tmp_path: Path) -> None:
    before, old = contents(saved), Predictor(ModelPackage.load(saved))
    told = json.loads(run("calibrate", saved, pictures(tmp_path / "site", 120, light=60, targets=105), "--json"))
    new = Predictor(ModelPackage.load(saved))
    changed = {name for name, content in contents(saved).items() if before[name] != content}
    assert changed == {"gate/calibration.json", "shape/calibration.json"} and before.keys() == contents(saved).keys()
    assert new.package.digest == old.package.digest == told["digest"]
    assert (told["gate"]["images"], told["shape"]["images"]) == (120, 105)

    pictures(tmp_path / "fresh", 60, light=60, seed=1)
    answers = [(old(image), new(image)) for image in of_site(tmp_path / "fresh")]
    assert all(np.array_equal(one.image.pixels, other.image.pixels) for one, other in answers)

    def strange(verdict: Any) -> bool:
        return any(reason.startswith("the image is unlike") for reason in verdict.reasons)

    assert all(strange(one.gate) for one, _ in answers)
    assert sum(strange(other.gate) for _, other in answers) <= 0.2 * len(answers), "5 per cent, of 60 images"


def test_the_references_are_the_scores_of_these_images(package: ModelPackage, tmp_path: Path) -> None:
    here = calibrate(package, pictures(tmp_path / "site", 101, light=60, targets=101))
    images = of_site(tmp_path / "site")
    assert here.gate is not None and here.gate.calibration is not None
    references = here.gate.calibration.references
    assert {name: each.two_sided for name, each in references.items()} == {"l2_mean": True, OF_SOFT_DICE: False}
    of_gate = Predictor(here.gate)
    assert references["l2_mean"].values == pytest.approx(sorted(of_gate(image).scores["l2_mean"] for image in images))
    sure = RepeatedPredictor(replace(package, gate=None, shape=None), ["soft_dice"])
    measured = sorted(sure(image).scores[OF_SOFT_DICE] for image in images)
    assert references[OF_SOFT_DICE].values == pytest.approx(measured)
    doubt = doubt_of(here)
    assert doubt is not None and doubt.soft_dice == Usual.of(measured)
    assert doubt.gate == Usual.of(references["l2_mean"].values)
    assert COMBINED in Predictor(here)(images[0]).scores


def test_what_was_measured_here_comes_before_the_card(package: ModelPackage, tmp_path: Path) -> None:
    assert package.gate is not None and doubt_of(package) is None, "the card says nothing of soft Dice"
    usual = Usual(middle=0.1, spread=0.5, images=20)
    told = package.retold(soft_dice=usual)
    doubt, here = doubt_of(told), doubt_of(calibrate(told, pictures(tmp_path / "site", 100)))
    assert doubt is not None and doubt.soft_dice == usual
    assert here is not None and here.soft_dice.images == 100


def test_broken_and_other_images_are_left_out_and_named(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listed = pictures(tmp_path / "site", 103, light=60)
    (tmp_path / "site" / "images" / "7.png").write_bytes(b"no image")
    text = listed.read_text().splitlines()
    labelled = [text[0] + ",label", *(line + (",tumour" if line.startswith("c9,") else ",") for line in text[1:])]
    listed.write_text("\n".join(labelled))
    said: dict[str, str | None] = {}
    here = calibrate(ModelPackage.load(saved), listed, watch=lambda case, reason: said.update({case: reason}))
    assert {case for case, reason in said.items() if reason} == {"c7", "c9"}
    assert "labelled tumour" in str(said["c9"]) and "c7" in caplog.text
    assert here.gate is not None and here.gate.calibration is not None
    assert {len(each.values) for each in here.gate.calibration.references.values()} == {101}


@pytest.mark.parametrize("targets", [0, 99])
def test_without_enough_masks_the_shapes_stay(
    targets: int, saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(saved)
    listed = pictures(tmp_path / "site", 110, light=60, targets=targets)
    with caplog.at_level(logging.WARNING):
        run("calibrate", saved, listed, "--out", tmp_path / "copy")
    assert f"{targets} of the cases have a target" in caplog.text and "keeps that of version 1" in caplog.text
    assert contents(saved) == before
    copy = contents(tmp_path / "copy")
    assert {name for name in before if copy[name] != before[name]} == {"gate/calibration.json"}
    run("calibrate", saved, listed)
    assert contents(saved)["shape/calibration.json"] == before["shape/calibration.json"]


def test_an_empty_mask_has_no_shape(package: ModelPackage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listed = pictures(tmp_path / "site", 104, targets=104)
    for number in range(5):
        Pillow.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(tmp_path / "site" / "masks" / f"{number}.png")
    calibrate(package, listed)
    assert "99 of the cases have a target with something in it" in caplog.text


def test_too_few_images_are_refused_and_change_nothing(saved: Path, tmp_path: Path) -> None:
    before = contents(saved)
    with pytest.raises(UsageError, match="60 reference images are too few"):
        run("calibrate", saved, pictures(tmp_path / "few", 60, targets=60))
    assert contents(saved) == before


def test_without_a_gate_there_is_nothing_to_calibrate(package: ModelPackage, tmp_path: Path) -> None:
    plain = untrained_package(package.card.task, SEGNET)
    with pytest.raises(UsageError, match=r"does segmentation and has no gate.*`medae gate` gives it one"):
        calibrate(plain, pictures(tmp_path / "site", 100))


def test_without_a_list_its_own_images_calibrate_it_as_its_training_did(saved: Path, tmp_path: Path) -> None:
    was = ModelPackage.load(saved)
    run("calibrate", saved, pictures(tmp_path / "site", 100, light=60, targets=100))
    run("calibrate", saved)
    again = ModelPackage.load(saved)
    for one, other in ((was.gate, again.gate), (was.shape, again.shape)):
        assert one is not None and one.calibration is not None and other is not None and other.calibration is not None
        assert one.calibration.references == other.calibration.references, "soft Dice is the card's again, too"
        assert one.calibration.version != other.calibration.version


@pytest.mark.parametrize("part", PARTS)
def test_a_calibration_inside_that_does_not_hold_is_made_again(part: str, saved: Path, tmp_path: Path) -> None:
    path = saved / part / "calibration.json"
    path.write_text(path.read_text().replace('"package_digest": "sha256:', '"package_digest": "sha256:0'))
    with pytest.raises(PackageError, match=rf"{part}/calibration.json was made for another package"):
        ModelPackage.load(saved)
    run("calibrate", saved, pictures(tmp_path / "site", 100, targets=100))
    assert all(ModelPackage.load(saved).calibrations[f"{each}_calibration"] for each in PARTS)


def test_a_calibration_of_shapes_that_cannot_be_made_again_is_taken_away(saved: Path, tmp_path: Path) -> None:
    (saved / "shape" / "calibration.json").write_text("{}")
    run("calibrate", saved, pictures(tmp_path / "site", 100))
    assert ModelPackage.load(saved).calibrations["shape_calibration"] is None


def test_both_are_written_or_none(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = contents(saved), os.replace
    here = calibrate(ModelPackage.load(saved), pictures(tmp_path / "site", 100, targets=100))

    def refusing(source: Path, target: Path) -> None:
        if Path(target).parent.name == "shape":
            raise OSError(28, "full")
        real(source, target)

    monkeypatch.setattr(os, "replace", refusing)
    with pytest.raises(OutputError):
        here.save_calibration(saved)
    assert contents(saved) == before


def test_a_restoration_has_no_soft_dice_and_no_shapes(tmp_path: Path) -> None:
    package = gated(tmp_path / "home", Restoration())
    here = calibrate(package, pictures(tmp_path / "site", 100, light=60))
    assert here.shape is None and here.gate is not None and here.gate.calibration is not None
    assert set(here.gate.calibration.references) == {"l2_mean"} and doubt_of(here) is None


def test_whoever_answers_names_the_calibrations(saved: Path, tmp_path: Path) -> None:
    listed = pictures(tmp_path / "site", 100, light=60, targets=100)
    text = run("calibrate", saved, listed)
    image = tmp_path / "site" / "images" / "0.png"
    here = ModelPackage.load(saved)
    expected = here.calibrations
    assert expected["calibration"] is None
    assert all(str(saved / part) + f": calibration {expected[f'{part}_calibration']} on 100" in text for part in PARTS)
    assert "uncertainty_soft_dice above" in text
    run("predict", saved, image, "--out", tmp_path / "out", "--output", "summary")
    run("evaluate", saved, listed, "--out", tmp_path / "measured")
    with client_of(here) as client:
        asked = {"headers": {"Accept": "application/json"}, "files": {"file": ("x", image.read_bytes())}}
        answered = client.post("/v1/segment", **asked).json()
    said = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("out", "measured")]
    said += [json.loads((tmp_path / "out" / "0_summary.json").read_text())["provenance"], answered["provenance"]]
    for provenance in said:
        assert {name: provenance[name] for name in expected} == expected
    described = describe(str(saved))
    assert {name: described[name] and described[name]["version"] for name in expected} == expected
    report = (tmp_path / "measured" / "report.html").read_text()
    assert "Calibration of the gate" in report and str(expected["gate_calibration"]) in report
