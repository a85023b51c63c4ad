"""Preparation: one way to the network's range and grid, and the exact way back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medae.errors import LimitExceeded, UnfitImage
from medae.image import Geometry, Image
from medae.preparation import FullRange, Percentile, Preparation, Window, ZScore
from tests.conftest import tilted_affine


def hounsfield(seed: int = 0) -> Image:
    values = np.random.default_rng(seed).uniform(-1000, 2000, (1, 5, 6, 7)).astype(np.float32)
    return Image(values, Geometry((5, 6, 7), tilted_affine()))


@given(st.integers(0, 100), st.sampled_from([Window(lower=-200, upper=300), Percentile(), ZScore()]))
def test_what_was_not_changed_comes_back_as_it_was(seed: int, intensity: Window | Percentile | ZScore) -> None:
    image = hounsfield(seed)
    prepared = Preparation(orientation="SPL", intensity=intensity).apply(image)
    back = prepared.restore_intensity(prepared.image.pixels)
    np.testing.assert_allclose(back.pixels, image.pixels, rtol=1e-5, atol=1e-2)
    back.geometry.require_same_grid(image.geometry)


def test_clipped_voxels_return_untouched_whatever_the_network_says() -> None:
    image = hounsfield()
    prepared = Preparation(intensity=Window(lower=-200, upper=300)).apply(image)
    back = prepared.restore_intensity(np.full_like(prepared.image.pixels, 0.5)).pixels
    beyond = (image.pixels < -200) | (image.pixels > 300)
    np.testing.assert_array_equal(back[beyond], image.pixels[beyond])
    np.testing.assert_allclose(back[~beyond], 50, atol=1e-3)


@pytest.mark.parametrize(("dtype", "most"), [(np.uint8, 255), (np.uint16, 65535)])
def test_full_range_is_that_of_the_type(dtype: type, most: int) -> None:
    picture = Image.from_picture(np.array([[0, most]], dtype))
    np.testing.assert_allclose(Preparation(intensity=FullRange()).apply(picture).image.pixels.ravel(), [0, 1])


def test_percentiles_are_those_of_the_whole_image() -> None:
    image = hounsfield()
    prepared = Preparation(intensity=Percentile(lower=10, upper=90)).apply(image)
    low, high = np.percentile(image.pixels, [10, 90])
    assert prepared.lower == pytest.approx(low) and prepared.scale == pytest.approx(high - low)
    assert prepared.image.pixels.min() == 0 and prepared.image.pixels.max() == 1


@pytest.mark.parametrize("factor", [1.0, 255.0, -1000.0])
def test_real_numbers_of_another_scale_are_refused_by_full_range(factor: float) -> None:
    values = np.random.default_rng(0).random((1, 1, 9, 9)).astype(np.float32)
    picture = Image(values * np.float32(factor), Geometry.picture(9, 9))
    if factor == 1:
        np.testing.assert_array_equal(Preparation().apply(picture).image.pixels, values)
        noisy = picture.with_pixels(values + np.random.default_rng(1).normal(0, 0.5, values.shape))
        Preparation().apply(noisy)
        return
    with pytest.raises(UnfitImage, match=r"real numbers in 0\.\.1; this image has real numbers from"):
        Preparation().apply(picture)


@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint32, np.int64])
def test_wide_types_lose_nothing_to_an_offset(dtype: type) -> None:
    steps = np.arange(24).reshape(1, 2, 3, 4)
    image = Image((1_000_000_000 + steps).astype(dtype), Geometry((2, 3, 4), tilted_affine()))
    seen = Preparation(intensity=Percentile(lower=0, upper=100)).apply(image).image.pixels
    np.testing.assert_allclose(seen, steps / 23, atol=1e-6)


@pytest.mark.parametrize("intensity", [Percentile(), ZScore(), Window(lower=0, upper=1)])
def test_values_beyond_float32_are_refused(intensity: Percentile) -> None:
    pixels = np.random.default_rng(0).random((1, 2, 3, 4))
    geometry = Geometry((2, 3, 4), tilted_affine())
    with pytest.raises(UnfitImage, match="Scale it down"):
        Preparation(intensity=intensity).apply(Image(pixels * 1e300, geometry))
    for factor in (5e37, 1e-42):  # as large, and as close together, as float32 has them
        seen = Preparation(intensity=intensity).apply(Image((pixels * factor).astype(np.float32), geometry))
        assert np.isfinite(seen.image.pixels).all()


def test_a_header_cannot_make_the_networks_grid_huge() -> None:
    image = Image(np.zeros((1, 8, 8, 8), np.uint8), Geometry((8, 8, 8), np.diag([1000.0, 1000, 1000, 1])))
    with pytest.raises(LimitExceeded, match="8000 x 8000 x 8000 voxels"):
        Preparation(spacing_mm=(1, 1, 1)).apply(image)


@pytest.mark.parametrize("intensity", [Percentile(), ZScore(), Window(lower=0, upper=1)])
def test_a_flat_image_stays_finite(intensity: Percentile) -> None:
    flat = Image.from_picture(np.full((8, 8), 7, np.uint8))
    assert np.isfinite(Preparation(intensity=intensity).apply(flat).image.pixels).all()


def test_the_network_sees_the_asked_grid_and_answers_go_back() -> None:
    image = hounsfield()
    preparation = Preparation(orientation="SPL", spacing_mm=(2, 1, 1), intensity=ZScore())
    prepared = preparation.apply(image)
    assert prepared.image.geometry.axis_codes == "SPL"
    assert prepared.image.geometry.spacing_mm == pytest.approx((2, 1, 1))
    labels = prepared.restore(np.ones(prepared.image.pixels.shape, np.uint8), labels=True)
    assert labels.pixels.dtype == np.uint8 and labels.pixels.min() == 1
    labels.geometry.require_same_grid(image.geometry)


def test_labels_are_prepared_onto_the_same_grid_as_their_image() -> None:
    image = hounsfield()
    preparation = Preparation(orientation="SPL", spacing_mm=(2, 1, 1), intensity=ZScore())
    labels = image.with_pixels((image.pixels > 0).astype(np.uint8))
    preparation.apply_labels(labels).geometry.require_same_grid(preparation.apply(image).image.geometry)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    pixels = np.zeros((1, 2, 3, 4), np.float32)
    pixels[0, 1, 2, 3] = bad
    with pytest.raises(UnfitImage, match="1 of 24 values are not finite"):
        Preparation().apply(Image(pixels, Geometry((2, 3, 4), np.eye(4))))


def test_channels_must_be_the_models() -> None:
    rng = np.random.default_rng(0)
    colour = Image.from_picture(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    with pytest.raises(UnfitImage, match="grey images"):
        Preparation(channels=1).apply(colour)
    with pytest.raises(UnfitImage, match="colour images"):
        Preparation(channels=3).apply(Image.from_picture(np.zeros((4, 5), np.uint8)))
    grey_as_colour = Image.from_picture(np.repeat(rng.integers(0, 256, (4, 5, 1), dtype=np.uint8), 3, axis=2))
    prepared = Preparation(channels=1, intensity=Window(lower=50, upper=100)).apply(grey_as_colour)
    assert prepared.image.channels == 1
    back = prepared.restore_intensity(prepared.image.pixels)
    np.testing.assert_allclose(back.pixels, grey_as_colour.pixels[:1], atol=1e-3)


def test_millimetres_cannot_be_had_from_a_picture_of_unknown_size() -> None:
    with pytest.raises(UnfitImage, match="how large"):
        Preparation(spacing_mm=(1, 1, 1)).apply(Image.from_picture(np.zeros((4, 5), np.uint8)))


@pytest.mark.parametrize("orientation", ["SP", "SPP", "XYZ", "SPLR", ""])
def test_an_orientation_has_one_letter_for_each_direction(orientation: str) -> None:
    with pytest.raises(ValueError, match="three letters"):
        Preparation(orientation=orientation)
