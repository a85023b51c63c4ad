"""Which anomaly score finds what, on real sets, beside what needs no learning?

AUROC of every score of a configuration on the test part of its set: mean and standard deviation over training seeds,
with the 95 % interval of the first seed (over patients or slides where these are known). A score knows normal images
only: no sign, no threshold, no weights and no member of an ensemble was chosen with the test's labels. Single
statistics are shown with the sign that suits them best, which nobody knows beforehand, and label-free in both
directions. Sets in folds (Kather's tiles by slide, brain MRI) are scored fold by fold and pooled.

    python -m benchmarks.anomaly_sets SET... [--data FOLDER] [--seeds 0 1 2] [--out results.json]
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.models import table, trained
from medae.data.collections import FOLDS
from medae.evaluation import CaseResult, evaluate
from medae.evaluation.detection import detection
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


def scored(which: Set, data: Path, seed: int) -> tuple[list[str], list[CaseResult]]:
    """The names of the scores, and all test cases of one training (of each fold)."""
    keys: list[str] = []
    rows: list[CaseResult] = []
    for fold in range(which.folds):
        changes = [f"data.root={data / which.folder}", f"data.fold={fold}", f"training.seed={seed}"]
        package = trained(which.config, changes)
        keys = [score.key for score in package.card.task.scores]  # type: ignore[union-attr]
        rows += evaluate(package).cases
    return keys, rows


def over_seeds(which: Set, data: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Group of abnormal images -> name -> AUROC of each seed and the interval of the first."""
    found: dict[str, Any] = {}
    for seed in seeds:
        keys, rows = scored(which, data, seed)
        for group, numbers in detection(keys, rows).items():
            for name, at in numbers.items():
                if isinstance(at, dict):
                    entry = found.setdefault(group, {}).setdefault(name, {"auroc": [], **at, "seeds": []})
                    entry["seeds"].append(at["auroc"])
    return found


def rows_of(found: dict[str, Any]) -> list[tuple[object, ...]]:
    """For a table: the scores in their order, then the five best baselines without labels, then the best statistic."""
    rows: list[tuple[object, ...]] = []
    for group, numbers in found.items():
        free = {name: at for name, at in numbers.items() if is_baseline(name) and name not in STATISTICS}
        best = sorted(free, key=lambda name: -(free[name]["seeds"][0] or 0))[:5]
        signed = max(STATISTICS, key=lambda name: _better(numbers.get(name)))
        for name in [*(name for name in numbers if not is_baseline(name)), *best]:
            seeds, (low, high) = np.array(numbers[name]["seeds"], float), numbers[name]["auroc_interval"]
            shown = f"{seeds.mean():.3f} +- {seeds.std():.3f}" if not is_baseline(name) else f"{seeds.mean():.3f}"
            rows.append((group, name, shown, f"{low:.2f} to {high:.2f}"))
        rows.append((group, f"{signed}, its better sign", f"{_better(numbers[signed]):.3f}", ""))
    return rows


def _better(at: dict[str, Any] | None) -> float:
    return 0.0 if at is None else max(at["seeds"][0] or 0, at["auroc_reversed"] or 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=sorted(SETS))
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of all data sets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--out", type=Path, help="all numbers, as JSON")
    arguments = parser.parse_args()
    every = {}
    for name in arguments.sets:
        every[name] = over_seeds(SETS[name], arguments.data, arguments.seeds)
        print(f"## {name}\n\n{table(('abnormal', 'by', 'AUROC', '95 % interval'), rows_of(every[name]))}\n", flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(every, indent=2))


if __name__ == "__main__":
    main()
