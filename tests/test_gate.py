"""The gate of a trained model: it knows its own, it warns of others, and it never changes an answer."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Never

import numpy as np
import pytest
from pydantic import ValidationError

from medae.answers import summary
from medae.errors import PackageError, UnfitImage
from medae.experiment import Experiment, GateSettings
from medae.image import Image
from medae.io import read_image
from medae.metrics.doubt import COMBINED, OF_GATE, OF_SOFT_DICE
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae.training import train
from medae.training.gate import give_gate
from medae.verdict import GateLimits
from tests.training_toys import denoising, disc_pictures, segmentation

GATE = {"steps": 40, "features": [4], "latent_channels": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return disc_pictures(tmp_path_factory.mktemp("discs"), 170)


@pytest.fixture(scope="module")
def out(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a segmentation with a gate and a model of shapes."""
    experiment = Experiment.model_validate(segmentation(root).resolved | {"gate": GATE})
    path = tmp_path_factory.mktemp("gated")
    train(experiment, path, progress=False)
    return path


@pytest.fixture(scope="module")
def package(out: Path) -> ModelPackage:
    return ModelPackage.load(out / "package")


@pytest.fixture(scope="module")
def own(root: Path) -> list[Image]:
    return [read_image(path) for path in sorted((root / "images").glob("*.png"))[:40]]


def verdict_of(predictor: Predictor, image: Image, **limits: float) -> str:
    prediction = predictor(image, gate=GateLimits(**limits))
    assert prediction.gate is not None
    return prediction.gate.verdict


def test_it_knows_its_own_and_not_others(package: ModelPackage, own: list[Image]) -> None:
    predictor = Predictor(package)
    gate = predictor.gate
    assert gate is not None and package.gate is not None and package.gate.calibration is not None

    def strange(image: Image) -> float:
        scored = gate.look(image).scored
        assert scored is not None
        return scored.scores["gate"]

    rng = np.random.default_rng(0)
    others = [image.with_pixels(255 - image.pixels) for image in own]
    others += [image.with_pixels(rng.integers(0, 256, image.pixels.shape, np.uint8)) for image in own]
    pairs = np.subtract.outer([strange(image) for image in others], [strange(image) for image in own])
    assert (pairs > 0).mean() > 0.95
    flat = own[0].with_pixels(np.full_like(own[0].pixels, 90))
    assert verdict_of(predictor, flat) == "reject"


def test_the_answer_is_the_same_with_and_without(package: ModelPackage, own: list[Image]) -> None:
    with_gate, without = Predictor(package)(own[0]), Predictor(package, gated=False)(own[0])
    assert without.gate is None and with_gate.gate is not None
    assert np.array_equal(with_gate.image.pixels, without.image.pixels)
    assert without.scores.items() <= with_gate.scores.items()
    assert with_gate.scores.keys() - without.scores.keys() == {OF_SOFT_DICE, OF_GATE, COMBINED}


def test_every_answer_says_its_doubt_and_strange_images_are_never_sure(package: ModelPackage, own: list[Image]) -> None:
    predictor = Predictor(package)

    def doubt(image: Image) -> float:
        return predictor(image).scores[COMBINED]

    usual = [doubt(image) for image in own[:20]]
    rng = np.random.default_rng(0)
    noise = [image.with_pixels(rng.integers(0, 256, image.pixels.shape, np.uint8)) for image in own[:20]]
    assert min(doubt(image) for image in noise) > 0.5, "however sure the model is of its answer"
    assert 0.2 < np.median(usual) < 0.8 and min(usual) < 0.5
    said = summary(predictor(own[0]), id="x", files=[])["scores"]
    assert predictor.gate is not None
    scored = predictor.gate.look(own[0]).scored
    assert scored is not None
    assert said[COMBINED] == pytest.approx(usual[0]) and said[OF_GATE] == scored.scores["gate"]
    known = ModelPackage.seal(package.card.model_copy(update={"soft_dice": None}), package.weights)
    assert package.gate is not None
    assert COMBINED not in Predictor(known.gated(package.gate))(own[0]).scores, "older packages do not know the usual"


def test_what_the_gate_cannot_take_is_the_most_doubtful(package: ModelPackage, own: list[Image]) -> None:
    predictor = Predictor(package)
    assert predictor.gate is not None
    predictor.gate = replace(predictor.gate, at_image=_refuse)
    prediction = predictor(own[0])
    assert prediction.gate is not None and prediction.gate.verdict == "reject"
    assert 0.5 < prediction.scores[COMBINED] <= 1 and OF_GATE not in prediction.scores


def _refuse(image: Image) -> Never:
    raise UnfitImage("too small")


def test_the_thresholds_are_the_callers(package: ModelPackage, own: list[Image]) -> None:
    predictor = Predictor(package)
    degrees = ["ok", "review", "reject"]
    lenient = [verdict_of(predictor, image, review=0, reject=0) for image in own[:8]]
    strict = [verdict_of(predictor, image, review=0.99, reject=0.99) for image in own[:8]]
    assert all(degrees.index(a) <= degrees.index(b) for a, b in zip(lenient, strict, strict=True))
    assert "reject" in strict


def test_a_summary_says_it(package: ModelPackage, own: list[Image]) -> None:
    facts = summary(Predictor(package)(own[0]), id="x", files=[])
    assert set(facts["gate"]) == {"verdict", "percentile", "reasons"}
    json.dumps(facts, allow_nan=False)


def test_it_travels_in_the_package(package: ModelPackage, own: list[Image], tmp_path: Path) -> None:
    package.save(tmp_path / "copy")
    copy = ModelPackage.load(tmp_path / "copy")
    assert copy.digest == package.digest and copy.shape is not None and copy.gate is not None
    assert Predictor(copy)(own[1]).gate == Predictor(package)(own[1]).gate


@pytest.mark.parametrize("part", ["gate", "shape"])
def test_another_gate_is_refused(package: ModelPackage, tmp_path: Path, part: str) -> None:
    package.save(tmp_path / "copy")
    card = tmp_path / "copy" / part / "card.json"
    card.write_text(card.read_text().replace("discs", "disks"))
    with pytest.raises(PackageError, match=r"digest differs|another package"):
        ModelPackage.load(tmp_path / "copy")


def test_a_gate_that_is_missing_or_not_named_is_refused(package: ModelPackage, tmp_path: Path) -> None:
    import shutil

    package.save(tmp_path / "copy")
    shutil.move(tmp_path / "copy" / "gate", tmp_path / "gate")
    with pytest.raises(PackageError, match="names it and it is not there"):
        ModelPackage.load(tmp_path / "copy")
    plain = ModelPackage.seal(
        package.card.model_copy(update={"gate_sha256": None, "shape_sha256": None}), package.weights
    )
    plain.save(tmp_path / "plain")
    shutil.move(tmp_path / "gate", tmp_path / "plain" / "gate")
    with pytest.raises(PackageError, match="does not name it"):
        ModelPackage.load(tmp_path / "plain")


def test_resuming_a_finished_training_leaves_the_gate(out: Path, root: Path, package: ModelPackage) -> None:
    experiment = Experiment.model_validate(segmentation(root).resolved | {"gate": GATE})
    assert train(experiment, out, resume=True, progress=False).digest == package.digest


def test_a_denoiser_knows_noisy_images_and_few_images_give_plain_facts(tmp_path: Path) -> None:
    experiment = denoising(disc_pictures(tmp_path / "data", 24))
    plain = train(experiment, tmp_path / "run", progress=False)
    gated = give_gate(plain, experiment, GateSettings.model_validate(GATE), tmp_path / "gated")
    assert gated.shape is None and gated.gate is not None and gated.gate.calibration is None
    assert gated.gate.card.checks is not None
    image = read_image(sorted((tmp_path / "data" / "images").glob("*.png"))[0])
    verdict = Predictor(gated)(image).gate
    assert verdict is not None and verdict.percentile is None
    scores = Predictor(gated)(image).scores
    assert OF_GATE in scores and COMBINED not in scores, "nothing to compare it with, but an order"
    assert ModelPackage.load(tmp_path / "gated" / "package").digest == gated.digest


def test_an_anomaly_model_has_no_gate(root: Path) -> None:
    from tests.training_toys import anomaly

    with pytest.raises(ValidationError, match="an anomaly model says itself"):
        Experiment.model_validate(anomaly(root).resolved | {"gate": {}})


def test_the_service_says_it_and_the_caller_decides(package: ModelPackage, root: Path) -> None:
    from tests.service_parts import client_of

    body = sorted((root / "images").glob("*.png"))[0].read_bytes()
    expected = Predictor(package)(read_image(body)).gate
    assert expected is not None
    with client_of(package) as client:
        asked = {"headers": {"Accept": "application/json"}, "files": {"file": ("x", body)}}
        answer = client.post("/v1/segment", **asked)
        assert answer.json()["gate"] == expected.model_dump(mode="json")
        assert answer.json()["scores"] == pytest.approx(Predictor(package)(read_image(body)).scores)
        assert answer.headers["X-Medae-Gate"] == expected.verdict
        strict = client.post("/v1/segment?gate_review=0.99&gate_reject=0.99", **asked)
        lenient = client.post("/v1/segment?gate_review=0", **asked)
        assert (strict.headers["X-Medae-Gate"], lenient.headers["X-Medae-Gate"]) in {
            (verdict, other) for verdict in ("reject", expected.verdict) for other in ("ok", expected.verdict)
        }
        assert client.post("/v1/segment?gate_review=0.1&gate_reject=0.2", **asked).status_code == 400
        assert client.get("/v1/models").json()["models"][0]["gate"] is True
