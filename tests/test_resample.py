"""Resampling: values stay at their place in the world."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.errors import GeometryError
from medae.image import Geometry, Image
from medae.resample import resample_onto, standard_grid
from tests.conftest import tilted_affine

orientations = st.sampled_from(["SPL", "SAR", "RAS", "LPI", "PSL", "ARS", "IAL"])


def smooth(geometry: Geometry) -> Image:
    """A linear function of world coordinates: linear interpolation reproduces it exactly."""
    s, r, w = np.meshgrid(*(np.arange(length) for length in geometry.shape), indexing="ij")
    x, y, z = np.moveaxis(geometry.world(np.stack([s, r, w], -1)), -1, 0)
    return Image((2 * x - 3 * y + 0.5 * z).astype(np.float32)[None], geometry)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_onto_itself_changes_nothing(tilted_volume: Image, dtype: type) -> None:
    image = tilted_volume.with_pixels(tilted_volume.pixels.astype(dtype))
    for labels in (False, True):
        result = resample_onto(image, image.geometry, labels=labels)
        np.testing.assert_array_equal(result.pixels, image.pixels)
        assert result.pixels.dtype == dtype


@given(orientations, st.integers(0, 20))
def test_turning_there_and_back_is_exact(orientation: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(-1000, 1000, (2, 4, 5, 6)).astype(np.int16)
    image = Image(pixels, Geometry((4, 5, 6), tilted_affine(seed=seed)))
    grid = standard_grid(image.geometry, orientation=orientation, spacing_mm=None)
    assert grid.axis_codes == orientation
    turned = resample_onto(image, grid)
    assert sorted(turned.pixels.ravel()) == sorted(pixels.ravel())
    np.testing.assert_array_equal(resample_onto(turned, image.geometry).pixels, pixels)


@given(orientations)
def test_turning_moves_no_voxel_in_the_world(orientation: str) -> None:
    image = smooth(Geometry((4, 5, 6), tilted_affine()))
    turned = resample_onto(image, standard_grid(image.geometry, orientation=orientation, spacing_mm=None))
    np.testing.assert_allclose(turned.pixels, smooth(turned.geometry).pixels, atol=1e-3)


@settings(deadline=None)
@given(st.integers(0, 1000), st.tuples(*[st.integers(-3, 9)] * 3), st.tuples(*[st.integers(1, 12)] * 3))
def test_crops_and_pads_are_exact(seed: int, offset: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(seed).random((1, 6, 5, 7)).astype(np.float32)
    image = Image(pixels, Geometry((6, 5, 7), tilted_affine(seed=seed)))
    moved = resample_onto(image, image.geometry.moved(offset, shape), fill=-7)
    padded = np.full((1, 30, 30, 30), -7, np.float32)
    padded[:, 9:15, 9:14, 9:16] = pixels
    s, r, w = (slice(9 + o, 9 + o + n) for o, n in zip(offset, shape, strict=True))
    np.testing.assert_array_equal(moved.pixels, padded[:, s, r, w])


@settings(deadline=None)
@given(st.integers(0, 30))
def test_a_linear_ramp_survives_finer_and_tilted_grids(seed: int) -> None:
    image = smooth(Geometry((9, 10, 11), tilted_affine((1.0, 1.2, 0.9), seed=seed)))
    centre = image.geometry.world((4, 4.5, 5))
    affine = tilted_affine((0.4, 0.5, 0.3), seed=seed + 100)
    affine[:3, 3] += centre - Geometry((6, 5, 7), affine).world((2.5, 2, 3))
    target = Geometry((6, 5, 7), affine)
    np.testing.assert_allclose(resample_onto(image, target).pixels, smooth(target).pixels, atol=2e-3)


def test_no_voxel_is_lost_at_the_border_by_rounding() -> None:
    image = Image(np.ones((1, 6, 7, 8), np.float32), Geometry((6, 7, 8), tilted_affine((1.1, 0.7, 0.9))))
    affine = image.geometry.affine.copy()
    affine[:3, 3] += 1e-3 * np.array([0.7, -0.8, 0.9])  # more than rounding: goes through interpolation
    affine[:3, 0] *= 1 + 1e-4
    result = resample_onto(image, Geometry((6, 7, 8), affine), fill=0)
    np.testing.assert_allclose(result.pixels, 1)


def test_outside_is_filled() -> None:
    image = smooth(Geometry((4, 4, 4), np.diag([1.0, 1, 1, 1])))
    affine = np.diag([0.5, 1, 1, 1])
    affine[0, 3] = -3
    far = resample_onto(image, Geometry((4, 4, 4), affine), fill=-99)
    assert (far.pixels == -99).all()


def test_coarser_grids_are_smoothed_first() -> None:
    checker = np.indices((8, 32, 32)).sum(0) % 2
    image = Image(checker[None].astype(np.float32), Geometry((8, 32, 32), np.eye(4)))
    coarse = resample_onto(image, standard_grid(image.geometry, orientation=None, spacing_mm=(4, 4, 4)))
    # without smoothing a checkerboard aliases to its extremes; its true mean is one half
    np.testing.assert_allclose(coarse.pixels, 0.5, atol=0.1)


@given(st.tuples(*[st.floats(0.3, 4)] * 3))
def test_a_standard_grid_covers_the_old_one(spacing: tuple[float, float, float]) -> None:
    geometry = Geometry((5, 9, 4), tilted_affine((2.5, 0.8, 1.1)))
    grid = standard_grid(geometry, orientation="SPL", spacing_mm=spacing)
    assert grid.spacing_mm == pytest.approx(spacing)
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in geometry.shape])).reshape(3, -1).T
    at = grid.index(geometry.world(corners))
    assert (at >= -0.501).all() and (at <= np.array(grid.shape) - 0.499).all()


def test_labels_stay_labels() -> None:
    labels = np.random.default_rng(0).choice([0, 3, 200], (1, 6, 7, 8)).astype(np.uint8)
    image = Image(labels, Geometry((6, 7, 8), tilted_affine()))
    grid = standard_grid(image.geometry, orientation="RAS", spacing_mm=(0.7, 1.3, 0.9))
    there = resample_onto(image, grid, labels=True)
    assert there.pixels.dtype == np.uint8 and set(np.unique(there.pixels)) <= {0, 3, 200}
    finer = standard_grid(image.geometry, orientation=None, spacing_mm=tuple(s / 3 for s in image.geometry.spacing_mm))
    back = resample_onto(resample_onto(image, finer, labels=True), image.geometry, labels=True)
    np.testing.assert_array_equal(back.pixels, labels)


def test_pixels_and_millimetres_do_not_mix(tilted_volume: Image) -> None:
    with pytest.raises(GeometryError, match="unknown"):
        resample_onto(Image.from_picture(np.zeros((4, 4))), tilted_volume.geometry)
