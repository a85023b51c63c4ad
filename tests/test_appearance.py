"""The score `appearance`: what goes wrong with a whole image, in either direction, of any shape."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medae.scores import Appearance, Found, Statistics
from medae.scores.baselines import laplacian

Pixels = np.ndarray


def normal(seed: int, shape: tuple[int, ...] = (1, 1, 61, 84)) -> Pixels:
    """Blobs on a dark ground, with the noise of a camera, in steps of 8 bits."""
    rng = np.random.default_rng(seed)
    spots = np.clip(gaussian_filter(rng.standard_normal(shape), (0, 0, 3, 3)) * 8 - 0.4, 0, 1)
    values = 0.1 + rng.uniform(0.4, 0.7) * spots + 0.02 * rng.standard_normal(shape)
    return (np.rint(255 * np.clip(values, 0, 1)) / 255).astype(np.float32)


def shaded(x: Pixels) -> Pixels:
    rows = np.geomspace(0.3, 2, x.shape[-2])[:, None]
    return (np.rint(255 * np.clip(x * rows, 0, 1)) / 255).astype(np.float32)


def with_gap(x: Pixels) -> Pixels:
    gap = x.copy()
    gap[..., 20:32] = x.min()
    return gap


def smeared(x: Pixels) -> Pixels:
    return (np.rint(255 * gaussian_filter(x, (0, 0, 0, 3))) / 255).astype(np.float32)


DAMAGES: dict[str, Callable[[Pixels], Pixels]] = {
    "shaded": shaded,
    "a gap": with_gap,
    "smeared": smeared,
    "inverted": lambda x: 1 - x,
    "saturated": lambda x: np.minimum(x, 0.3),
    "washed out": lambda x: (x + 3) / 4,
}


@pytest.mark.parametrize("by", ["mahalanobis", "neighbours"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_it_tells_damaged_images_from_new_normal_ones(by: str, damage: str) -> None:
    score = Appearance(by=by, count=1)  # type: ignore[arg-type]
    fitted = {f"scores.appearance.{name}": part for name, part in score.fit([normal(n) for n in range(60)]).items()}

    def value(x: Pixels) -> float:
        return score.value(Found({}, x, None, fitted, {}))

    usual = [value(normal(n)) for n in range(100, 120)]
    assert min(value(DAMAGES[damage](normal(n))) for n in range(100, 120)) > max(usual)


@given(
    st.tuples(st.sampled_from([1, 3]), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    st.sampled_from(["noise", "constant", "steps"]),
)
def test_any_image_has_all_numbers(shape: tuple[int, ...], kind: str) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x = {"noise": x, "constant": np.full_like(x, 0.5), "steps": np.rint(x)}[kind]
    numbers = Appearance().of_image(x)
    assert numbers.shape == Appearance().of_image(normal(0, (shape[0], 1, 40, 40))).shape
    assert np.isfinite(numbers).all()


def test_a_mirrored_image_looks_the_same() -> None:
    x = normal(3, (1, 2, 36, 48))
    numbers = Appearance().of_image(x)
    for axes in ((2,), (3,), (2, 3)):
        np.testing.assert_allclose(Appearance().of_image(np.flip(x, axes)), numbers, atol=1e-3)


@given(st.tuples(st.just(1), st.integers(1, 3), st.integers(2, 40), st.integers(2, 40)), st.booleans())
def test_it_counts_what_plain_formulas_count(shape: tuple[int, ...], steps: bool) -> None:
    """In one pass and in float32, but nothing else than this."""
    x = np.random.default_rng(sum(shape)).random(shape).astype(np.float32)
    x = np.rint(4 * x) / 4 if steps else x
    grey = x[0].astype(float)
    edges = [np.diff(grey, axis=axis) for axis in (1, 2)]
    away = (grey - grey.mean()) / (grey.std() + 1e-6)
    first, *levels, last = np.percentile(grey, (1, 5, 25, 50, 75, 95, 99))
    expected = [
        *(np.log10((grey == end).mean() + 1e-4) for end in (grey.min(), grey.max())),
        *(np.array(levels) - first) / max(last - first, 1e-6),
        np.arcsinh((away**3).mean()),
        np.log((away**4).mean() + 1e-3),
        0.5 * np.log((edges[0] ** 2).mean() + 1e-8) - 0.5 * np.log((edges[1] ** 2).mean() + 1e-8),
        np.log10(((edges[0] == 0).mean() + (edges[1] == 0).mean()) / 2 + 1e-3),
    ]
    own = Appearance().of_image(x)[len(Statistics().of_image(x)) :]
    np.testing.assert_allclose(own[: len(expected)], expected, rtol=1e-4, atol=1e-5)


@given(st.tuples(st.sampled_from([1, 3]), st.integers(1, 3), st.integers(1, 40), st.integers(1, 40)))
def test_energies_are_those_of_plain_formulas(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(sum(shape)).random(shape).astype(np.float32)
    exact = x.astype(float)
    laplacians = (laplacian(exact) ** 2).mean((1, 2, 3))
    gradients = sum((np.diff(exact, axis=axis) ** 2).sum((1, 2, 3)) for axis in (2, 3)) / exact[0].size
    found = Statistics(scales=1, intensity=False).of_image(x)
    expected = 0.5 * np.log(np.concatenate([laplacians, gradients]) + 1e-8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
