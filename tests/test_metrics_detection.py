"""Detection of images and of voxels equals scikit-learn and the definitions; intervals cover; baselines are honest."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from medae.metrics.detection import (
    auroc,
    average_precision,
    bootstrap_auroc,
    bootstrap_gain,
    fpr_at_tpr,
    voxel_detection,
)
from medae.scores.baselines import IMAGES, JOINT, STATISTICS, Baselines, is_baseline, thumbnail, trivial_statistics

seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, of both kinds."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count) < 0.3
    truth[:2] = (True, False)
    return np.round(rng.normal(size=count) + truth, 1), truth


@given(seeds)
def test_numbers_of_images_are_those_of_scikit_learn(seed: int) -> None:
    scores, truth = drawn(seed)
    assert auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert average_precision(scores, truth) == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert fpr_at_tpr(scores, truth) == pytest.approx(false[true >= 0.95 - 1e-9].min(), abs=1e-9)


@settings(deadline=None)
@given(seeds)
def test_numbers_of_voxels_are_those_of_every_threshold(seed: int) -> None:
    rng = np.random.default_rng(seed)
    regions = rng.integers(0, 4, 80)
    regions[:2] = (0, 1)
    scores = np.round(rng.normal(size=80) + (regions > 0), 1)
    truth = regions > 0
    found = voxel_detection(scores, regions)
    assert found.average_precision == pytest.approx(average_precision_score(truth, scores), abs=1e-9)
    dice, false, overlap = [], [0.0], [0.0]
    for threshold in np.unique(scores)[::-1]:
        called = scores >= threshold
        dice.append(2 * (called & truth).sum() / (called.sum() + truth.sum()))
        false.append((called & ~truth).sum() / (~truth).sum())
        overlap.append(np.mean([called[regions == region].mean() for region in np.unique(regions[truth])]))
    assert found.ceil_dice == pytest.approx(max(dice), abs=1e-9)
    grid = np.unique(np.concatenate([np.linspace(0, 0.3, 2001), false]))
    grid = grid[grid <= 0.3]
    steps = np.interp(grid, false, overlap)
    for x in set(false) & set(grid):  # the curve's highest point there, where it rises upright
        steps[grid == x] = max(y for at, y in zip(false, overlap, strict=True) if at == x)
    assert found.per_region_overlap == pytest.approx(np.trapezoid(steps, grid) / 0.3, abs=2e-3)


def test_one_kind_of_voxel_alone_has_no_numbers() -> None:
    assert np.isnan(voxel_detection(np.arange(4.0), np.zeros(4, int)).ceil_dice)
    assert np.isnan(fpr_at_tpr([1, 2], [True, True]))


def test_intervals_cover_what_they_should() -> None:
    inside, truth = 0, np.arange(200) < 80
    for seed in range(60):
        scores = np.random.default_rng(seed).normal(size=200) + truth
        low, high = bootstrap_auroc(scores, truth, draws=200, seed=seed)
        inside += low <= 0.7602 <= high  # of two normals one standard deviation apart
    assert inside >= 53


def test_a_gain_is_of_the_same_draws() -> None:
    scores, truth = drawn(5, 80)
    assert bootstrap_gain(scores, scores, truth) == (0, 0)
    better, worse = scores + truth, scores
    low, high = bootstrap_gain(better, worse, truth)
    assert 0 < low < auroc(better, truth) - auroc(worse, truth) < high
    assert bootstrap_gain(worse, better, truth) == pytest.approx((-high, -low))


def test_patients_are_drawn_as_a_whole() -> None:
    scores, truth = drawn(3, 40)
    apart = bootstrap_auroc(np.repeat(scores, 5), np.repeat(truth, 5))
    together = bootstrap_auroc(np.repeat(scores, 5), np.repeat(truth, 5), np.repeat(np.arange(40), 5).tolist())
    assert together.high - together.low > 1.7 * (apart.high - apart.low)
    assert together == pytest.approx(bootstrap_auroc(scores, truth, list(range(40))))
    assert np.isnan(bootstrap_auroc([1.0, 2.0], [True, True]).low)


def test_an_interval_of_a_thousand_draws_is_quick_and_the_same_each_time() -> None:
    scores, truth = drawn(1, 1000)
    assert bootstrap_auroc(scores, truth) == bootstrap_auroc(scores, truth)


def images(count: int, seed: int = 0, channels: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(60, 200, (channels, 1, 12, 10), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_every_baseline_tells_what_is_unlike_in_either_direction(channels: int) -> None:
    fitted = Baselines.fit(images(80, channels=channels))
    odd = [np.full((channels, 1, 12, 10), value, np.uint8) for value in (0, 255)]
    normal = [fitted(image, trivial_statistics(image)) for image in images(20, 1, channels)]
    for image in odd:
        found = fitted(image, trivial_statistics(image))
        assert set(found) == {*JOINT, *IMAGES}
        for name in (*JOINT, "pca_residual_16", "pca_neighbours"):
            assert found[name] > max(row[name] for row in normal), name
    away = fitted.two_sided(trivial_statistics(odd[0]))
    assert away["intensity_mean_two_sided"] > 3 and all(is_baseline(name) for name in away)
    assert set(trivial_statistics(odd[0])) == set(STATISTICS[: 7 if channels == 1 else 10])
    assert not is_baseline("l2_mean")


def test_components_are_those_of_scikit_learn() -> None:
    every = images(150)
    rows = np.stack([thumbnail(image) for image in every])
    expected = PCA(16).fit(rows)
    new = thumbnail(images(1, 9)[0])
    left = new - expected.inverse_transform(expected.transform(new[None]))[0]
    components = Baselines.fit(every).images
    assert components is not None
    assert components.residual(new, 16) == pytest.approx(np.square(left).mean(), rel=1e-6)


def test_few_images_have_few_components() -> None:
    few = images(10)
    components, new = Baselines.fit(few).images, thumbnail(images(1, 9)[0])
    assert components is not None and len(components.axes) == 9
    assert components.residual(new, 64) == components.residual(new, 16)


def test_images_of_several_sizes_have_no_components() -> None:
    fitted = Baselines.fit([*images(3), images(1)[0][:, :, :9]])
    assert fitted.images is None and set(fitted(images(1)[0], trivial_statistics(images(1)[0]))) == set(JOINT)
