"""Which anomaly score finds what, on real sets, beside what needs no learning?

AUROC of every score of a configuration on the test part of its set: mean and standard deviation over training seeds,
with the 95 % interval of the first seed (over patients or slides where these are known). A score knows normal images
only: no sign, no threshold, no weights and no member of an ensemble was chosen with the test's labels. Single
statistics are shown with the sign that suits them best, which nobody knows beforehand, and label-free in both
directions. Sets in folds (Kather's tiles by slide, brain MRI) are scored fold by fold and pooled.

Then what a score adds to the squared residual of the same frozen network: the difference of their AUROCs with the 95 %
interval over the same draws of patients, slides or images, for the variance head and every rank average.

    python -m benchmarks.anomaly_sets SET... [--data FOLDER] [--seeds 0 1 2] [--json results.jsonl]
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.lines import Lines
from benchmarks.models import table, trained
from medae.data.collections import FOLDS
from medae.evaluation import CaseResult, evaluate
from medae.evaluation.detection import detection
from medae.metrics.detection import NORMAL, Interval, auroc, bootstrap_gain
from medae.scores.baselines import STATISTICS, is_baseline


class Set(NamedTuple):
    """One data set."""

    config: str
    folder: str
    """Below the folder of all data sets."""
    folds: int = 1


SETS = {
    "pneumonia": Set("anomaly/pneumoniamnist", "pneumoniamnist"),
    "colorectal": Set("anomaly/colorectal-patches", "crchistophenotypes_27px"),
    "kather": Set("anomaly/kather-tiles", "kather2016_colorectal_subset", FOLDS),
    "brain": Set("anomaly/brain-mri", "brain_mri_tumor_navoneel", FOLDS),
}
DATA = Path("../shared/data")
AGAINST = "l2_mean"
"""Of the same network: what the other scores are compared with."""
COMPARED = ("variance_head_mean", "ssim_mean", "mahalanobis_code_mean", "neighbours_code_mean", "rank_")


class Scored(NamedTuple):
    """All test cases of one seed."""

    keys: list[str]
    rows: list[CaseResult]


def scored(which: Set, data: Path, seed: int, fold: int) -> dict[str, Any]:
    """The names of the scores and the test cases of one training, as plain data."""
    changes = [f"data.root={data / which.folder}", f"data.fold={fold}", f"training.seed={seed}"]
    package = trained(which.config, changes)
    cases = [
        {"id": case.id, "label": case.label, "patient": case.patient, "values": _rounded(case.values)}
        for case in evaluate(package).cases
    ]
    return {"keys": [score.key for score in package.card.task.scores], "cases": cases}  # type: ignore[union-attr]


def _rounded(values: Any) -> dict[str, float]:
    return {name: float(f"{value:.9g}") for name, value in values.items()}


def over_seeds(name: str, data: Path, seeds: Sequence[int], lines: Lines) -> list[Scored]:
    """Every seed's test cases, those of all folds together."""
    which, found = SETS[name], []
    for seed in seeds:
        parts = [
            lines.made({"set": name, "seed": seed, "fold": fold}, partial(scored, which, data, seed, fold))
            for fold in range(which.folds)
        ]
        found.append(Scored(parts[0]["keys"], [CaseResult(**case) for part in parts for case in part["cases"]]))
    return found


def rows_of(seeds: Sequence[Scored]) -> Iterator[tuple[object, ...]]:
    """For a table: the scores in their order, then the five best baselines without labels, then the best statistic."""
    every = [detection(keys, rows) for keys, rows in seeds]
    for group, numbers in every[0].items():
        named = {name: at for name, at in numbers.items() if isinstance(at, dict)}
        free = [name for name in named if is_baseline(name) and name not in STATISTICS]
        best = sorted(free, key=lambda name: -(named[name]["auroc"] or 0))[:5]
        for name in [*(name for name in named if not is_baseline(name)), *best]:
            found = np.array([numbers[group][name]["auroc"] for numbers in every], float)
            low, high = named[name]["auroc_interval"]
            yield group, name, f"{found.mean():.3f} +- {found.std():.3f}", f"{low:.2f} to {high:.2f}"
        signed = max((name for name in named if name in STATISTICS), key=lambda name: _better(named[name]))
        yield group, f"{signed}, its better sign", f"{_better(named[signed]):.3f}", ""


def _better(at: dict[str, Any]) -> float:
    return max(at["auroc"] or 0, at["auroc_reversed"] or 0)


def gains(seeds: Sequence[Scored]) -> Iterator[tuple[object, ...]]:
    """For a table: what each compared score adds to the squared residual of the same network."""
    for name in COMPARED:
        for key in (key for key in seeds[0].keys if key.startswith(name)):
            found = [_gain(each.rows, key) for each in seeds]
            (low, high), gain = found[0][1], np.array([difference for difference, _ in found])
            yield key, f"{gain.mean():+.3f} +- {gain.std():.3f}", f"{low:+.2f} to {high:+.2f}"


def _gain(rows: Sequence[CaseResult], key: str) -> tuple[float, Interval]:
    there = [row for row in rows if key in row.values and row.label is not None]
    ours, theirs = ([row.values[name] for row in there] for name in (key, AGAINST))
    abnormal = [row.label != NORMAL for row in there]
    interval = bootstrap_gain(ours, theirs, abnormal, [row.patient or row.id for row in there])
    return auroc(ours, abnormal) - auroc(theirs, abnormal), interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=sorted(SETS))
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of all data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--json", type=Path, help="every test case of every run; what is there is not made again")
    arguments = parser.parse_args()
    lines = Lines(arguments.json)
    for name in arguments.sets:
        seeds = over_seeds(name, arguments.data, arguments.seeds, lines)
        print(f"## {name}\n\n{table(('abnormal', 'by', 'AUROC', '95 % interval'), list(rows_of(seeds)))}\n")
        print(table((f"against {AGAINST}", "gain in AUROC", "95 % interval"), list(gains(seeds))), flush=True)


if __name__ == "__main__":
    main()
