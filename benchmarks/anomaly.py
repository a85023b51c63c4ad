"""Does the demo's anomaly score find what is wrong with a tile, and where, and is it better than no learning?

AUROC on held-out tissue tiles with each artefact, against the same tiles as they are, of the score that decides and of
those beside it: mean and standard deviation over training seeds. Beside them the best baseline without labels, and the
best single statistic with the sign that suits it, which nobody knows beforehand. Then how well the map finds the
artefacts that mark a part of the tile. Scores and reducers are those of the configuration; nothing is chosen here.

    python -m benchmarks.anomaly [--seeds 0 1 2] [--json results.jsonl]
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.lines import Lines
from benchmarks.models import table, trained
from medae.data.samples import ABNORMAL
from medae.evaluation import evaluate
from medae.package import ModelPackage
from medae.scores.baselines import STATISTICS, is_baseline

CONFIG = "demo/anomaly-tissue"
PROMISED = ABNORMAL
"""Found with an AUROC of .95 or more, each."""


def detected(package: ModelPackage) -> dict[str, Any]:
    """Artefact -> score or baseline -> AUROC; `voxels`: how well the map finds where."""
    metrics = evaluate(package).metrics
    found: dict[str, Any] = {"voxels": metrics["voxels"]}
    for kind in ABNORMAL:
        numbers = {name: at for name, at in metrics["detection"][kind].items() if isinstance(at, Mapping)}
        found[kind] = {name: at["auroc"] for name, at in numbers.items() if name not in STATISTICS}
        found[kind] |= {
            f"{name} (better sign)": max(at["auroc"], at["auroc_reversed"])
            for name, at in numbers.items()
            if name in STATISTICS
        }
        found[kind]["medae"] = numbers[package.card.task.score_name]["auroc"]  # type: ignore[union-attr]
    return found


def over_seeds(seeds: Sequence[int], path: Path | None = None) -> list[dict[str, Any]]:
    """`detected` of one training each; those that the file has are not made again."""
    lines = Lines(path)
    return [
        lines.made({"seed": seed}, lambda seed=seed: detected(trained(CONFIG, [f"training.seed={seed}"])))  # type: ignore[misc]
        for seed in seeds
    ]


def rows_of(models: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[object]]]:
    """The table's head and its rows."""
    scores = [name for name in models[0][ABNORMAL[0]] if not is_baseline(name) and "(" not in name and name != "medae"]
    rows: list[list[object]] = []
    for kind in ABNORMAL:
        row: list[object] = [kind]
        for name in scores:
            values = np.array([model[kind][name] for model in models])
            row.append(f"{values.mean():.3f} +- {values.std():.3f}")
        row.append(min(float(model[kind]["medae"]) for model in models))
        first = models[0][kind]
        for some in (
            [name for name in first if is_baseline(name)],
            [name for name in first if name.endswith("(better sign)")],
        ):
            best = max(some, key=lambda name: first[name])
            row.append(f"{first[best]:.3f} {best.removesuffix(' (better sign)')}")
        rows.append(row)
    return ["artefact", *scores, "worst seed", "best without labels", "best single, its sign known"], rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="take this model instead of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--json", type=Path, help="the numbers of every seed; what is there is not made again")
    arguments = parser.parse_args()
    given = arguments.package
    models = [detected(trained("", package=given))] if given else over_seeds(arguments.seeds, arguments.json)
    head, rows = rows_of(models)
    print(table(head, rows))
    names = ("average_precision", "per_region_overlap", "ceil_dice")
    over = [[model["voxels"][name] for model in models] for name in names]
    print("\nthe map:", ", ".join(f"{n} {np.mean(v):.3f} +- {np.std(v):.3f}" for n, v in zip(names, over, strict=True)))


if __name__ == "__main__":
    main()
