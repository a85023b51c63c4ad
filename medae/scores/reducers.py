"""From a map of anomaly to one number: a closed union by `kind`. Only the foreground counts, where there is one."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.settings import Settings

Inside = NDArray[np.bool_] | None


class Reducer(Settings, ABC):
    """(1, *spatial) -> a number."""

    kind: str

    @abstractmethod
    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        """inside: (*spatial), which voxels count; None: all."""


class Mean(Reducer):
    """How anomalous the image is on the whole."""

    kind: Literal["mean"] = "mean"

    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        return float(_counted(map_, inside).mean(dtype=np.float64))


class Max(Reducer):
    """The worst voxel; one bad pixel decides, so filter the map."""

    kind: Literal["max"] = "max"

    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        return float(_counted(map_, inside).max())


class TopPercent(Reducer):
    """The mean of the highest voxels: for what fills a part of the image."""

    kind: Literal["top_percent"] = "top_percent"
    percent: float = Field(default=5, gt=0, le=100)
    """How many per cent of the voxels."""

    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        values = _counted(map_, inside)
        count = max(1, round(values.size * self.percent / 100))
        highest = np.partition(values, values.size - count)[-count:]
        return float(highest.mean(dtype=np.float64))


class Quantile(Reducer):
    """The value that so many per cent of the voxels are below."""

    kind: Literal["quantile"] = "quantile"
    percent: float = Field(default=95, ge=0, le=100)

    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        return float(np.percentile(_counted(map_, inside), self.percent))


class LargestComponent(Reducer):
    """How much lies in one place: the sum over the largest connected part above a level, by the number of voxels."""

    kind: Literal["largest_component"] = "largest_component"
    level: float
    """In the map's own unit; parts touch by faces, in three dimensions where there are."""

    def __call__(self, map_: NDArray[Any], inside: Inside = None) -> float:
        from scipy.ndimage import label, sum_labels

        above = map_[0] > self.level if inside is None else (map_[0] > self.level) & inside
        parts, count = label(above)
        if count == 0:
            return 0.0
        largest = np.bincount(parts.ravel())[1:].argmax() + 1
        voxels = map_.size if inside is None else np.count_nonzero(inside)
        return float(sum_labels(map_[0].astype(np.float64), parts, largest) / voxels)


ReducerConfig = Annotated[Mean | Max | TopPercent | Quantile | LargestComponent, Field(discriminator="kind")]


def _counted(map_: NDArray[Any], inside: Inside) -> NDArray[Any]:
    return map_.ravel() if inside is None else map_[0][inside]
