"""The median filter of maps: the numbers of scipy's, whatever the shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from medae.scores.median import _run, median_filter, middle_of_square, sorting

SIDES = st.sampled_from([3, 5, 7, 9])
MAPS = arrays(
    st.sampled_from([np.float32, np.float64]),
    array_shapes(min_dims=2, max_dims=4, max_side=11),
    elements=st.floats(-4, 4, width=16),
)


def by_scipy(values, side: int):
    return ndimage.median_filter(values, (*[1] * (values.ndim - 2), side, side), mode="nearest")


@given(MAPS, SIDES)
def test_the_median_is_that_of_scipy_to_the_bit_also_in_volumes_and_windows_larger_than_the_image(values, side) -> None:
    found = median_filter(values, side)
    assert found.dtype == values.dtype
    assert np.array_equal(found, by_scipy(values, side))


@pytest.mark.parametrize("side", [3, 5, 31])
def test_blocks_of_rows_and_other_orders_in_memory_change_nothing(side, monkeypatch) -> None:
    values = np.random.default_rng(side).standard_normal((1, 2, 37, 53), np.float32)
    expected = by_scipy(values, side)
    monkeypatch.setattr("medae.scores.median.BLOCK", 500)  # nine rows, and one left over
    assert np.array_equal(median_filter(values, side), expected)
    assert np.array_equal(median_filter(np.asfortranarray(values), side), expected)
    assert np.array_equal(median_filter(np.flip(values, (1, 3)), side), np.flip(expected, (1, 3)))


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=40))
def test_the_network_sorts_any_number_of_wires(values) -> None:
    wires = [np.array([value]) for value in values]
    _run(wires, sorting(len(wires)))
    assert [wire[0] for wire in wires] == sorted(values)


def test_comparisons_that_the_middle_does_not_need_are_left_out() -> None:
    assert len(middle_of_square(3)[0]) == 11  # of 12: three rows, and the diagonal
    assert len(sorting(3)) == 3
    assert len(sorting(5)) == 9  # the fewest there can be


def test_a_value_that_is_no_number_is_never_hidden_and_the_input_is_left_alone() -> None:
    values = np.random.default_rng(0).standard_normal((1, 1, 12, 12), np.float32)
    values[0, 0, 5, 6] = np.nan
    kept = values.copy()
    found = median_filter(values, 5)
    near = np.zeros((12, 12), bool)
    near[3:8, 4:9] = True
    assert np.array_equal(np.isnan(found[0, 0]), near)
    assert np.array_equal(values, kept, equal_nan=True)
