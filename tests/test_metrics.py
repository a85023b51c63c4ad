"""Our metrics equal those of MONAI, scikit-image and scikit-learn, and keep their laws at the edges."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.metrics.detection import auroc, average_precision
from medae.metrics.fidelity import psnr, ssim
from medae.metrics.overlap import dice, iou
from medae.scores.baselines import trivial_statistics

seeds = st.integers(0, 2**32 - 1)


def random_labels(seed: int, labels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (1, *rng.integers(1, 9, 3))
    return rng.integers(0, labels + 1, shape, np.uint8), rng.integers(0, labels + 1, shape, np.uint8)


@settings(deadline=None, max_examples=30)
@given(seeds)
def test_overlap_equals_monai(seed):
    import torch
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou

    prediction, reference = random_labels(seed)
    one_hot = [
        torch.from_numpy(np.stack([labels[0] == label for label in range(4)]).astype(np.float32))[None]
        for labels in (prediction, reference)
    ]
    expected_dice = compute_dice(*one_hot, include_background=False, ignore_empty=False)[0]
    expected_iou = compute_iou(*one_hot, include_background=False, ignore_empty=False)[0]
    for label in (1, 2, 3):
        assert dice(prediction, reference, label) == pytest.approx(float(expected_dice[label - 1]), abs=1e-6)
        assert iou(prediction, reference, label) == pytest.approx(float(expected_iou[label - 1]), abs=1e-6)


@given(seeds)
def test_dice_and_iou_are_symmetric_and_say_the_same(seed):
    prediction, reference = random_labels(seed)
    overlap = iou(prediction, reference, 1)
    assert dice(prediction, reference, 1) == pytest.approx(2 * overlap / (1 + overlap))
    assert iou(reference, prediction, 1) == overlap


def test_overlap_of_empty_labels():
    empty, full = np.zeros((1, 1, 4, 4), np.uint8), np.ones((1, 1, 4, 4), np.uint8)
    assert dice(empty, empty, 1) == iou(empty, empty, 1) == 1
    assert dice(full, empty, 1) == dice(empty, full, 1) == iou(full, empty, 1) == 0


def test_shapes_are_not_broadcast():
    with pytest.raises(ValueError, match="shapes differ"):
        dice(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 1)), 1)
    with pytest.raises(ValueError, match="shapes differ"):
        psnr(np.zeros((1, 1, 4, 4)), np.zeros((1, 1, 4, 1)), 1)
    with pytest.raises(ValueError, match="shapes differ"):
        ssim(np.zeros((1, 1, 14, 14)), np.zeros((1, 2, 14, 14)), 1)


@settings(deadline=None, max_examples=20)
@given(seeds)
def test_psnr_equals_scikit_image(seed):
    from skimage.metrics import peak_signal_noise_ratio

    rng = np.random.default_rng(seed)
    reference = rng.integers(0, 256, (3, 2, 7, 5), np.uint8)
    restored = (reference + rng.normal(0, 20, reference.shape)).astype(np.float32)
    expected = peak_signal_noise_ratio(reference.astype(float), restored.astype(float), data_range=255)
    assert psnr(restored, reference, 255) == pytest.approx(expected, abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(seeds)
def test_ssim_equals_scikit_image_on_colour_and_wang_2004_on_slices(seed):
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(seed)
    reference = rng.random((3, 1, 13, 17))
    restored = reference + rng.normal(0, 0.1, reference.shape)
    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(restored[:, 0], reference[:, 0], channel_axis=0, **options)
    assert ssim(restored, reference, 1.0) == pytest.approx(expected, abs=1e-6)
    as_slices = [array.transpose(1, 0, 2, 3) for array in (restored, reference)]
    assert ssim(*as_slices, 1.0) == pytest.approx(expected, abs=1e-6)


def test_equal_images():
    image = np.random.default_rng(0).random((1, 1, 16, 16))
    assert psnr(image, image, 1) == math.inf
    assert ssim(image, image, 1) == pytest.approx(1)
    assert math.isnan(ssim(image[..., :10], image[..., :10], 1))  # smaller than the window


def test_unsigned_differences_do_not_wrap():
    dark, bright = np.zeros((1, 1, 4, 4), np.uint8), np.full((1, 1, 4, 4), 1, np.uint8)
    assert psnr(dark, bright, 255) == psnr(bright, dark, 255) == pytest.approx(20 * math.log10(255))


@settings(deadline=None)
@given(seeds)
def test_auroc_is_the_share_of_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, 20).astype(float)  # with ties
    truth = np.arange(20) % 3 == 0
    pairs = scores[truth][:, None] - scores[~truth][None]
    expected = np.mean((pairs > 0) + 0.5 * (pairs == 0))
    assert auroc(scores, truth.tolist()) == pytest.approx(expected, abs=1e-6)
    assert auroc(-scores, truth.tolist()) == pytest.approx(1 - expected, abs=1e-6)


@given(seeds)
def test_average_precision_is_the_mean_precision_at_each_find(seed):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(20).astype(float)
    truth = np.arange(20) % 3 == 0
    found = truth[np.argsort(-scores)]
    precision = np.cumsum(found) / np.arange(1, 21)
    assert average_precision(scores, truth.tolist()) == pytest.approx(precision[found].mean(), abs=1e-6)


def test_one_kind_alone_cannot_be_detected():
    for measure in (auroc, average_precision):
        assert math.isnan(measure([1.0, 2.0], [True, True]))
        assert math.isnan(measure([1.0, 2.0], [False, False]))


def test_trivial_statistics_see_what_they_say():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, 1, 21, 17), np.uint8)
    smooth = np.broadcast_to(noise.mean(axis=(2, 3), keepdims=True).astype(np.uint8), noise.shape)
    sharp, flat = trivial_statistics(noise), trivial_statistics(smooth)
    assert sharp["intensity_mean"] == pytest.approx(noise.mean()) and sharp["intensity_std"] == pytest.approx(
        noise.std()
    )
    assert flat["sharpness"] == 0 < sharp["sharpness"]
    ramp = np.arange(12.0).reshape(1, 1, 1, 12) + np.zeros((1, 1, 9, 1))
    # a ramp bends only at its ends, by 1: up on the left, down on the right
    assert trivial_statistics(ramp)["sharpness"] == pytest.approx(2 / 12)
