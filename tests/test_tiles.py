"""Tiles: cores cover every voxel once, saw all they needed, and stitching them changes nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medae.tiles import BlendStitcher, CoreStitcher, ReceptiveField, batches, plan_tiles, read_tile

lengths = st.integers(1, 90)
fields = st.builds(
    ReceptiveField,
    dims=st.sampled_from([2, 3]),
    stride=st.sampled_from([1, 2, 4, 8]),
    radius=st.integers(0, 20),
    tileable=st.booleans(),
)
shapes = st.tuples(st.integers(1, 12), lengths, lengths)


@settings(deadline=None)
@given(shapes, fields, st.integers(64, 5000))
def test_cut_then_stitch_changes_nothing(shape: tuple[int, int, int], field: ReceptiveField, most: int) -> None:
    pixels = np.random.default_rng(0).random((2, *shape), np.float32)
    plan = plan_tiles(shape, field, most)
    stitcher = BlendStitcher(plan, 2) if plan.blend else CoreStitcher(plan)
    for tile in plan.tiles:
        stitcher.write(tile, read_tile(pixels, tile.window))
    result = stitcher.result()
    if plan.blend:
        np.testing.assert_allclose(result, pixels, rtol=1e-5)
    else:
        np.testing.assert_array_equal(result, pixels)


@settings(deadline=None)
@given(shapes, fields, st.integers(64, 5000))
def test_cores_cover_once_and_keep_their_halo(shape: tuple[int, int, int], field: ReceptiveField, most: int) -> None:
    plan = plan_tiles(shape, field, most)
    seen = np.zeros(plan.padded, int)
    strides = (field.stride if field.dims == 3 else 1, field.stride, field.stride)
    for tile in plan.tiles:
        seen[tile.core] += 1
        for axis, (core, window, length) in enumerate(zip(tile.core, tile.window, plan.padded, strict=True)):
            assert window.stop - window.start == plan.shape[axis]
            assert window.start % strides[axis] == 0, "tiles start on a stride"
            if field.tileable and not (field.dims == 2 and axis == 0):
                assert window.start == 0 or core.start - window.start >= field.radius
                assert window.stop == length or window.stop - core.stop >= field.radius
    assert (seen == 1).all()


def test_a_tile_is_no_larger_than_asked_where_that_is_possible() -> None:
    field = ReceptiveField(dims=2, stride=16, radius=90)
    plan = plan_tiles((1, 3000, 5000), field, 600 * 600)
    assert np.prod(plan.shape) <= 600 * 600
    smallest = plan_tiles((1, 3000, 5000), field, 100)  # less than two halos and a stride: cannot be
    assert smallest.shape[1] < 600


def test_the_planned_voxels_of_a_large_picture_are_near_its_own() -> None:
    plan = plan_tiles((1, 2048, 2048), ReceptiveField(dims=2, stride=16, radius=96))
    assert plan.voxels <= 1.35 * 2048 * 2048


def test_without_a_finite_radius_the_image_is_whole_or_blended() -> None:
    field = ReceptiveField(dims=3, stride=4, radius=3, tileable=False)
    whole = plan_tiles((20, 30, 40), field, 10**9)
    assert (len(whole.tiles), whole.blend) == (1, 0)
    cut = plan_tiles((20, 200, 200), field, 200_000)
    assert len(cut.tiles) > 1 and cut.blend > 0


def test_batches_keep_the_order_of_the_tiles() -> None:
    plan = plan_tiles((5, 8, 8), ReceptiveField(dims=2, stride=1, radius=0), 64)
    assert sum(batches(plan, 2), ()) == plan.tiles
    assert [len(part) for part in batches(plan, 2)] == [2, 2, 1]


def test_beyond_the_far_edge_the_image_is_mirrored() -> None:
    pixels = np.arange(5.0).reshape(1, 1, 1, 5)
    tile = read_tile(pixels, (slice(0, 1), slice(0, 1), slice(0, 8)))
    np.testing.assert_array_equal(tile.ravel(), [0, 1, 2, 3, 4, 3, 2, 1])


@pytest.mark.parametrize(("radius", "stride", "halo"), [(0, 8, 0), (1, 8, 8), (16, 8, 16), (17, 4, 20)])
def test_halo_is_the_radius_in_whole_strides(radius: int, stride: int, halo: int) -> None:
    assert ReceptiveField(dims=2, stride=stride, radius=radius).halo == halo
