"""Simple statistics of the image taken together: what no reconstruction tells, such as lost sharpness."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from medae.scores.base import Found, Score
from medae.scores.baselines import SHRINKAGE, Gaussian, nearest, outlier_factor, whitening_of

DARKEST = 1 / 256
"""No light at all would have an infinite optical density."""
STEADY = 0.01
"""What is the same in all normal images, such as no constant line in any, is taken to vary so much."""
LEAST = 1e-6
"""Of a score, before its logarithm is taken."""
SAME = 1e-4
"""Standard deviations: a normal image whose own numbers are nearer than this is the image itself."""


class StatisticScore(Score, ABC):
    """How far some numbers of an image are from those of normal images; unlike in either direction is far away."""

    fits: ClassVar[bool] = True

    by: Literal["mahalanobis", "neighbours"] = "mahalanobis"
    """Squared Mahalanobis distance by how many numbers there are (1 is usual), or the mean distance to the nearest
    normal images, each number in units of its standard deviation. An image among these is scored as if it had not
    been (leave-one-out), so that ranks and references of normal images are those of new ones."""
    count: PositiveInt = 5
    """How many neighbours."""
    whiten: bool = False
    """Of neighbours: distances along the directions in which normal images vary, each in its own units."""
    relative: bool = False
    """Of neighbours: distances by those of the neighbours to theirs: a kind of image that is rare or varied among
    normal ones is no anomaly. The local outlier factor (Breunig 2000, https://doi.org/10.1145/342009.335388) of plain
    distances: without its reachability, which smooths them where neighbours are near."""
    members: tuple[str, ...] = ()
    """Names of single scores whose logarithms are numbers of the image, too: one distance for all of them."""

    @property
    def after(self) -> tuple[str, ...]:
        return self.members

    def default_name(self) -> str:
        return self.kind

    @model_validator(mode="after")
    def _of_neighbours(self) -> Self:
        if self.by != "neighbours" and (self.whiten or self.relative):
            raise ValueError("whiten and relative are of neighbours; say by: neighbours")
        return self

    def value(self, found: Found) -> float:
        parts = found.parts(self.key)
        row = self._row(found.pixels, found.values)
        away = (row - parts["mean"]) / parts["deviation"]
        if self.by == "neighbours":
            return self._from_nearest(away, parts["rows"].astype(np.float64), STEADY / parts["deviation"])
        return float(np.square(parts["whitening"] @ away).mean())

    def _from_nearest(self, away: NDArray[np.float64], rows: NDArray[np.float64], steady: NDArray[np.float64]) -> float:
        """away, rows: in the units of the fit, which are made anew of the rows that are not the image itself.

        That is told by its own numbers: what a network says of it may differ in its last digits.
        """
        own = len(away) - len(self.members)
        others = rows[np.abs(rows[:, :own] - away[:own]).max(1) > SAME]
        if not len(others):
            return 0.0
        mean, deviation = others.mean(0), np.maximum(others.std(0), steady)
        others, away = (others - mean) / deviation, (away - mean) / deviation
        if self.whiten:
            whitening = whitening_of(others, SHRINKAGE)
            others, away = others @ whitening.T, whitening @ away
        return (outlier_factor if self.relative else nearest)(away, others, self.count)

    def fit(
        self, images: Sequence[NDArray[Any]], values: Sequence[Mapping[str, float]] = ()
    ) -> dict[str, NDArray[Any]]:
        """What is kept of normal images (C, S, R, W), of which the members' values are known."""
        known = values or [{}] * len(images)
        gaussian = Gaussian.fit(np.stack([self._row(*each) for each in zip(images, known, strict=True)]), STEADY)
        kept = {"mean": gaussian.mean, "deviation": gaussian.deviation}
        return kept | ({"rows": gaussian.rows} if self.by == "neighbours" else {"whitening": gaussian.whitening})

    def _row(self, pixels_CSRW: NDArray[Any], values: Mapping[str, float]) -> NDArray[np.float64]:
        logarithms = [np.log(max(values[name], LEAST)) for name in self.members]
        return np.concatenate([self.of_image(pixels_CSRW), logarithms])

    @abstractmethod
    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The numbers."""


class Statistics(StatisticScore):
    """Per channel the logarithms of the energy of the Laplacian and of the gradient at each scale and, unless they do
    not count, the mean and the logarithm of the standard deviation.
    """

    kind: Literal["statistics"] = "statistics"
    scales: int = Field(default=3, ge=1, le=6)
    """Each halves the resolution."""
    intensity: bool = True
    """Whether mean and standard deviation count."""
    colour: bool = False
    """Whether, of RGB, the energies of red less green and of blue less green count too: compression takes colour away
    first."""
    optical_density: bool = False
    """Of slides in bright field, in 0..1: the amount of stain, -log of the light, instead of the light itself."""

    @property
    def of_light(self) -> bool:
        return self.optical_density

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """The statistics, channel by channel."""
        values = np.asarray(pixels_CSRW, np.float32)
        rows = self._energies(values[::2] - values[1:2]) if self.colour and len(values) == 3 else []
        if self.optical_density:
            values = densities(values)
        if self.intensity:
            count = values[0].size
            mean = values.sum(-1).sum((1, 2), dtype=np.float64) / count
            variance = np.maximum(_squares(values) / count - mean**2, 0)
            rows += [mean, np.log(np.sqrt(variance) + 1e-4)]
        return np.concatenate(rows + self._energies(values)).astype(np.float64)

    def _energies(self, values: NDArray[np.float32]) -> list[NDArray[np.float64]]:
        rows: list[NDArray[np.float64]] = []
        for scale in range(self.scales):
            rows += [0.5 * np.log(energy + 1e-8) for energy in _energies(values)]
            if scale + 1 < self.scales:
                values = _halved(values)
        return rows


class Profile(StatisticScore):
    """The mean in each ring around the middle, of the image at mean 0 and standard deviation 1: what it is centred on,
    whichever way it lies and however strongly it is stained."""

    kind: Literal["profile"] = "profile"
    rings: int = Field(default=5, ge=2, le=32)
    """All as wide, from the middle to the shorter side; the corners belong to the last."""
    smooth: NonNegativeFloat = 0.0
    """Standard deviation of a Gaussian blur before, in voxels, within slices."""
    of: Literal["grey", "haematoxylin"] = "grey"
    """The mean over channels, or the blue stain of nuclei (Ruifrok and Johnston 2001); that takes RGB."""

    @property
    def of_light(self) -> bool:
        return self.of == "haematoxylin"

    def of_image(self, pixels_CSRW: NDArray[Any]) -> NDArray[np.float64]:
        """Of the slices' mean."""
        from scipy.ndimage import gaussian_filter

        plane = self._plane(pixels_CSRW.mean(1, dtype=np.float64))
        if self.smooth:
            plane = gaussian_filter(plane, self.smooth, mode="reflect")
        plane = (plane - plane.mean()) / (plane.std() + 1e-3)
        rows, columns = plane.shape
        row, column = np.mgrid[:rows, :columns]
        distance = np.hypot(row - (rows - 1) / 2, column - (columns - 1) / 2)
        ring = np.minimum(distance * self.rings / (min(rows, columns) / 2), self.rings - 1).astype(int).ravel()
        sums = np.bincount(ring, plane.ravel(), minlength=self.rings)
        result: NDArray[np.float64] = sums / np.maximum(np.bincount(ring, minlength=self.rings), 1)
        return result

    def _plane(self, channels_CRW: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.of == "grey" or len(channels_CRW) != 3:
            grey: NDArray[np.float64] = channels_CRW.mean(0)
            return grey
        return haematoxylin(channels_CRW)


def haematoxylin(light: NDArray[Any]) -> NDArray[np.float64]:
    """(3, ...) RGB in 0..1 -> (...), at least 0: how much of the blue stain of nuclei (Ruifrok and Johnston 2001)."""
    from skimage.color import rgb2hed

    stain: NDArray[np.float64] = rgb2hed(np.clip(np.moveaxis(light, 0, -1), 0, 1))[..., 0]
    return stain


def densities(light: NDArray[Any]) -> NDArray[np.float32]:
    """Optical densities of what is 1 where nothing is in the way."""
    values: NDArray[np.float32] = np.maximum(light, 0, dtype=np.float32)
    values *= np.float32(1 - DARKEST)
    values += np.float32(DARKEST)
    np.negative(np.log(values, out=values), out=values)
    return values


def _energies(values: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean squares of the four neighbours' Laplacian and of the differences of neighbours, channel by channel."""
    sums = np.zeros((2, len(values)))
    for channel, volume in enumerate(values):
        for plane in volume:  # one after the other: they stay in the processor's cache
            down, right = plane[1:] - plane[:-1], plane[:, 1:] - plane[:, :-1]
            edges = laplacian_of(down, right)
            sums[0, channel] += product_sum(edges, edges)
            sums[1, channel] += product_sum(down, down) + product_sum(right, right)
    laplacian, gradient = sums / values[0].size
    return laplacian, gradient


def laplacian_of(down: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the four neighbours, from a plane's differences along columns and rows; edges are continued."""
    laplacian = np.empty((right.shape[0], down.shape[1]), np.float32)
    if len(down):
        laplacian[0] = down[0]
        np.subtract(down[1:], down[:-1], out=laplacian[1:-1])
        np.negative(down[-1], out=laplacian[-1])
    else:
        laplacian[:] = 0
    laplacian[:, :-1] += right
    laplacian[:, 1:] -= right
    return laplacian


def product_sum(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Of two arrays, voxel by voxel; of rows first, so that float32 is exact enough."""
    return float(np.einsum("...w,...w->...", one, other).sum(dtype=np.float64))


def _squares(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Their sum, channel by channel; of rows first, so that float32 is exact enough."""
    squares: NDArray[np.float64] = np.einsum("csrw,csrw->csr", values, values).sum((1, 2), dtype=np.float64)
    return squares


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Half as many rows and columns, each the mean of two; the last of an odd number is left out."""
    if min(values.shape[-2:]) < 2:
        return values
    rows, columns = (length // 2 * 2 for length in values.shape[-2:])
    kept = values[..., :rows, :columns]
    half = kept[..., ::2, :] + kept[..., 1::2, :]  # whole rows first: they lie together
    quarter: NDArray[np.float32] = half[..., ::2] + half[..., 1::2]
    quarter *= np.float32(0.25)
    return quarter
