"""How well an anomaly model detects, beside what needs no learning: plain data for metrics.json."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medae.image import Image
from medae.metrics.detection import (
    NORMAL,
    auroc,
    average_precision,
    bootstrap_auroc,
    fpr_at_tpr,
    voxel_detection,
)
from medae.scores.baselines import STATISTICS, Baselines, is_baseline, trivial_statistics

logger = logging.getLogger(__name__)

MOST_REFERENCES = 1000
"""So many normal training images are what baselines are fitted on."""
MOST_VOXELS = 2**24
"""Of all maps together; more are thinned evenly, which the metrics say."""


class Row(Protocol):
    """One case of the table."""

    @property
    def label(self) -> str | None: ...
    @property
    def values(self) -> Mapping[str, float]: ...
    @property
    def patient(self) -> str | None: ...


def baselines_from(images: Iterable[Image]) -> Baselines | None:
    """Fitted on normal images; None where there are too few of one kind."""
    pixels = [image.pixels for image in islice(images, MOST_REFERENCES)]
    same = [image for image in pixels if len(image) == len(pixels[0])]
    return Baselines.fit(same) if len(same) > 2 else None


def baseline_values(image: Image, fitted: Baselines | None) -> dict[str, float]:
    """Every statistic of one image and, where normal images are known, every simple model."""
    statistics = trivial_statistics(image.pixels)
    if fitted is None or len(statistics) != fitted.statistics.mean.size:
        return statistics
    return statistics | fitted.two_sided(statistics) | fitted(image.pixels, statistics)


def detection(keys: Sequence[str], rows: Sequence[Row]) -> dict[str, Any]:
    """How well each score, and each baseline, tells labelled abnormal cases from normal ones; for each label, too.

    `auroc` is for "higher is abnormal". For a single statistic nobody knows the sign beforehand, so `auroc_reversed`
    says the same for "lower is abnormal", and its row with `_two_sided` counts both. Intervals (95 %) are drawn over
    patients where these are known, else over images.
    """
    labelled = [row for row in rows if row.label is not None]
    kinds = sorted({str(row.label) for row in labelled} - {NORMAL})
    groups = {"all": labelled} | {kind: [row for row in labelled if row.label in (kind, NORMAL)] for kind in kinds}
    found: dict[str, Any] = {}
    for group, members in groups.items():
        abnormal = [row.label != NORMAL for row in members]
        found[group] = {"normal": abnormal.count(False), "abnormal": abnormal.count(True)}
        names = [*keys, *(name for name in _names(rows) if is_baseline(name))]
        for name in dict.fromkeys(names):
            found[group][name] = _detected_by(name, members, abnormal)
    for key in keys[:1]:
        overall = found["all"][key]["auroc"]
        if overall is not None and overall < 0.5:
            logger.warning("the score ranks abnormal images below normal ones (AUROC %.3f): do not use it", overall)
    return found


def verdict(keys: Sequence[str], found: Mapping[str, Any]) -> list[str]:
    """What a reader must not overlook: scores below chance, and baselines that do as well without learning."""
    said: list[str] = []
    key = keys[0]
    # where there is one kind of abnormal image, it is all of them
    for group, numbers in list(found.items())[1 if len(found) == 2 else 0 :]:
        what = "abnormal images" if group == "all" else group
        score = numbers[key]["auroc"]
        if score is None:
            continue
        if score < 0.5:
            said.append(f"The score ranks {what} below normal images (AUROC {score:.3g}): it cannot find them.")
        fair = {name: at["auroc"] for name, at in numbers.items() if isinstance(at, Mapping) and _label_free(name)}
        signed = {
            name: max(at["auroc"] or 0, at["auroc_reversed"] or 0)
            for name, at in numbers.items()
            if name in STATISTICS and at["auroc"] is not None
        }
        for kinds, how in ((fair, "without knowing any label"), (signed, "once its better sign is known")):
            best = max(kinds, key=lambda name: kinds[name] or 0, default=None)
            if best is not None and (kinds[best] or 0) >= score:
                said.append(
                    f"For {what} the trivial {best}, {how}, does as well as the score or better (AUROC"
                    f" {kinds[best]:.3g} and {score:.3g})."
                )
    return said


def _label_free(name: str) -> bool:
    return is_baseline(name) and name not in STATISTICS


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.values))


def _detected_by(name: str, rows: Sequence[Row], abnormal: Sequence[bool]) -> dict[str, Any]:
    there = [index for index, row in enumerate(rows) if name in row.values]
    values = np.array([rows[index].values[name] for index in there])
    truth = np.array([abnormal[index] for index in there], bool)
    detected: dict[str, Any] = {"auroc": auroc(values, truth), "average_precision": average_precision(values, truth)}
    if name in STATISTICS:
        detected["auroc_reversed"] = auroc(-values, truth)
        detected["average_precision_reversed"] = average_precision(-values, truth)
    elif not is_baseline(name):
        detected["fpr_at_95_tpr"] = fpr_at_tpr(values, truth)
    plain: dict[str, Any] = {key: plain_number(value) for key, value in detected.items()}
    if plain["auroc"] is not None and name not in STATISTICS:
        groups = [rows[index].patient or f"case {index}" for index in there]
        plain["auroc_interval"] = list(bootstrap_auroc(values, truth, groups))
    return plain


def plain_number(value: float) -> float | None:
    """JSON has no numbers that are not finite."""
    return value if math.isfinite(value) else None


@dataclass
class Voxels:
    """The maps of all cases whose anomalous regions are known."""

    scores: list[NDArray[np.float32]] = field(default_factory=list)
    regions: list[NDArray[np.int64]] = field(default_factory=list)
    count: int = 0
    cases: int = 0

    def see(self, map_: Image, target: Image) -> None:
        """One case: its map, and an image on the same grid that is not 0 where it is anomalous."""
        from scipy.ndimage import label

        parts, found = label((target.pixels != 0).any(0))
        self.scores.append(map_.pixels[0].ravel().astype(np.float32))
        self.regions.append(np.where(parts > 0, parts.astype(np.int64) + self.count, 0).ravel())
        self.count += found
        self.cases += 1

    def summary(self) -> dict[str, Any] | None:
        """None where no case has a target."""
        if not self.cases:
            return None
        scores, regions = np.concatenate(self.scores), np.concatenate(self.regions)
        thinned = -(-len(scores) // MOST_VOXELS)
        found = voxel_detection(scores[::thinned], regions[::thinned])
        return {
            "cases": self.cases,
            "regions": self.count,
            "one_voxel_of": thinned,
            "average_precision": plain_number(found.average_precision),
            "per_region_overlap": plain_number(found.per_region_overlap),
            "ceil_dice": plain_number(found.ceil_dice),
        }
