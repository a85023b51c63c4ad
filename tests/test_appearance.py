"""The score `appearance`: what goes wrong with a whole image, in either direction, of any shape."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from medae.scores import Appearance, Found

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
