"""Do the demo's networks find nuclei on clean and on damaged pictures, beside a threshold on the blue stain?

Dice on the held-out part of the stained tissue: as it is, and after stain jitter, blur and noise, each with several
seeds. The threshold (colour deconvolution, smoothed) is tuned on the training part: clean, and damaged in the same ways
with other seeds. The labels are made by a rule on that same stain, so on the clean picture the threshold is hard to
beat, and none of these numbers says how well a pathologist would agree.

    python -m benchmarks.segmentation [--package demo/models/nuclei-unet/package ...]
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from benchmarks.models import table, trained
from medae.data.augment import Pair, Stain
from medae.data.samples import Sample, haematoxylin
from medae.image import Image
from medae.metrics.overlap import dice
from medae.package import ModelPackage
from medae.predictor import Predictor

CONFIGS = ("nuclei-unet", "nuclei-segnet")
SEEDS = range(10)
TUNING_SEEDS = range(1000, 1005)
Picture = NDArray[np.uint8]
"""(R, W, 3)"""
Labels = NDArray[np.uint8]
"""(R, W)"""
Method = Callable[[Picture], Labels]


@dataclass(frozen=True)
class Damage:
    """Stain amounts vary by +- `stain`; blur and noise are as strong as this each time."""

    stain: float
    blur: float
    """Standard deviation, pixels."""
    noise: float
    """Standard deviation, of 1."""

    def __call__(self, clean: Picture, seed: int) -> Picture:
        rng = np.random.default_rng(seed)
        light = np.moveaxis(clean, 2, 0).astype(np.float32) / 255
        stained = Stain(strength=self.stain).apply(Pair(light, None), rng).image
        blurred = gaussian_filter(stained, (0, self.blur, self.blur), mode="reflect")
        given = blurred + self.noise * rng.standard_normal(blurred.shape)
        return np.rint(np.moveaxis(given.clip(0, 1), 0, 2) * 255).astype(np.uint8)


DAMAGED = Damage(stain=0.1, blur=1.0, noise=0.05)
"""At the edge of what the configurations train with."""
WORSE = Damage(stain=0.15, blur=1.5, noise=0.08)
"""Beyond it."""


@dataclass(frozen=True)
class Result:
    """Dice of one method on the held-out part."""

    name: str
    clean: float
    damaged: NDArray[np.float64]
    """One for each seed."""
    worse: NDArray[np.float64]


def part(split: str) -> tuple[Picture, Labels]:
    """The picture of a split, and its labels."""
    case = next(iter(Sample(name="nuclei").load(split)))
    assert case.target is not None
    return np.moveaxis(case.image.pixels[:, 0], 0, 2), case.target.pixels[0, 0]


def thresholds() -> dict[str, Method]:
    """On the blue stain, tuned on the training part: clean, and damaged."""
    rgb, labels = part("train")
    pictures = {
        "threshold": [rgb],
        "threshold for damage": [DAMAGED(rgb, seed) for seed in TUNING_SEEDS],
        "threshold for worse damage": [WORSE(rgb, seed) for seed in TUNING_SEEDS],
    }
    return {name: partial(_above, _best_threshold(given, labels)) for name, given in pictures.items()}


def _above(threshold: float, rgb: Picture) -> Labels:
    return (haematoxylin(rgb) > threshold).astype(np.uint8)


def _best_threshold(pictures: list[Picture], labels: Labels) -> float:
    stains = [haematoxylin(rgb) for rgb in pictures]
    tried = np.quantile(stains[0], np.linspace(0.5, 0.98, 97))
    quality = [np.mean([dice(stain > value, labels, 1) for stain in stains]) for value in tried]
    return float(tried[np.argmax(quality)])


def of_model(package: ModelPackage) -> Method:
    """A model as one of the methods."""
    predictor = Predictor(package, device="cpu")
    return lambda rgb: predictor(Image.from_picture(rgb)).image.pixels[0, 0]


def compare(methods: Mapping[str, Method]) -> list[Result]:
    """All methods on the held-out part, on the same damage."""
    rgb, labels = part("test")

    def judged(method: Method, damage: Damage) -> NDArray[np.float64]:
        return np.array([dice(method(damage(rgb, seed)), labels, 1) for seed in SEEDS])

    return [
        Result(name, dice(method(rgb), labels, 1), judged(method, DAMAGED), judged(method, WORSE))
        for name, method in methods.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, nargs="+", help="take these models instead of training")
    arguments = parser.parse_args()
    if arguments.package:
        packages = [trained("", package=folder) for folder in arguments.package]
    else:
        packages = [trained(f"demo/{name}") for name in CONFIGS]
    methods = thresholds() | {package.card.name: of_model(package) for package in packages}
    rows = [
        (each.name, each.clean, *(text for values in (each.damaged, each.worse) for text in _shown(values)))
        for each in compare(methods)
    ]
    print(table(("method", "clean", "damaged, mean", "worst of 10", "damaged more, mean", "worst of 10"), rows))


def _shown(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.min())


if __name__ == "__main__":
    main()
