"""Does the demo's anomaly score find what is wrong with a tile, and is it better than one line of numpy?

AUROC on held-out tissue tiles with ink, a fold, foreign tissue or blur, against the same tiles as they are: mean and
standard deviation over training seeds, beside mean, standard deviation and sharpness of the tile, each with the sign
that suits it, which nobody knows beforehand. Score and reducer are those of the configuration; nothing is chosen here.

    python -m benchmarks.anomaly [--seeds 0 1 2]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.models import table, trained
from medae.data.samples import ABNORMAL
from medae.evaluation import evaluate
from medae.package import ModelPackage

SHOWN = ("intensity_mean", "intensity_std", "sharpness")
"""Statistics beside the score."""
PROMISED = ("ink", "fold", "foreign")
"""A blurred tile is easier to reconstruct than a sharp one: reported, not promised."""


def detected(package: ModelPackage) -> dict[str, dict[str, float]]:
    """Artefact -> score or statistic -> AUROC; a statistic's is that of its better sign."""
    found = evaluate(package).metrics["detection"]
    task = package.card.task
    return {
        kind: {"medae": found[kind][task.score_name]["auroc"]}
        | {name: max(found[kind][name]["auroc"], found[kind][name]["auroc_reversed"]) for name in SHOWN}
        for kind in ABNORMAL
    }


def over_seeds(seeds: Sequence[int]) -> list[dict[str, dict[str, float]]]:
    """`detected` of one training each."""
    return [detected(trained("demo/anomaly-tissue", [f"training.seed={seed}"])) for seed in seeds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="take this model instead of training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    arguments = parser.parse_args()
    models = [detected(trained("", package=arguments.package))] if arguments.package else over_seeds(arguments.seeds)
    rows = []
    for kind in ABNORMAL:
        ours = np.array([model[kind]["medae"] for model in models])
        trivial = [models[0][kind][name] for name in SHOWN]
        rows.append((kind, f"{ours.mean():.3f} +- {ours.std():.3f}", float(ours.min()), *trivial))
    print(table(("artefact", f"medae, {len(models)} seeds", "worst seed", *SHOWN), rows))


if __name__ == "__main__":
    main()
