"""Detection of anomalous images, and of the anomalous voxels in them, by a score: higher is more anomalous."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

NORMAL = "normal"
"""The label of a case that shows nothing abnormal."""

PRO_LIMIT = 0.3
"""The false-positive rate up to which per-region overlap is integrated (Bergmann 2021, MVTec AD)."""

DRAWS = 1000
_CHUNK = 2**22
"""Numbers of one piece of a bootstrap: 32 MB."""


class Interval(NamedTuple):
    """Of 95 per cent, unless it says otherwise."""

    low: float
    high: float


def auroc(scores: ArrayLike, anomalous: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Area under the ROC curve: how often an anomalous image scores above a normal one; ties count half.

    Not a number unless both kinds are present.
    """
    from scipy.stats import rankdata

    truth = np.asarray(anomalous, bool)
    positive = int(truth.sum())
    negative = len(truth) - positive
    if not positive or not negative:
        return float("nan")
    ranks = rankdata(np.asarray(scores, float))
    return float((ranks[truth].sum() - positive * (positive + 1) / 2) / (positive * negative))


def average_precision(scores: ArrayLike, anomalous: Sequence[bool] | NDArray[np.bool_]) -> float:
    """Average precision; its value by chance is the share of anomalous images. Not a number unless both are present."""
    truth = np.asarray(anomalous, bool)
    if truth.all() or not truth.any():
        return float("nan")
    return _Sorted.of(np.asarray(scores, float), truth).average_precision


def fpr_at_tpr(scores: ArrayLike, anomalous: Sequence[bool] | NDArray[np.bool_], least: float = 0.95) -> float:
    """The lowest share of normal images that are called anomalous where at least `least` of the anomalous ones are.

    Not a number unless both kinds are present.
    """
    truth = np.asarray(anomalous, bool)
    if truth.all() or not truth.any():
        return float("nan")
    curve = _Sorted.of(np.asarray(scores, float), truth)
    enough = int(np.argmax(curve.found >= least * truth.sum() - 1e-9))
    return float((curve.called[enough] - curve.found[enough]) / np.count_nonzero(~truth))


def bootstrap_auroc(
    scores: ArrayLike,
    anomalous: Sequence[bool] | NDArray[np.bool_],
    groups: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """95 % interval of the AUROC, by drawing groups (patients, slides; None: images) with replacement.

    Draws without both kinds of image do not count; not numbers where no draw has both.
    """
    return _middle(_drawn([scores], anomalous, groups, draws, seed)[0])


def bootstrap_gain(
    scores: ArrayLike,
    others: ArrayLike,
    anomalous: Sequence[bool] | NDArray[np.bool_],
    groups: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """95 % interval of how much higher the AUROC of `scores` is than that of `others`, the same images in each draw of
    both. As `bootstrap_auroc`."""
    ours, theirs = _drawn([scores, others], anomalous, groups, draws, seed)
    return _middle(ours - theirs)


def _middle(drawn: NDArray[np.float64]) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        return Interval(float("nan"), float("nan"))
    return Interval(*np.quantile(drawn, (0.025, 0.975)).tolist())


def _drawn(
    every: Sequence[ArrayLike],
    anomalous: Sequence[bool] | NDArray[np.bool_],
    groups: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> list[NDArray[np.float64]]:
    """Of each list of scores its AUROC in each draw."""
    truth = np.asarray(anomalous, bool)
    names = {group: number for number, group in enumerate(dict.fromkeys(groups or range(len(truth))))}
    member = np.array([names[group] for group in (groups or range(len(truth)))])
    rng = np.random.default_rng(seed)
    found: list[list[NDArray[np.float64]]] = []
    for start in range(0, draws, step := max(1, _CHUNK // max(len(truth), 1))):
        count = min(step, draws - start)
        times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=count)[:, member]
        found.append([_weighted_auroc(np.asarray(scores, float), truth, times) for scores in every])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _weighted_auroc(
    scores: NDArray[np.float64], truth: NDArray[np.bool_], weights: NDArray[np.int64]
) -> NDArray[np.float64]:
    """weights (draws, images), how often each image is there -> an AUROC for each draw."""
    levels, level = np.unique(scores, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    ordered = weights[:, order].astype(np.float64)
    positive = np.add.reduceat(ordered * truth[order], starts, axis=1)
    negative = np.add.reduceat(ordered * ~truth[order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    pairs = (positive * (below + 0.5 * negative)).sum(1)
    with np.errstate(invalid="ignore"):
        result: NDArray[np.float64] = pairs / (positive.sum(1) * negative.sum(1))
    return result


@dataclass(frozen=True)
class VoxelDetection:
    """How well a map finds the anomalous voxels of a set of images."""

    average_precision: float
    per_region_overlap: float
    """Area under the mean overlap of a region over the false-positive rate, up to PRO_LIMIT, by PRO_LIMIT."""
    ceil_dice: float
    """Dice at the threshold that is best for these very images: an oracle, never what a user gets."""


def voxel_detection(
    scores: NDArray[np.floating], regions: NDArray[np.integer], limit: float = PRO_LIMIT
) -> VoxelDetection:
    """scores: of all voxels of all images, flat; regions: 0 for a normal voxel, else the number of its region, which no
    two regions of the set share. One sort. Not numbers unless there are both kinds of voxel."""
    truth = regions > 0
    if truth.all() or not truth.any():
        return VoxelDetection(float("nan"), float("nan"), float("nan"))
    curve = _Sorted.of(scores, truth)
    sizes = np.bincount(regions)
    share = np.zeros(len(sizes))
    there = np.flatnonzero(sizes[1:]) + 1
    share[there] = 1 / (sizes[there] * len(there))
    overlap = np.cumsum(share[regions[curve.order]])[curve.ends]
    false = (curve.called - curve.found) / np.count_nonzero(~truth)
    dice = 2 * curve.found / (curve.called + truth.sum())
    return VoxelDetection(curve.average_precision, _area(false, overlap, limit) / limit, float(dice.max()))


def _area(x: NDArray[np.float64], y: NDArray[np.float64], limit: float) -> float:
    """Under the line from (0, 0) through the points, up to x = limit."""
    x, y = np.concatenate([[0.0], x]), np.concatenate([[0.0], y])
    inside = int(np.searchsorted(x, limit))
    there = inside < len(x) and x[inside] == limit  # the line may rise upright there, which has no width
    last = y[inside] if there else np.interp(limit, x, y)
    return float(np.trapezoid(np.append(y[:inside], last), np.append(x[:inside], limit)))


@dataclass(frozen=True, eq=False)
class _Sorted:
    """What lowering a threshold over all scores finds, step by step; equal scores are one step."""

    order: NDArray[np.intp]
    ends: NDArray[np.intp]
    """The last of each step, in that order."""
    found: NDArray[np.float64]
    """Anomalous ones so far, at the end of each step."""
    called: NDArray[np.float64]
    """All so far."""

    @classmethod
    def of(cls, scores: NDArray[np.floating], truth: NDArray[np.bool_]) -> "_Sorted":
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        found = np.cumsum(truth[order], dtype=np.int64)[ends].astype(np.float64)
        return cls(order, ends, found, (ends + 1).astype(np.float64))

    @property
    def average_precision(self) -> float:
        recall = self.found / self.found[-1]
        return float((np.diff(recall, prepend=0.0) * self.found / self.called).sum())
