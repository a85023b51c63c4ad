"""Median filter of maps by a sorting network over shifted planes: the numbers of `scipy.ndimage.median_filter`, sooner.

A plane holds one of the window's voxels for many places, so that comparing two voxels everywhere is one minimum and one
maximum. Each column of the window is sorted once for all windows it lies in. Then rows, and of the sorted square only
what can be in the middle (Paeth 1990, "Median finding on a 3 x 3 grid", Graphics Gems); comparisons on which the middle
does not depend are left out.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 2**14
"""Voxels of a plane at a time: the planes of a window then stay in the processor's cache."""


class Exchange(NamedTuple):
    """Of two wires; the lower value is left on the first."""

    first: int
    second: int
    low: bool = True
    high: bool = True
    """Which of both values is needed afterwards."""


def median_filter(values: NDArray[Any], side: int) -> NDArray[Any]:
    """(..., rows, columns) -> the median of the side x side voxels around each; beyond the border lies the last voxel.

    side: odd. Where a window holds a value that is no number, so does the answer.
    """
    *others, rows, columns = values.shape
    planes = values.reshape(-1, rows, columns)
    found = np.empty_like(planes, order="C")
    reach, height = side // 2, max(1, BLOCK // columns)
    for plane, filtered in zip(planes, found, strict=True):
        padded = np.pad(plane, reach, mode="edge")
        for start in range(0, rows, height):
            block = filtered[start : start + height]
            block[:] = _medians(padded[start : start + len(block) + 2 * reach], side)
    return found.reshape(*others, rows, columns)


def _medians(padded: NDArray[Any], side: int) -> NDArray[Any]:
    """Of every window that lies within."""
    rows, columns = (length - side + 1 for length in padded.shape)
    wires = [padded[row : row + rows].copy() for row in range(side)]
    _run(wires, sorting(side))
    square = [wire[:, column : column + columns].copy() for wire in wires for column in range(side)]
    exchanges, middle = middle_of_square(side)
    _run(square, exchanges)
    return square[middle]


def _run(wires: list[NDArray[Any]], exchanges: Sequence[Exchange]) -> None:
    """In place; the memory of a value that is not needed takes up the next."""
    spare = np.empty_like(wires[0])
    for first, second, low, high in exchanges:
        one, other = wires[first], wires[second]
        if low and high:
            np.minimum(one, other, out=spare)
            np.maximum(one, other, out=other)
            wires[first], spare = spare, one
        elif low:
            np.minimum(one, other, out=one)
        else:
            np.maximum(one, other, out=other)


@lru_cache(maxsize=8)
def sorting(count: int) -> tuple[Exchange, ...]:
    """Sorts so many wires, ascending."""
    return tuple(Exchange(*pair) for pair in _merge_exchange(count))


@lru_cache(maxsize=8)
def middle_of_square(side: int) -> tuple[tuple[Exchange, ...], int]:
    """Of side x side wires, row by row, the columns of which are sorted: the exchanges, and the wire of the median."""
    half = side * side // 2
    rows = [(row * side + one, row * side + other) for row in range(side) for one, other in _merge_exchange(side)]
    # once both are sorted, (row + 1) x (column + 1) - 1 values are at most as high as the one there, and as many
    # as on the other side at least as high: too many of either, and it is not in the middle
    likely = [
        row * side + column
        for row in range(side)
        for column in range(side)
        if (row + 1) * (column + 1) - 1 <= half and (side - row) * (side - column) - 1 <= half
    ]
    rest = [(likely[one], likely[other]) for one, other in _merge_exchange(len(likely))]
    middle = likely[len(likely) // 2]
    return _needed([*rows, *rest], middle), middle


def _needed(pairs: Sequence[tuple[int, int]], wire: int) -> tuple[Exchange, ...]:
    """Those that the value on one wire depends on."""
    needed, kept = {wire}, []
    for first, second in reversed(pairs):
        low, high = first in needed, second in needed
        if low or high:
            kept.append(Exchange(first, second, low, high))
            needed |= {first, second}
    return tuple(reversed(kept))


def _merge_exchange(count: int) -> Iterator[tuple[int, int]]:
    """Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M)."""
    top = 1 << max(count - 1, 0).bit_length() >> 1
    step = top
    while step:
        offset, distance, apart = 0, step, top
        while True:
            for at in range(count - distance):
                if at & step == offset:
                    yield at, at + distance
            if apart == step:
                break
            distance, apart, offset = apart - step, apart >> 1, step
        step >>= 1
