"""Scores of the whole image by neighbours among normal ones; its stain and its patterns."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from skimage.feature import local_binary_pattern
from sklearn.neighbors import LocalOutlierFactor

from medae.scores import Found, Haematoxylin, Patterns, Stain, Statistics
from medae.scores.baselines import outlier_factor
from medae.scores.statistics import DARKEST, StatisticScore
from medae.scores.tissue import CIRCLES, LEVELS

WAYS: list[dict[str, Any]] = [{}, {"whiten": True}, {"relative": True}, {"whiten": True, "relative": True}]
KINDS = [Statistics, Stain, Haematoxylin, Patterns]


def tissue(seed: int, shape: tuple[int, ...] = (3, 1, 37, 52), nuclei: float = 0.1) -> np.ndarray:
    """Dark specks on a stained ground, whose shade differs from image to image."""
    rng = np.random.default_rng(seed)
    ground = np.reshape(rng.uniform(0.6, 0.95, 3), (3, 1, 1, 1))
    specks = 1 - 0.6 * (rng.random((1, *shape[1:])) < nuclei)
    return np.clip(ground * specks + 0.02 * rng.standard_normal(shape), 0, 1).astype(np.float32)


def value(score: StatisticScore, images: list[np.ndarray], image: np.ndarray) -> float:
    fitted = {f"scores.{score.key}.{name}": part for name, part in score.fit(images).items()}
    return score.value(Found({}, image, None, fitted, {}))


@pytest.mark.parametrize("way", WAYS, ids=["plain", "whitened", "relative", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_normal_image_is_scored_as_if_the_others_alone_had_been_fitted(kind: Any, way: dict[str, Any]) -> None:
    score = kind(by="neighbours", count=2, **way)
    images = [tissue(seed) for seed in range(12)]
    for at in (0, 5):
        others = images[:at] + images[at + 1 :]
        assert value(score, images, images[at]) == pytest.approx(value(score, others, images[at]), rel=1e-4)
        assert value(score, images, images[at]) > 0.1


@pytest.mark.parametrize("way", WAYS, ids=["plain", "whitened", "relative", "both"])
def test_tissue_of_another_kind_lies_farther_than_any_new_tissue_of_the_same(way: dict[str, Any]) -> None:
    images = [tissue(seed) for seed in range(40)]
    for kind in KINDS:
        score = kind(by="neighbours", **way)
        usual = [value(score, images, tissue(seed)) for seed in range(100, 106)]
        assert min(value(score, images, tissue(seed, nuclei=0.5)) for seed in range(200, 203)) > max(usual)


def test_equal_images_have_no_neighbours_and_no_anomaly() -> None:
    assert value(Statistics(by="neighbours"), [tissue(0)] * 3, tissue(0)) == 0


@settings(deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(8, 40))
def test_relative_distance_is_the_neighbours_loneliness_and_ranks_like_the_local_outlier_factor(
    seed: int, count: int, rows: int
) -> None:
    known = np.random.default_rng(seed).standard_normal((rows, 3))
    new = np.random.default_rng(seed + 1).standard_normal(3) * 2
    apart = np.linalg.norm(known[:, None] - known, axis=-1)
    np.fill_diagonal(apart, np.inf)
    lonely = np.sort(apart, axis=1)[:, :count].mean(1)
    to_new = np.linalg.norm(known - new, axis=1)
    around = np.argsort(to_new)[:count]
    assert outlier_factor(new, known, count) == pytest.approx(to_new[around].mean() / lonely[around].mean())


def test_relative_distances_agree_with_those_of_scikit_learn() -> None:
    """Its density is by reachability, ours by distance: not the same numbers, but nearly the same order."""
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    known = np.concatenate([rng.standard_normal((80, 4)), 6 + 0.2 * rng.standard_normal((80, 4))])
    new = np.concatenate([1.5 * rng.standard_normal((60, 4)), 6 + 0.6 * rng.standard_normal((60, 4))])
    theirs = -LocalOutlierFactor(n_neighbors=5, novelty=True).fit(known).score_samples(new)
    assert spearmanr([outlier_factor(row, known, 5) for row in new], theirs).statistic > 0.95


@pytest.mark.parametrize("way", WAYS[1:])
def test_what_is_of_neighbours_needs_them(way: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="say by: neighbours"):
        Statistics(**way)


def test_stain_is_quantiles_of_density_and_how_channels_go_together() -> None:
    pixels = tissue(3)
    density = -np.log(pixels.reshape(3, -1).astype(np.float64) * (1 - DARKEST) + DARKEST)
    found = Stain().of_image(pixels)
    quantiles = np.percentile(density, LEVELS, axis=1)
    np.testing.assert_allclose(np.exp(found[:15]).reshape(len(LEVELS), 3), quantiles + 0.02, rtol=1e-4)
    together = [np.corrcoef(density[one], density[other])[0, 1] for one, other in combinations(range(3), 2)]
    np.testing.assert_allclose(np.tanh(found[15:]), together, atol=1e-5)
    blank = Stain().of_image(np.ones((3, 1, 9, 7), np.float32))
    assert np.isfinite(blank).all() and np.isfinite(Stain().of_image(np.zeros((1, 2, 9, 7), np.float32))).all()


def stained(amount: np.ndarray) -> np.ndarray:
    """Light (3, *amount.shape) through so much haematoxylin (an optical density of .65, .7 and .29 for 1)."""
    return np.exp(-np.multiply.outer([0.65, 0.70, 0.29], amount)).astype(np.float32)


@settings(deadline=None)
@given(st.integers(0, 2**16), st.floats(0.3, 3), st.floats(0, 0.5))
def test_haematoxylin_is_quantiles_by_the_densest_however_strongly_it_is_stained(
    seed: int, strength: float, eosin: float
) -> None:
    rng = np.random.default_rng(seed)
    amount = rng.uniform(0.2, 1, (2, 19, 23))
    found = Haematoxylin().of_image(stained(strength * amount))
    *levels, densest = np.percentile(amount, LEVELS)
    np.testing.assert_allclose(found, np.array(levels) / densest, atol=1e-4)
    rows, columns = rng.permutation(19), rng.permutation(23)
    np.testing.assert_allclose(Haematoxylin().of_image(stained(amount)[:, :, rows][..., columns]), found, atol=1e-4)
    pink = np.exp(-eosin * np.array([0.07, 0.99, 0.11]))[:, None, None, None]
    np.testing.assert_allclose(Haematoxylin().of_image(stained(strength * amount) * pink), found, atol=1e-3)


def test_haematoxylin_rises_as_what_lies_between_nuclei_fills() -> None:
    nuclei = np.random.default_rng(0).random((1, 27, 27)) < 0.2
    filled = [Haematoxylin().of_image(stained(np.where(nuclei, 1, ground))) for ground in (0, 0.2, 0.4, 0.8)]
    assert np.all(np.diff(filled, axis=0) > 0.1) and np.allclose(filled[0], 0, atol=1e-3)


def test_without_colour_haematoxylin_is_the_density_of_what_is_there() -> None:
    amount = np.random.default_rng(0).uniform(0.2, 1, (1, 19, 23))
    grey = np.exp(-amount)[None].astype(np.float32)
    *levels, densest = np.percentile(amount, LEVELS)
    np.testing.assert_allclose(Haematoxylin().of_image(grey), np.array(levels) / densest, atol=0.01)


@pytest.mark.parametrize("light", [0, 1])
def test_blank_black_and_nearly_blank_images_have_numbers(light: int) -> None:
    assert np.isfinite(Haematoxylin().of_image(np.full((3, 1, 9, 7), light, np.float32))).all()
    pale = 1 - 1e-4 * np.random.default_rng(0).random((3, 1, 9, 7)).astype(np.float32)
    assert Haematoxylin().of_image(pale).max() < 0.01, "noise is no nucleus"


@pytest.mark.parametrize("shape", [(3, 1, 31, 44), (1, 3, 25, 18)], ids=["picture", "volume"])
def test_patterns_are_shares_that_neither_quarter_turns_nor_brightness_change(shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(1).integers(20, 120, shape[1:]) / 255
    pixels = np.broadcast_to(grey, shape).astype(np.float32)
    found = Patterns().of_image(pixels)
    assert len(found) == sum(points + 2 for points, _ in CIRCLES)
    assert np.square(found).sum() == pytest.approx(len(CIRCLES))
    np.testing.assert_allclose(Patterns().of_image(pixels + np.float32(40 / 255)), found, atol=1e-6)
    for turned in (np.rot90(pixels, axes=(2, 3)), pixels[..., ::-1], pixels[..., ::-1, :]):
        np.testing.assert_allclose(Patterns().of_image(turned.copy()), found, atol=0.05)


def test_patterns_are_those_of_scikit_image_but_for_ties() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (90, 110))
    padded = np.pad(grey, 3, mode="symmetric")
    expected = []
    for points, radius in CIRCLES:
        codes = local_binary_pattern(padded, points, radius, "uniform")[3:-3, 3:-3].astype(int)
        expected.append(np.bincount(codes.ravel(), minlength=points + 2) / grey.size)
    found = np.square(Patterns().of_image((grey / 255).astype(np.float32)[None, None]))
    np.testing.assert_allclose(found, np.concatenate(expected), atol=0.003)


@pytest.mark.parametrize("shape", [(3, 1, 260, 300), (1, 40, 9, 301)], ids=["picture", "many slices"])
def test_of_many_voxels_every_so_many_rows_have_nearly_the_same_patterns(shape: tuple[int, ...]) -> None:
    pixels = tissue(3, shape, nuclei=0.3)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("medae.scores.tissue.MOST", pixels.size)
        whole = Patterns().of_image(pixels)
    found = Patterns().of_image(pixels)
    assert not np.array_equal(found, whole)
    np.testing.assert_allclose(found, whole, atol=0.03)


def test_patterns_of_values_far_from_grey_levels_are_finite_and_do_not_overflow() -> None:
    pixels = np.random.default_rng(4).standard_normal((1, 1, 40, 40)).astype(np.float32)
    far = pixels.copy()
    far[0, 0, 20, 20] = 1e6
    near, found = Patterns().of_image(np.clip(pixels, -4, 4)), Patterns().of_image(far)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, near, atol=0.06)


def test_noise_below_a_step_of_eight_bits_is_no_pattern() -> None:
    flat = np.full((1, 1, 20, 20), 100 / 255, np.float32)
    noisy = flat + 1e-4 * np.random.default_rng(0).standard_normal(flat.shape).astype(np.float32)
    np.testing.assert_array_equal(Patterns().of_image(noisy), Patterns().of_image(flat))
