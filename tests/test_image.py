"""Geometry and Image: valid if they exist, and indices and world agree."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medae.errors import GeometryError, UnreadableImage
from medae.image import Geometry, Image
from tests.conftest import tilted_affine

sizes = st.integers(1, 9)


@given(st.tuples(sizes, sizes, sizes), st.integers(0, 50))
def test_index_undoes_world(shape: tuple[int, int, int], seed: int) -> None:
    geometry = Geometry(shape, tilted_affine(seed=seed))
    at = np.random.default_rng(seed).uniform(-5, 20, (4, 3))
    np.testing.assert_allclose(geometry.index(geometry.world(at)), at, atol=1e-9)


def test_spacing_is_the_distance_of_neighbours() -> None:
    geometry = Geometry((4, 5, 6), tilted_affine((2.5, 0.8, 1.1)))
    for axis, spacing in enumerate(geometry.spacing_mm):
        step = np.eye(3)[axis]
        assert np.linalg.norm(geometry.world(step) - geometry.world((0, 0, 0))) == pytest.approx(spacing)
    assert geometry.spacing_mm == pytest.approx((2.5, 0.8, 1.1))


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("signs", list(product((-1, 1), repeat=3)))
def test_axis_codes_name_the_direction_of_each_axis(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = np.eye(4)
    for axis, (world, sign) in enumerate(zip(order, signs, strict=True)):
        affine[world, axis] = sign * (axis + 1)
    expected = "".join(("LR", "PA", "IS")[world][sign > 0] for world, sign in zip(order, signs, strict=True))
    assert Geometry((2, 2, 2), affine).axis_codes == expected


def test_moved_keeps_voxels_where_they_are(tilted_volume: Image) -> None:
    moved = tilted_volume.geometry.moved((2, -1, 3), (2, 12, 4))
    np.testing.assert_allclose(moved.world((0, 0, 0)), tilted_volume.geometry.world((2, -1, 3)))
    assert moved.spacing == pytest.approx(tilted_volume.geometry.spacing)


@pytest.mark.parametrize(
    ("shape", "affine", "said"),
    [
        ((0, 2, 2), np.eye(4), "at least one voxel"),
        ((2, 2, 2), np.diag([0.0, 1, 1, 1]), "size along each axis"),
        ((2, 2, 2), np.full((4, 4), np.nan), "finite"),
        ((2, 2, 2), np.eye(3), "4x4"),
        ((2, 2, 2), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        ((2, 2, 2), np.array([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 1]]), "projection"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(shape: tuple[int, int, int], affine: np.ndarray, said: str) -> None:
    with pytest.raises(GeometryError, match=said):
        Geometry(shape, affine)


def test_a_picture_of_unknown_size_has_no_millimetres() -> None:
    picture = Image.from_picture(np.zeros((3, 4), np.uint8))
    assert picture.geometry.spacing == (1, 1, 1)
    with pytest.raises(GeometryError, match="unknown"):
        _ = picture.geometry.spacing_mm
    sized = Image.from_picture(np.zeros((3, 4), np.uint8), spacing_mm=(0.5, 0.25))
    assert sized.geometry.spacing_mm[1:] == (0.5, 0.25)


def test_pixels_and_grid_must_agree(tilted_volume: Image) -> None:
    with pytest.raises(GeometryError, match="on a grid of"):
        Image(np.zeros((1, 7, 9, 10)), tilted_volume.geometry)
    with pytest.raises(UnreadableImage, match="numbers"):
        Image(np.full((1, 7, 9, 11), "a"), tilted_volume.geometry)


def test_an_image_is_never_changed_in_place(tilted_volume: Image) -> None:
    with pytest.raises(ValueError, match="read-only"):
        tilted_volume.pixels[0, 0, 0, 0] = 1


def test_grids_a_hair_apart_are_the_same_and_a_voxel_apart_are_not(tilted_volume: Image) -> None:
    grid = tilted_volume.geometry
    grid.require_same_grid(grid.moved((1e-5, 0, 0), grid.shape))
    with pytest.raises(GeometryError, match="Resample"):
        grid.require_same_grid(grid.moved((0, 0, 1), grid.shape))
    with pytest.raises(GeometryError, match="grids differ"):
        grid.require_same_grid(grid.moved((0, 0, 0), (7, 9, 12)))
