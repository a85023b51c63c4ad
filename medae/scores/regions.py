"""Where a map is anomalous: its connected parts above a level, and how large they are."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Region(NamedTuple):
    """One connected part of a map; parts touch by faces."""

    voxels: int
    peak: float
    """The highest value in it."""
    centre: tuple[float, ...]
    """(slice, row, column) of the middle of its voxels, each weighing what its value is."""


def regions(map_SRW: NDArray[Any], level: float) -> list[Region]:
    """The parts above `level`, largest first."""
    from scipy.ndimage import center_of_mass, label, maximum

    parts, count = label(map_SRW > level)
    if count == 0:
        return []
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    peaks = maximum(map_SRW, parts, numbers)
    centres = center_of_mass(map_SRW, parts, numbers)
    found = [
        Region(int(size), float(peak), tuple(float(at) for at in centre))
        for size, peak, centre in zip(sizes, peaks, centres, strict=True)
    ]
    return sorted(found, key=lambda region: -region.voxels)
