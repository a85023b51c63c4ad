"""Does the demo's denoiser beat what needs no training?

Gaussian noise of sigma 25 (of 255) on the held-out part of the stained tissue: PSNR and SSIM of the model beside
scikit-image's non-local means and total variation, which get the true sigma and are tuned on the training part. All
see the same real-valued noisy picture, not cut to 0..255; all outputs are cut to it. Mean over several noise seeds.

    python -m benchmarks.denoising [--package demo/models/denoise-tissue/package] [--steps 6000]
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import table, trained
from medae.data.samples import Sample
from medae.image import Image
from medae.metrics.fidelity import psnr, ssim
from medae.package import ModelPackage
from medae.predictor import Predictor

SIGMA = 25 / 255
SEEDS = range(5)
TUNING_SEED = 1000
Picture = NDArray[np.float32]
"""(R, W, 3) in 0..1."""
Method = Callable[[Picture], Picture]


@dataclass(frozen=True)
class Result:
    """One method on the held-out part, mean over the noise seeds."""

    name: str
    psnr: float
    psnr_sd: float
    ssim: float


def part(split: str) -> Picture:
    """The clean picture of a split."""
    image = next(iter(Sample(name="denoise-tissue").load(split))).image
    return np.moveaxis(image.pixels[:, 0], 0, 2).astype(np.float32) / 255


def noisy(clean: Picture, seed: int) -> Picture:
    """Not cut to 0..1."""
    return clean + SIGMA * np.random.default_rng(seed).standard_normal(clean.shape, np.float32)


def tuned() -> Mapping[str, Method]:
    """Non-local means and total variation with the settings that are best on the training part."""
    clean = part("train")
    given = noisy(clean, TUNING_SEED)
    best = {}
    for name, grid in (("NLM", _nlm_grid()), ("TV", _tv_grid())):
        scored = {setting: _quality(method(given), clean)[0] for setting, method in grid.items()}
        setting = max(scored, key=lambda each: scored[each])
        best[f"{name}, {setting}"] = grid[setting]
    return best


def _nlm_grid() -> dict[str, Method]:
    from skimage.restoration import denoise_nl_means

    return {
        f"patch {size}, distance {distance}, h {h} sigma": partial(
            denoise_nl_means,
            patch_size=size,
            patch_distance=distance,
            h=h * SIGMA,
            sigma=SIGMA,
            channel_axis=-1,
        )
        for size, distance, h in product((3, 5, 7), (5, 10, 15), (0.2, 0.3, 0.4, 0.5, 0.6))
    }


def _tv_grid() -> dict[str, Method]:
    from skimage.restoration import denoise_tv_chambolle

    weights = (0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.2, 0.25)
    return {
        f"weight {weight}": partial(denoise_tv_chambolle, weight=weight, eps=1e-5, max_num_iter=500, channel_axis=-1)
        for weight in weights
    }


def of_model(package: ModelPackage) -> Method:
    """A model as one of the methods."""
    predictor = Predictor(package, device="cpu")

    def restore(given: Picture) -> Picture:
        return np.moveaxis(predictor(Image.from_picture(given)).image.pixels[:, 0], 0, 2)

    return restore


def compare(methods: Mapping[str, Method]) -> list[Result]:
    """All methods on the held-out part, on the same noise; first the noisy picture itself."""
    clean = part("test")
    results = []
    for name, method in {"noisy input": lambda given: given, **methods}.items():
        values = np.array([_quality(method(noisy(clean, seed)), clean) for seed in SEEDS])
        results.append(Result(name, values[:, 0].mean(), values[:, 0].std(), values[:, 1].mean()))
    return results


def _quality(output: Picture, clean: Picture) -> tuple[float, float]:
    """(PSNR, SSIM) of what a picture can hold."""
    planes = [np.moveaxis(picture, 2, 0)[:, None] for picture in (output.clip(0, 1), clean)]
    return psnr(*planes, 1.0), ssim(*planes, 1.0)


def margin(results: list[Result]) -> float:
    """dB of the last method, which is the model, above the better of NLM and TV."""
    return results[-1].psnr - max(result.psnr for result in results if result.name.startswith(("NLM", "TV")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="take this model instead of training one")
    parser.add_argument("--steps", type=int, default=2000, help="of the training (the demo's: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the training")
    arguments = parser.parse_args()
    changes = [f"training.steps={arguments.steps}", f"training.seed={arguments.seed}"]
    model = of_model(trained("demo/denoise-tissue", changes, arguments.package))
    results = compare({**tuned(), "medae": model})
    rows = [(each.name, f"{each.psnr:.2f}", f"{each.psnr_sd:.3f}", each.ssim) for each in results]
    print(table(("method", "PSNR, dB", "sd over noise", "SSIM"), rows))
    print(f"\nmedae is {margin(results):+.2f} dB above the better of NLM and TV")


if __name__ == "__main__":
    main()
