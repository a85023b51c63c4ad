"""Evaluation: the right numbers against the right reference, for every case that can be measured."""

import csv
import json
import math

import numpy as np
import pytest

from medae.data import Case, LoadedCase, Sample
from medae.data.corruption import GaussianNoise
from medae.errors import SettingsError, UnfitImage, UsageError
from medae.evaluation import CaseResult, damaged, evaluate, headline, measure
from medae.evaluation.detection import baselines_from, detection, verdict
from medae.evaluation.reading import normal_images
from medae.image import Geometry, Image
from medae.io.answer import Label
from medae.metrics.fidelity import psnr
from medae.package import Card, ModelPackage
from medae.predictor import Predictor
from medae.preparation import FullRange, Percentile, Preparation, Window
from medae.pseudonyms import Pseudonyms
from medae.scores import Residual
from medae.scores.reducers import Max
from medae.tasks import Anomaly, Restoration, Segmentation
from medae.tiles import ReceptiveField
from tests.conftest import tilted_affine
from tests.training_toys import anomaly, disc_pictures

RED, GREEN = (Label(name=name, colour=(1, 2, 3)) for name in ("red", "green"))


class Plain:
    """A back end that is one function of the input."""

    name, device, threads, batch = "plain", "cpu", 1, 1

    def __init__(self, function):
        self.run = function


def predictor(task, function, *, preparation=None, experiment=None) -> Predictor:
    preparation = preparation or Preparation()
    card = Card(
        name="toy",
        version="1",
        task=task,
        network={},
        channels_in=preparation.channels,
        channels_out=task.channels_out(preparation.channels),
        receptive_field=ReceptiveField(dims=2, stride=1, radius=0),
        preparation=preparation,
        experiment=experiment or {},
    )
    return Predictor(ModelPackage.seal(card, {"w": np.zeros(1, np.float32)}), backend=Plain(function))


def brightness(x):
    """Label 1 in the middle of the range, 2 above it."""
    return np.concatenate([0.3 - x, 0.2 - np.abs(x - 0.5), x - 0.7], axis=1)


def picture(pixels, case_id="a", target=None, label=None) -> LoadedCase:
    image = Image.from_picture(np.asarray(pixels))
    return LoadedCase(
        Case(id=case_id, image=None, label=label), image, None if target is None else Image.from_picture(target)
    )


def test_dice_of_each_label_and_their_mean(tmp_path):
    pixels = np.repeat(np.array([[0, 128, 255, 255]], np.uint8), 3, axis=0)
    target = np.repeat(np.array([[0, 1, 2, 0]], np.uint8), 3, axis=0)
    model = predictor(Segmentation(labels=(RED, GREEN)), brightness)
    found = evaluate(model, [picture(pixels, target=target)], tmp_path)
    values = found.cases[0].values
    assert values["dice_red"] == values["iou_red"] == 1
    assert values["dice_green"] == pytest.approx(2 / 3) and values["iou_green"] == pytest.approx(1 / 2)
    assert values["dice"] == pytest.approx(5 / 6) and values["iou"] == pytest.approx(3 / 4)
    assert found.metrics["dice"] == {
        "mean": values["dice"],
        "std": 0,
        "lowest": values["dice"],
        "highest": values["dice"],
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == found.metrics
    with open(tmp_path / "cases.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["id"] == "a" and float(row["dice_green"]) == values["dice_green"] and row["reason"] == ""
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["digests"]["package"] == model.package.digest and run["cases"] == [{"id": "a", "status": "done"}]


def test_with_a_key_nothing_that_is_written_has_an_id(tmp_path):
    keys = Pseudonyms(b"k" * 32)
    model = predictor(Restoration(), lambda x: x)
    rng = np.random.default_rng(0)
    clean = rng.integers(0, 255, (2, 16, 16)).astype(np.uint8)
    cases = [picture(clean[0], "MUELLER-1", target=clean[0]), picture(clean[1], "MUELLER-2")]  # which has no target
    seen = []
    found = evaluate(model, cases, tmp_path, watch=seen.append, pseudonyms=keys)
    names = [keys.name("MUELLER-1"), keys.name("MUELLER-2")]
    assert [result.id for result in found.cases] == [result.id for result in seen] == names
    assert found.cases[1].reason is not None
    for name in ("cases.csv", "metrics.json", "report.html", "run.json"):
        text = (tmp_path / name).read_text()
        assert "MUELLER" not in text and (name == "metrics.json" or all(hashed in text for hashed in names[1:]))


def test_one_label_is_its_own_mean():
    model = predictor(Segmentation(labels=(RED,)), lambda x: np.concatenate([0.5 - x, x - 0.5], axis=1))
    pixels = np.full((4, 4), 255, np.uint8)
    found = evaluate(model, [picture(pixels, target=np.ones((4, 4), np.uint8))])
    assert dict(found.cases[0].values) == {"dice": 1, "iou": 1}


def test_labels_are_compared_where_the_image_lies(tilted_volume):
    """The answer comes back to the input's tilted grid, and is compared there."""
    preparation = Preparation(orientation="SPL", intensity=Window(lower=-100, upper=592))
    model = predictor(Segmentation(labels=(RED, GREEN)), brightness, preparation=preparation)
    labels = model(tilted_volume).image
    assert labels.pixels.shape == tilted_volume.pixels.shape and len(np.unique(labels.pixels)) == 3
    loaded = LoadedCase(Case(id="v", image=None), tilted_volume, tilted_volume.with_pixels(labels.pixels))
    assert measure(model, loaded).values["dice"] == 1
    flipped = LoadedCase(loaded.case, tilted_volume, labels.with_pixels(labels.pixels[:, ::-1]))
    assert measure(model, flipped).values["dice"] < 0.9


def test_restoration_is_measured_against_the_clean_image_beside_its_input():
    clean = np.random.default_rng(0).integers(0, 256, (24, 20), np.uint8)
    task = Restoration(corruption=GaussianNoise(level=0.1))
    cases = [picture(clean, "a"), picture(clean, "b")]
    found = evaluate(predictor(task, lambda x: x), cases)
    first, second = (result.values for result in found.cases)
    assert first["psnr"] == first["psnr_input"] == pytest.approx(20, abs=0.5)  # 10 log10(1 / 0.1^2)
    assert first["ssim"] == first["ssim_input"] < 1
    assert first["psnr"] != second["psnr"]  # noise of its own for each case
    assert evaluate(predictor(task, lambda x: x), cases).metrics == found.metrics  # and the same each time
    noisy = GaussianNoise(level=0.1).add_to(clean[None, None] / np.float32(255), 1)
    assert second["psnr_input"] == pytest.approx(psnr(noisy, clean[None, None] / 255, 1), abs=1e-4)


def test_pairs_are_measured_in_the_range_of_their_type():
    clean = np.random.default_rng(0).integers(20, 200, (24, 20), np.uint8)
    brighter = clean + np.uint8(51)
    model = predictor(Restoration(), lambda x: x - np.float32(0.2))
    values = measure(model, picture(brighter, target=clean)).values
    assert values["psnr_input"] == pytest.approx(20 * math.log10(5), abs=1e-4)
    assert values["psnr"] > 100 and values["ssim"] == pytest.approx(1)


def test_what_lies_outside_the_window_is_not_the_models_to_restore(tilted_volume):
    preparation = Preparation(intensity=Window(lower=0, upper=400))
    task = Restoration(corruption=GaussianNoise(level=0.05))
    values = measure(
        predictor(task, lambda x: x, preparation=preparation), LoadedCase(Case(id="v", image=None), tilted_volume, None)
    ).values
    noisy, clean = (image.pixels for image in damaged(tilted_volume, preparation, task, 0))
    assert values["psnr_input"] == pytest.approx(psnr(noisy.clip(0, 400), clean.clip(0, 400), 400), abs=1e-5)
    assert values["psnr_input"] > psnr(noisy, clean, 400) + 1
    assert values["psnr"] == pytest.approx(values["psnr_input"], abs=1e-3)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("intensity", [FullRange(), Window(lower=-50, upper=150), Percentile()])
def test_damage_has_the_strength_that_training_knows(dtype, intensity):
    """The preparation of the damaged image is the damaged prepared image, but for what a window cuts off."""
    rng = np.random.default_rng(1)
    pixels = rng.random((1, 1, 40, 40)) * (1 if dtype == np.float32 else np.iinfo(dtype).max)
    clean = Image(pixels.astype(dtype), Geometry((1, 40, 40), tilted_affine()))
    preparation = Preparation(intensity=intensity)
    noisy, reference = damaged(clean, preparation, Restoration(corruption=GaussianNoise(level=0.02)), seed=3)
    lower, upper = intensity.range_of(clean.pixels)
    in_range = (noisy.pixels - reference.pixels) / (1 if intensity.kind == "full_range" else upper - lower)
    assert in_range.std() == pytest.approx(0.02, rel=0.1)
    if intensity.kind != "percentile":  # which measures the range of the noisy image, as it does in use
        x, y = (preparation.apply(image).image.pixels for image in (clean, reference))
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert noisy.geometry is clean.geometry and noisy.source is clean.source


def anomaly_cases(scores, labels):
    return [
        picture(np.full((16, 16), score, np.float32), f"c{n}", label=label)
        for n, (score, label) in enumerate(zip(scores, labels, strict=True))
    ]


def test_detection_overall_and_of_each_kind_beside_trivial_statistics():
    model = predictor(Anomaly(scores=(Residual(distance="l1"),)), lambda x: 0 * x)  # the score is the brightness
    found = evaluate(
        model,
        anomaly_cases([0.1, 0.2, 0.3, 0.4, 0.05, 0.9], ["normal", "normal", "ink", "ink", "fold", None]),
    )
    detection = found.metrics["detection"]
    assert set(detection) == {"all", "ink", "fold"}
    assert (detection["all"]["normal"], detection["all"]["abnormal"]) == (2, 3)  # without a label: not counted
    assert detection["ink"]["l1_mean"]["auroc"] == 1 and detection["ink"]["l1_mean"]["fpr_at_95_tpr"] == 0
    assert detection["ink"]["l1_mean"]["average_precision"] == pytest.approx(1.0)
    low, high = detection["all"]["l1_mean"]["auroc_interval"]
    assert 0 <= low < 4 / 6 < high <= 1
    assert detection["fold"]["l1_mean"]["auroc"] == 0
    assert detection["all"]["l1_mean"]["auroc"] == pytest.approx(4 / 6)
    trivial = detection["fold"]["intensity_mean"]
    assert (trivial["auroc"], trivial["auroc_reversed"]) == (0, 1)
    assert detection["all"]["sharpness"]["auroc"] == 0.5  # all are flat
    assert found.metrics["cases"] == 6


def test_a_score_that_ranks_backwards_is_warned_of(caplog):
    model = predictor(Anomaly(), lambda x: 0 * x)
    evaluate(model, anomaly_cases([0.5, 0.1], ["normal", "ink"]))
    assert "do not use it" in caplog.text


def test_normal_cases_alone_have_no_detection_numbers(tmp_path):
    model = predictor(Anomaly(), lambda x: 0 * x)
    found = evaluate(model, anomaly_cases([0.5, 0.1], ["normal", None]), tmp_path)
    assert set(found.metrics["detection"]["all"]["l2_mean"].values()) == {None}
    assert found.metrics["l2_mean"]["highest"] == pytest.approx(0.25)
    assert "NaN" not in (tmp_path / "metrics.json").read_text()


def test_a_failed_case_has_its_reason_and_the_others_go_on(tmp_path):
    good = picture(np.full((4, 4), 255, np.uint8), "good", target=np.full((4, 4), 2, np.uint8))
    no_target = picture(np.zeros((4, 4), np.uint8), "no-target")
    colour = picture(np.random.default_rng(0).integers(0, 9, (4, 4, 3), np.uint8), "colour", np.zeros((4, 4), np.uint8))
    watched = []
    found = evaluate(
        predictor(Segmentation(labels=(RED, GREEN)), brightness),
        [no_target, colour, good],
        tmp_path,
        watch=lambda result: watched.append(result.id),
    )
    assert watched == ["no-target", "colour", "good"]
    assert (found.metrics["cases"], found.metrics["failed"]) == (1, 2)
    reasons = [result.reason for result in found.cases]
    assert "no target" in reasons[0] and "grey images" in reasons[1] and reasons[2] is None
    cases = json.loads((tmp_path / "run.json").read_text())["cases"]
    assert [case["status"] for case in cases] == ["failed", "failed", "done"]
    assert cases[1]["reason"] == reasons[1]


def test_a_bug_is_not_a_failed_case():
    def wrong(x):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        evaluate(predictor(Anomaly(), wrong), anomaly_cases([0.5], ["normal"]))


def test_cases_come_from_the_packages_own_experiment_or_from_a_list(tmp_path):
    root = disc_pictures(tmp_path / "data")
    task = Segmentation(labels=(RED,))
    data = {"kind": "folder", "root": str(root), "images": "images/*.png", "targets": "masks/*.png"}
    model = predictor(task, lambda x: np.concatenate([0.5 - x, x - 0.5], axis=1), experiment={"data": data})
    own = evaluate(model)
    assert [result.id for result in own.cases] == ["disc-2"] and own.metrics["dice"]["mean"] > 0.8
    assert len(evaluate(model, split="train").cases) == 6

    path = root / "cases.csv"
    path.write_text("id,image,target\n" + "".join(f"d{n},images/disc-{n}.png,masks/disc-{n}.png\n" for n in range(3)))
    assert [result.id for result in evaluate(model, path).cases] == ["d0", "d1", "d2"]  # no splits: all of them
    path.write_text("id,image,target,split\na,images/disc-0.png,masks/disc-0.png,train\n"
                    "b,images/disc-1.png,masks/disc-1.png,test\n")  # fmt: skip
    assert [result.id for result in evaluate(model, path).cases] == ["b"]
    (root / "images" / "disc-1.png").write_bytes(b"")
    (result,) = evaluate(model, path).cases
    assert result.reason is not None


def test_what_cannot_be_evaluated_on(tmp_path):
    model = predictor(Anomaly(), lambda x: 0 * x)
    with pytest.raises(UsageError, match="does not say which data"):
        evaluate(model)
    with pytest.raises(UsageError, match="no cases"):
        evaluate(model, [], tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    with pytest.raises(SettingsError, match="no such file"):
        evaluate(model, tmp_path / "none.csv")
    with pytest.raises(UnfitImage):
        measure(predictor(Restoration(), lambda x: x), picture(np.zeros((4, 4), np.uint8)))


def test_samples_are_evaluated_by_name():
    model = predictor(Anomaly(), lambda x: x, preparation=Preparation(channels=3))
    found = evaluate(model, Sample(name="anomaly-tiles"))
    artefacts = {"ink", "fold", "foreign", "blur", "bubble", "compressed", "stain"}
    assert set(found.metrics["detection"]) == {"all", *artefacts}


def test_headlines():
    assert headline(Segmentation(labels=(RED,))) == ("dice", True)
    assert headline(Restoration()) == ("psnr", True)
    assert headline(Anomaly(scores=(Residual(distance="l1", reducer=Max()),))) == ("l1_max", False)


def test_a_training_image_that_cannot_be_read_costs_the_baselines_only_itself(tmp_path, caplog):
    data = anomaly(disc_pictures(tmp_path, 20)).data
    train = [case.id for case in data.cases("train")]
    broken = train[1]
    (tmp_path / "images" / f"{broken}.png").write_bytes(b"no picture")
    fitted = baselines_from(normal_images(data))
    assert fitted is not None and len(fitted.statistics.rows) == len(train) - 1
    assert f"case {broken} (train) is left out" in caplog.text


def test_one_kind_of_abnormal_image_is_judged_once():
    rows = [CaseResult(str(n), "ink" if n < 5 else "normal", {"s": float(n)}) for n in range(20)]
    two = [*rows, CaseResult("20", "fold", {"s": 30.0})]
    assert [said.split()[3] for said in verdict(["s"], detection(["s"], rows))] == ["ink"]
    assert [said.split()[3] for said in verdict(["s"], detection(["s"], two))] == ["abnormal", "ink"]
