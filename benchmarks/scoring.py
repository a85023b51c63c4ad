"""What does scoring cost beside the network itself?

Tiles of colour tissue through the back end with everything that a score needs, its map, and its reduction, against the
same network's forward alone: medians of interleaved calls, one thread, ratio of the processor's time. Parts that
scores fit are fitted on crops of the same picture: what they hold does not change what they cost.

    python -m benchmarks.scoring [--side 512] [--repeats 7] [--json results.jsonl]
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.lines import Lines
from benchmarks.models import table, untrained
from medae import fitting
from medae.backends.torch import TorchBackend, keep_heap, network_of
from medae.data.samples import stained_tissue
from medae.fitting import fit_scores
from medae.image import Image
from medae.networks.vae import VAESettings
from medae.package import ModelPackage
from medae.predictor import prepare
from medae.tasks import Anomaly
from medae.tiles import plan_tiles, read_tile

CODE, TEXTURE = {"kind": "code"}, {"kind": "texture"}
RELATIVE = {"by": "neighbours", "relative": True}
SCORES: dict[str, list[dict[str, Any]]] = {
    "residual l2": [{"kind": "residual"}],
    "residual l2, top 20 %": [{"kind": "residual", "reducer": {"kind": "top_percent", "percent": 20}}],
    "ssim": [{"kind": "ssim"}],
    "elbo": [{"kind": "elbo"}],
    "nll": [{"kind": "nll"}],
    "variance head": [{"kind": "variance_head"}],
    "mahalanobis, code": [{"kind": "mahalanobis", "features": CODE}],
    "mahalanobis, texture": [{"kind": "mahalanobis", "features": TEXTURE}],
    "neighbours, code": [{"kind": "neighbours", "features": CODE}],
    "neighbours, texture": [{"kind": "neighbours", "features": TEXTURE}],
    "neighbours, texture, cells of 4": [{"kind": "neighbours", "features": TEXTURE | {"cell": 4, "scales": 1}}],
    "perceptual": [{"kind": "perceptual"}],
    "residual, appearance (a gate's)": [
        {"kind": "appearance", "by": "neighbours", "count": 1, "members": ["l2_mean"]},
        {"kind": "residual"},
    ],
    "residual, statistics, their ranks (the demo's)": [
        {"kind": "rank_average", "members": ["l2_top_percent", "statistics"]},
        {"kind": "residual", "reducer": {"kind": "top_percent", "percent": 20}},
        {"kind": "statistics", "optical_density": True, "colour": True},
    ],
    "residual, stain": [{"kind": "stain"} | RELATIVE, {"kind": "residual"}],
    "residual, haematoxylin": [{"kind": "haematoxylin", "by": "neighbours", "count": 20}, {"kind": "residual"}],
    "residual, patterns": [{"kind": "patterns"} | RELATIVE, {"kind": "residual"}],
    "residual, statistics, stain, patterns, their ranks (Kather's)": [
        {"kind": "rank_average", "members": ["statistics", "stain", "patterns"]},
        {"kind": "statistics", "whiten": True} | RELATIVE,
        {"kind": "stain"} | RELATIVE,
        {"kind": "patterns"} | RELATIVE,
        {"kind": "residual"},
    ],
}
MEDIANS = (3, 5)
"""Sides of the filter over the residual's map."""


def package_of(scores: list[dict[str, Any]], filtered: int | None = None) -> ModelPackage:
    """An untrained VAE with these scores, fitted on crops. filtered: side of a median filter over its maps."""
    task = Anomaly.model_validate({"kind": "anomaly", "scores": scores, "median": filtered})
    gaussian = any(score["kind"] == "nll" for score in scores)
    package = untrained(task, VAESettings(decoder="gaussian" if gaussian else "point"), 3)
    pixels = stained_tissue().pixels
    crops = [Image.from_picture(np.moveaxis(pixels[:, 0, at : at + 64, at : at + 64], 0, 2)) for at in range(0, 400, 8)]
    return fit_scores(package, crops)


def ratio(package: ModelPackage, side: int, repeats: int) -> tuple[float, float]:
    """(whole by network alone, milliseconds of the network alone)."""
    pixels = stained_tissue().pixels[:, :, :side, :side]
    image = Image.from_picture(np.ascontiguousarray(np.moveaxis(np.tile(pixels, (1, 1, 2, 2))[:, 0], 0, 2)))
    prepared = prepare(package.card, image).image.pixels
    field, task = package.card.receptive_field, package.card.task
    assert isinstance(task, Anomaly)
    plan = plan_tiles(prepared.shape[1:], field)
    window = read_tile(prepared, plan.tiles[0].window)
    whole, alone = TorchBackend.from_package(package, "cpu"), TorchBackend(network_of(package), "cpu")

    def score() -> None:
        output = whole.run(window[None, :, 0])[0][:, None]
        task.values(task.decide(output, window, None), window, package.weights)

    calls = [(_seconds(score), _seconds(lambda: alone.run(window[None, :, 0]))) for _ in range(repeats + 1)][1:]
    pure = median(forward for _, forward in calls)
    return median(scored for scored, _ in calls) / pure, 1000 * pure


def measure(scores: list[dict[str, Any]], filtered: int | None, side: int, repeats: int) -> dict[str, float]:
    """`ratio` of an untrained network with these scores."""
    found, milliseconds = ratio(package_of(scores, filtered), side, repeats)
    return {"ratio": found, "milliseconds": milliseconds}


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="half of the picture's, in pixels")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="the numbers of every score; what is there is not made again")
    arguments = parser.parse_args()
    keep_heap()
    fitting.HEAD_STEPS = 2
    rows = []
    lines = Lines(arguments.json)
    cases: list[tuple[str, list[dict[str, Any]], int | None]] = [(name, of, None) for name, of in SCORES.items()]
    cases += [(f"residual l2, median of {side} x {side}", SCORES["residual l2"], side) for side in MEDIANS]
    for name, scores, filtered in cases:
        run = {"score": name, "side": arguments.side}
        found = lines.made(run, partial(measure, scores, filtered, arguments.side, arguments.repeats))
        rows.append((name, f"{found['ratio']:.2f}", f"{found['milliseconds']:.0f}"))
    print(table(("score", "whole / network alone", "network alone, ms"), rows))


if __name__ == "__main__":
    main()
