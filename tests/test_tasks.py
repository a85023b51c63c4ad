"""Tasks: what a network's output means."""

import numpy as np
import pytest
import torch

from medae.errors import UsageError
from medae.image import Geometry, Image
from medae.io.answer import Label
from medae.preparation import Preparation
from medae.scores import Residual
from medae.scores.reducers import Max, TopPercent
from medae.tasks import Anomaly, Restoration, Segmentation
from medae.tasks.base import softmax
from tests.conftest import tilted_affine


def labels(count: int) -> tuple[Label, ...]:
    return tuple(Label(name=f"label {n}", colour=(n % 256, 0, 0)) for n in range(1, count + 1))


@pytest.mark.parametrize("count", [1, 2, 5, 300])
def test_labels_are_the_likeliest(count: int) -> None:
    task = Segmentation(labels=labels(count))
    output = np.random.default_rng(count).normal(size=(1 + count, 3, 4, 5)).astype(np.float32)
    decided = task.decide(output, output, None)
    np.testing.assert_array_equal(decided[0], output.argmax(0))
    assert decided.dtype == (np.uint8 if count < 256 else np.uint16)


@pytest.mark.parametrize("count", [1, 3])
def test_a_threshold_is_on_the_probability_of_foreground(count: int) -> None:
    task = Segmentation(labels=labels(count))
    output = np.random.default_rng(0).normal(size=(1 + count, 3, 4, 5)).astype(np.float32)
    foreground = torch.softmax(torch.from_numpy(output), 0)[1:].sum(0).numpy()
    for threshold in (0.2, 0.5, 0.8):
        decided = task.decide(output, output, threshold)[0]
        np.testing.assert_array_equal(decided > 0, foreground >= threshold)
        inside = decided > 0
        np.testing.assert_array_equal(decided[inside], 1 + output[1:].argmax(0)[inside])


def test_softmax_is_torchs_and_does_not_overflow() -> None:
    output = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32) * 500
    np.testing.assert_allclose(softmax(output), torch.softmax(torch.from_numpy(output), 0).numpy(), atol=1e-6)


def test_areas_and_volumes_only_where_sizes_are_known() -> None:
    task = Segmentation(labels=labels(2))
    spacing = (2.5, 0.8, 1.1)
    volume = Image(np.zeros((1, 2, 3, 4), np.uint8), Geometry((2, 3, 4), tilted_affine(spacing)))
    decided = np.array([0, 1, 1, 2] * 6, np.uint8).reshape(1, 2, 3, 4)
    prepared = Preparation().apply(volume)
    scores = task.measure(decided, prepared.restore(decided, labels=True), prepared, {})
    assert scores["label 1_voxels"] == 12
    assert scores["label 1_mm3"] == pytest.approx(12 * 2.5 * 0.8 * 1.1)
    picture = Image.from_picture(np.zeros((4, 6), np.uint8), spacing_mm=(0.5, 0.25))
    prepared = Preparation().apply(picture)
    flat = decided.reshape(1, 1, 4, 6)
    assert task.measure(flat, prepared.restore(flat, labels=True), prepared, {})["label 2_mm2"] == pytest.approx(
        6 * 0.125
    )
    unknown = Preparation().apply(Image.from_picture(np.zeros((4, 6), np.uint8)))
    assert set(task.measure(flat, unknown.restore(flat, labels=True), unknown, {})) == {
        "label 1_voxels",
        "label 2_voxels",
    }


def test_volumes_of_a_tilted_gantry_are_those_of_its_slanted_voxels() -> None:
    affine = tilted_affine((2.5, 0.8, 1.1))
    affine[:3, 0] += 2 * affine[:3, 1]  # each slice is moved along its rows: no voxel becomes larger
    volume = Image(np.ones((1, 2, 3, 4), np.uint8), Geometry((2, 3, 4), affine))
    prepared = Preparation().apply(volume)
    scores = Segmentation(labels=labels(1)).measure(volume.pixels, volume, prepared, {})
    assert scores["label 1_mm3"] == pytest.approx(24 * 2.5 * 0.8 * 1.1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Anomaly(), np.mean([1, 4, 9, 16])),
        (Anomaly(scores=(Residual(distance="l1"),)), np.mean([1, 2, 3, 4])),
        (Anomaly(scores=(Residual(distance="l1", reducer=Max()),)), 4),
        (Anomaly(scores=(Residual(reducer=TopPercent(percent=50)),)), 12.5),
    ],
)
def test_anomaly_score_is_the_reduced_residual(settings: Anomaly, expected: float) -> None:
    picture = Image.from_picture(np.zeros((2, 2), np.float32))
    prepared = Preparation().apply(picture)
    x, output = np.zeros((1, 1, 2, 2), np.float32), np.array([1, 2, 3, -4], np.float32).reshape(1, 1, 2, 2)
    residual = settings.decide(output, x, None)
    assert settings.measure(residual, prepared.restore(residual), prepared, {}) == {
        settings.score_name: pytest.approx(expected)
    }


def test_each_task_says_what_its_threshold_is() -> None:
    for task, said in ((Segmentation(labels=labels(1)), "probability"), (Anomaly(), "false-positive rate")):
        task.check_threshold(0.5)
        with pytest.raises(UsageError, match=said):
            task.check_threshold(1.5)
    with pytest.raises(UsageError, match="no threshold"):
        Restoration().check_threshold(0.5)


def test_label_names_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Segmentation(labels=(labels(1)[0], labels(1)[0]))
