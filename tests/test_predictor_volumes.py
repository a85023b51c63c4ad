"""Several volumes in one file: each is answered as if it had come alone, and the answers are one file again."""

from dataclasses import replace

import numpy as np
import pytest

from medae.calibration import Calibration
from medae.errors import UnfitImage
from medae.image import Geometry, Image
from medae.io.answer import Label
from medae.predictor import Predictor
from medae.preparation import Preparation
from medae.tasks import Anomaly, Restoration, Segmentation
from tests.conftest import tilted_affine, untrained_package

UNET = {"kind": "unet", "dims": 2, "features": (4, 8), "strides": (2,)}
TASKS = {
    "segmentation": (Segmentation(labels=[Label(name="lesion", colour=(255, 0, 0))]), UNET),
    "restoration": (Restoration(), {"kind": "dncnn", "depth": 3, "features": 4}),
    "anomaly": (Anomaly(), {"kind": "conv_autoencoder", "features": [4, 6]}),
}


def volumes(count: int = 3) -> Image:
    pixels = np.random.default_rng(0).random((count, 4, 20, 24)).astype(np.float32)
    pixels[1] *= 0.2
    return Image(pixels, Geometry((4, 20, 24), tilted_affine()), volumes=count)


@pytest.mark.parametrize("kind", TASKS)
def test_each_volume_is_answered_as_if_it_came_alone(kind: str) -> None:
    task, network = TASKS[kind]
    predictor = Predictor(untrained_package(task, network))
    image = volumes()
    seen: list[tuple[int, int]] = []
    soft = kind == "segmentation"
    whole = predictor(image, probabilities=soft, progress=lambda done, total: seen.append((done, total)))
    alone = [predictor(image.volume(number), probabilities=soft) for number in range(3)]
    assert whole.image.volumes == 3 and whole.image.channels == alone[0].image.channels
    for number, part in enumerate(alone):
        np.testing.assert_array_equal(whole.image.volume(number).pixels, part.image.pixels)
        if whole.probabilities is not None and part.probabilities is not None:
            np.testing.assert_array_equal(whole.probabilities.volume(number).pixels, part.probabilities.pixels)
    for name, score in whole.scores.items():
        each = [part.scores[name] for part in alone]
        assert score == pytest.approx(max(each) if kind == "anomaly" else np.mean(each))
    assert seen[-1][0] == seen[-1][1] and [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_of_two_sided_scores_the_volume_farthest_from_normal_counts() -> None:
    task = Anomaly.model_validate({"kind": "anomaly", "scores": [{"kind": "residual", "two_sided": True}]})
    package = untrained_package(task, TASKS["anomaly"][1])
    image = volumes()
    low, *others = sorted(Predictor(package)(image.volume(number)).scores["l2_mean"] for number in range(3))
    usual = np.linspace(0.99 * others[0], 1.01 * others[1], 200).tolist()
    calibration = Calibration.from_scores({"l2_mean": usual}, two_sided=["l2_mean"], package_digest=package.digest)
    found = Predictor(package.calibrated(calibration))(image)
    assert found.scores["l2_mean"] == low and found.p_value == pytest.approx(2 / 201)


def test_training_takes_one_volume_an_image() -> None:
    image = volumes()
    with pytest.raises(UnfitImage, match="3 volumes"):
        Preparation().apply(replace(image))
