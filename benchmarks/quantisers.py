"""Do the quantisers use their book, beside MONAI's? On a mixture of 200 clusters, and in a VQ-VAE on tissue tiles.

Everything but the quantiser is the same: the network, its initial weights, the batches, the loss, the steps. The tiles
come with scikit-image: 32 x 32 pixels of the upper part of one picture train, tiles of its lower part are the test.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import table
from medae.backends.torch import choose_device
from medae.data.samples import Sample
from medae.metrics.book import Usage
from medae.networks import Codes, Output, VQVAESettings, run
from medae.networks.quantisers import EMASettings, FSQSettings
from medae.objectives import MSE, Commitment, Loss

SIDE, BATCH, BOOK, CHANNELS = 32, 16, 256, 16
LEVELS = {"fsq 8 6 5": (8, 6, 5), "fsq 5 5 5": (5, 5, 5)}
THEIRS = {"monai .99": 0.99, "monai .5": 0.5}
CLUSTERS, NOISE, SAMPLES = 200, 0.05, 1024


class Theirs(nn.Module):
    """MONAI's quantiser in our words. decay: .99 is the default of its quantiser, .5 that of its VQVAE."""

    def __init__(self, decay: float = 0.99) -> None:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        super().__init__()
        self.core = EMAQuantizer(2, BOOK, CHANNELS, decay=decay)

    def forward(self, z: Tensor) -> Codes:
        vectors, _, indices = self.core(z)
        return Codes(indices, vectors, encoded=z)


def mixture(quantiser: nn.Module, seed: int, steps: int = 100) -> tuple[float, float]:
    """(perplexity, mean squared error) on fresh samples after so many steps."""
    draws = torch.Generator().manual_seed(1000 + seed)
    centres = torch.randn(CLUSTERS, CHANNELS, generator=draws)

    def sample(count: int) -> Tensor:
        chosen = centres[torch.randint(CLUSTERS, (count,), generator=draws)]
        return (chosen + NOISE * torch.randn(count, CHANNELS, generator=draws))[..., None, None]

    torch.manual_seed(seed)
    quantiser.train()
    with torch.no_grad():
        for _ in range(steps):
            quantiser(sample(SAMPLES))
        codes = quantiser.eval()(z := sample(20_000))
    return Usage.of([codes.indices], BOOK).perplexity, float((codes.vectors - z).square().mean())


def pictures() -> tuple[Tensor, Tensor]:
    """(the picture to cut training tiles from, (N, 3, 32, 32) test tiles every 16 pixels), in 0..1."""
    data = Sample(name="denoise-tissue")
    parts = {case.split: data.read(case).image.pixels[:, 0].astype(np.float32) / 255 for case in data.all_cases()}
    test = torch.from_numpy(parts["test"]).unfold(1, SIDE, SIDE // 2).unfold(2, SIDE, SIDE // 2)
    return torch.from_numpy(parts["train"]), test.flatten(1, 2).movedim(1, 0).contiguous()


def tiles(picture: Tensor, seed: int, steps: int) -> Iterator[Tensor]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        corners = rng.integers([picture.shape[1] - SIDE, picture.shape[2] - SIDE], size=(BATCH, 2))
        yield torch.stack([picture[:, r : r + SIDE, c : c + SIDE] for r, c in corners.tolist()])


def network_with(name: str, seed: int, features: Sequence[int]) -> nn.Module:
    """The same initial encoder and decoder for all that have a book of vectors."""
    ours = EMASettings(codes=BOOK, channels=CHANNELS)
    quantiser = FSQSettings(levels=LEVELS[name]) if name in LEVELS else ours
    torch.manual_seed(seed)
    network = VQVAESettings(features=tuple(features), quantiser=quantiser).build(3, 3)
    if name in THEIRS:
        torch.manual_seed(seed)
        network.quantiser = Theirs(THEIRS[name])  # type: ignore[assignment]
    return network


def fitted(name: str, seed: int, steps: int, features: Sequence[int]) -> dict[str, float]:
    """One training and what it measured on the test tiles."""
    picture, test = pictures()
    device = choose_device("auto")
    network = network_with(name, seed, features).to(device)
    loss = Loss([MSE()] if name in LEVELS else [MSE(), Commitment()])
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    started = time.process_time()
    for step, x in enumerate(batch.to(device) for batch in tiles(picture, seed, steps)):
        torch.manual_seed(10_000 * seed + step)
        total, _ = loss(run(network, x), x, step / steps)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    spent = time.process_time() - started
    print(f"seed {seed}: {name} trained in {spent:.0f} s", file=sys.stderr)
    with torch.no_grad():
        said: Output = run(network.eval(), test.to(device))
    assert isinstance(said.latent, Codes)
    errors = (said.prediction.cpu().clamp(0, 1) - test).square().flatten(1).mean(1)
    return {
        "codes": float(Usage.of([said.latent.indices], BOOK).used),
        "perplexity": Usage.of([said.latent.indices], BOOK).perplexity,
        "psnr": float((-10 * torch.log10(errors)).mean()),
        "ms": 1000 * spent / steps,
    }


def measure(seeds: int, steps: int, features: Sequence[int], names: Sequence[str]) -> dict[str, Any]:
    """All numbers; each seed's trainings run one after the other, so that all see the same machine."""
    torch.set_num_threads(1)
    ours = EMASettings(codes=BOOK, channels=CHANNELS)
    return {
        "mixture": {
            "ema": [mixture(ours.build(), seed) for seed in range(seeds)],
            **{name: [mixture(Theirs(decay), seed) for seed in range(seeds)] for name, decay in THEIRS.items()},
        },
        "vqvae": [{name: fitted(name, seed, steps, features) for name in names} for seed in range(seeds)],
    }


def show(found: Mapping[str, Any]) -> str:
    mixed = [
        [name, *(float(np.mean([one[number] for one in runs])) for number in (0, 1))]
        for name, runs in found["mixture"].items()
    ]
    rows = []
    for name in found["vqvae"][0]:
        runs = [seed[name] for seed in found["vqvae"]]
        mean = {key: float(np.mean([one[key] for one in runs])) for key in runs[0]}
        spread = float(np.std([one["psnr"] for one in runs]))
        codes = f"{mean['codes']:.1f} of {FSQSettings(levels=LEVELS[name]).book[0] if name in LEVELS else BOOK}"
        rows.append([name, codes, mean["perplexity"], f"{mean['psnr']:.2f} ± {spread:.2f}", mean["ms"]])
    gains = [
        seed["ema"]["psnr"] - max(seed[name]["psnr"] for name in THEIRS if name in seed) for seed in found["vqvae"]
    ]
    each = ", ".join(f"{gain:+.2f}" for gain in gains)
    return "\n\n".join(
        [
            table(["mixture", "perplexity", "squared error"], mixed),
            table(["VQ-VAE", "codes used", "perplexity", "PSNR (dB)", "CPU ms a step"], rows),
            f"ema over the better of monai's: {np.mean(gains):+.2f} dB (each seed: {each})",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--only", nargs="+", default=["ema", *LEVELS, *THEIRS], help="ema and one of MONAI's at least")
    arguments = parser.parse_args()
    print(show(measure(arguments.seeds, arguments.steps, arguments.features, arguments.only)))


if __name__ == "__main__":
    main()
