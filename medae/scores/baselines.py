"""What needs no learning: the statistics and simple models that every anomaly score is shown beside.

A score that does not beat these has learnt nothing that a few lines of code do not know. Which sign of a statistic is
anomalous nobody knows beforehand, so label-free it counts in both directions: by its distance from normal images.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

STATISTICS = (
    "intensity_mean",
    "intensity_std",
    "intensity_q05",
    "intensity_q50",
    "intensity_q95",
    "sharpness",
    "compressed_bytes",
    "red",
    "green",
    "blue",
)
"""Single statistics by name; the colours only where there are three channels."""

JOINT = ("statistics_mahalanobis", "statistics_neighbours")
"""Of all statistics together, each in units of its standard deviation over normal images."""

THUMBNAIL = 32
"""Pixels along a side of the images that principal components are made of, at most."""
COMPONENTS = (16, 64)
SHRINKAGE = 0.05
"""Of the covariance of an image's numbers, towards equal variances."""
_NEIGHBOURS = 5
_NEIGHBOUR_COMPONENTS = 32
_SINGULAR = 1e-9
"""Of a covariance, so much at least: one of fewer rows than features has no inverse."""
_LEAST = 1e-4
"""Of a distance, in standard deviations."""

IMAGES = (
    *(f"pca_residual_{count}" for count in COMPONENTS),
    "pca_neighbours",
    "pca_neighbours_standardised",
)
"""Of small images: what so many principal components leave over; the distance to the five nearest in 32 components, as
they are and each image first brought to mean 0 and standard deviation 1."""

FITTED = (*JOINT, *IMAGES)
TWO_SIDED = "_two_sided"
"""After the name of a statistic: its distance from normal images."""


def is_baseline(name: str) -> bool:
    """Whether that is the name of a baseline, and not of a score."""
    return name.removesuffix(TWO_SIDED) in STATISTICS or name in FITTED


def trivial_statistics(pixels_CSRW: NDArray[Any]) -> dict[str, float]:
    """What any script can measure, in the image's own units.

    Sharpness is the variance of the 4-neighbour Laplacian within slices; `compressed_bytes` the bytes that a voxel
    takes when differences along rows are deflated.
    """
    values = pixels_CSRW.astype(np.float64)
    low, middle, high = np.percentile(values, (5, 50, 95)).tolist()
    found = {
        "intensity_mean": float(values.mean()),
        "intensity_std": float(values.std()),
        "intensity_q05": low,
        "intensity_q50": middle,
        "intensity_q95": high,
        "sharpness": float(laplacian(values).var()),
        "compressed_bytes": _compressed(pixels_CSRW) / pixels_CSRW[0].size,
    }
    if len(values) == 3:
        found |= dict(zip(("red", "green", "blue"), values.mean((1, 2, 3)).tolist(), strict=True))
    return found


def laplacian(values_CSRW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the four neighbours within slices; edges are continued."""
    padded = np.pad(values_CSRW, ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    centre = padded[..., 1:-1, 1:-1]
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    result: NDArray[np.float64] = around - 4 * centre
    return result


def _compressed(pixels_CSRW: NDArray[Any]) -> int:
    """As PNG does it: differences of neighbours, deflated. Real numbers are first cut to 8 bits of their range."""
    if pixels_CSRW.dtype.kind == "f":
        low, high = float(pixels_CSRW.min()), float(pixels_CSRW.max())
        pixels_CSRW = np.rint((pixels_CSRW - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)
    differences = np.diff(pixels_CSRW, axis=-1, prepend=pixels_CSRW.dtype.type(0))
    return len(zlib.compress(differences.tobytes(), 6))


@dataclass(frozen=True, eq=False)
class Baselines:
    """The simple models, fitted on normal images."""

    statistics: "Gaussian"
    images: "Components | None"
    """None where normal images are not of one size."""

    @classmethod
    def fit(cls, images: Sequence[NDArray[Any]]) -> Self:
        """On normal images (C, S, R, W), at least two."""
        rows = [list(trivial_statistics(image).values()) for image in images]
        small = [thumbnail(image) for image in images]
        same = len({values.size for values in small}) == 1
        return cls(Gaussian.fit(np.array(rows)), Components.fit(np.stack(small)) if same else None)

    def __call__(self, image: NDArray[Any], statistics: Mapping[str, float]) -> dict[str, float]:
        """Every fitted baseline of one image (C, S, R, W), whose statistics are known already."""
        row = np.array(list(statistics.values()))
        found = dict(zip(JOINT, (self.statistics.distance(row), self.statistics.nearest(row)), strict=True))
        small = thumbnail(image)
        if self.images is not None and small.size == self.images.mean.size:
            found |= self.images(small)
        return found

    def two_sided(self, statistics: Mapping[str, float]) -> dict[str, float]:
        """Each statistic's distance from normal images, in standard deviations."""
        away = np.abs(self.statistics.scaled(np.array(list(statistics.values()))))
        return {f"{name}{TWO_SIDED}": float(value) for name, value in zip(statistics, away, strict=True)}


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Rows of numbers of normal images: where they lie together, and the rows themselves."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    whitening: NDArray[np.float64]
    rows: NDArray[np.float64]
    """In standard deviations."""

    @classmethod
    def fit(cls, rows: NDArray[np.float64], least: float = 1e-12) -> Self:
        """least: of a standard deviation."""
        mean, deviation = rows.mean(0), np.maximum(rows.std(0), least)
        scaled = (rows - mean) / deviation
        return cls(mean, deviation, whitening_of(scaled, SHRINKAGE), scaled)

    def scaled(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        """In standard deviations from the mean."""
        result: NDArray[np.float64] = (row - self.mean) / self.deviation
        return result

    def distance(self, row: NDArray[np.float64]) -> float:
        """Squared Mahalanobis distance by the number of numbers: 1 is usual."""
        return float(np.square(self.whitening @ self.scaled(row)).mean())

    def nearest(self, row: NDArray[np.float64]) -> float:
        """Mean distance to the five nearest rows."""
        return nearest(self.scaled(row), self.rows, _NEIGHBOURS)


@dataclass(frozen=True, eq=False)
class Components:
    """Principal components of small normal images, and the images in the first of them."""

    mean: NDArray[np.float64]
    axes: NDArray[np.float64]
    """(components, values)"""
    places: NDArray[np.float64]
    standardised: "Components | None"
    """The same of images that were first brought to mean 0 and standard deviation 1."""

    @classmethod
    def fit(cls, images: NDArray[np.float64], *, standardise: bool = True) -> Self:
        again = cls.fit(standardised(images), standardise=False) if standardise else None
        mean = images.mean(0)
        # of few values and many images: the eigenvectors of the covariance
        _, vectors = np.linalg.eigh(np.cov((images - mean).T))
        found = min(max(COMPONENTS), len(images) - 1)  # what lies beyond says nothing of so few images
        axes = vectors[:, ::-1][:, :found].T
        return cls(mean, axes, (images - mean) @ axes[:_NEIGHBOUR_COMPONENTS].T, again)

    def __call__(self, image: NDArray[np.float64]) -> dict[str, float]:
        found = [self.residual(image, count) for count in COMPONENTS] + [self.nearest(image)]
        if self.standardised is not None:
            found.append(self.standardised.nearest(standardised(image)))
        return dict(zip(IMAGES, found, strict=True))

    def residual(self, image: NDArray[np.float64], count: int) -> float:
        """Mean square of what the first `count` components leave over."""
        away = image - self.mean
        axes = self.axes[:count]
        return float(np.square(away - (away @ axes.T) @ axes).mean())

    def nearest(self, image: NDArray[np.float64]) -> float:
        """Mean distance to the five nearest normal images."""
        return nearest((image - self.mean) @ self.axes[:_NEIGHBOUR_COMPONENTS].T, self.places, _NEIGHBOURS)


def thumbnail(image_CSRW: NDArray[Any]) -> NDArray[np.float64]:
    """The middle slice, at most THUMBNAIL pixels along each side, as one row of numbers."""
    from skimage.transform import resize

    plane = image_CSRW[:, image_CSRW.shape[1] // 2].astype(np.float64)
    size = (len(plane), *(min(length, THUMBNAIL) for length in plane.shape[1:]))
    small = plane if size == plane.shape else resize(plane, size, order=1, anti_aliasing=True, preserve_range=True)
    row: NDArray[np.float64] = small.ravel()
    return row


def standardised(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., values): each image to mean 0 and standard deviation 1; a flat one to 0."""
    centred = images - images.mean(-1, keepdims=True)
    result: NDArray[np.float64] = centred / np.maximum(centred.std(-1, keepdims=True), 1e-12)
    return result


def whitening_of(rows: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """(..., n, features), centred -> (..., features, features): W with W^T W = the inverse of their covariance.

    The covariance is shrunk towards equal variances by the part `shrinkage`.
    """
    count, width = rows.shape[-2:]
    covariance = np.swapaxes(rows, -1, -2) @ rows / max(count - 1, 1)
    level = np.trace(covariance, axis1=-2, axis2=-1)[..., None, None] / width
    least = max(shrinkage, _SINGULAR) * level + 1e-12
    shrunk = (1 - shrinkage) * covariance + least * np.eye(width)
    result: NDArray[np.float64] = np.linalg.inv(np.linalg.cholesky(shrunk))
    return result


def nearest(row: NDArray[np.float64], rows: NDArray[np.float64], count: int) -> float:
    """Mean distance to the `count` nearest rows."""
    squares = np.square(rows - row).sum(-1)
    count = min(count, len(squares))
    return float(np.sqrt(np.partition(squares, count - 1)[:count]).mean())


def outlier_factor(row: NDArray[np.float64], rows: NDArray[np.float64], count: int) -> float:
    """`nearest` by the mean of what it is for those rows themselves: 1 is as lonely as they are."""
    squares = np.square(rows - row).sum(-1)
    around = np.argsort(squares, kind="stable")[:count]
    theirs = [_lonely(rows[at], rows, count) for at in around]
    return nearest(row, rows, count) / max(float(np.mean(theirs)), _LEAST)


def _lonely(row: NDArray[np.float64], rows: NDArray[np.float64], count: int) -> float:
    """Of one of the rows, leaving out itself and what is equal."""
    others = rows[np.square(rows - row).sum(-1) > _LEAST**2]
    return nearest(row, others, count) if len(others) else _LEAST
