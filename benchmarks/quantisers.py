"""Do the quantisers use their book, beside MONAI's? On a mixture of 200 clusters, and in a VQ-VAE on 32-pixel images.

Everything but the quantiser is the same: the network, its initial weights, the batches, the loss, the steps, and the
schedule of `medae train`. The decay of a book, ours or MONAI's, is chosen by validation images. Two sets. `tissue`
comes with scikit-image: 32 x 32 pixels of the upper part of one stained picture train, tiles of its lowest part are the
test. `pneumoniamnist` (Yang 2023, doi:10.1038/s41597-022-01721-8) is grey: 28 pixels, mirrored to 32, its own parts.
`nothing` is the network without a quantiser.

Entries used are counted on all 5,856 images of PneumoniaMNIST, and on all tiles of tissue's test part at every fourth
pixel: an entry that stands for something rare needs many images to be seen (the paper of `fsq` counts over 50,000).

    python -m benchmarks.quantisers [--pneumonia FOLDER] [--seeds 0 1 2] [--features 16 32] [--json results.jsonl]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import table
from medae.backends.torch import choose_device
from medae.data.samples import Sample
from medae.experiment import TrainingSettings
from medae.metrics.book import Usage
from medae.networks import Codes, Output, VQVAESettings, run
from medae.networks.quantisers import EMASettings, FSQSettings
from medae.objectives import MSE, Commitment, Loss
from medae.training.loop import learning_rate

SIDE, BATCH, BOOK, CHANNELS, RATE = 32, 16, 256, 16, 2e-3
LEVELS = {"fsq 8 6 5": (8, 6, 5), "fsq 5 5 5": (5, 5, 5)}
DECAYS = {".99": 0.99, ".9": 0.9, ".5": 0.5}
"""The default of ours and of MONAI's quantiser, one between, the default of MONAI's VQVAE."""
OURS = {f"ema {name}": decay for name, decay in DECAYS.items()}
THEIRS = {f"monai {name}": decay for name, decay in DECAYS.items()}
NOTHING = "nothing"
CLUSTERS, NOISE, SAMPLES = 200, 0.05, 1024


class Theirs(nn.Module):
    """MONAI's quantiser in our words."""

    def __init__(self, decay: float) -> None:
        from monai.networks.layers.vector_quantizer import EMAQuantizer

        super().__init__()
        self.core = EMAQuantizer(2, BOOK, CHANNELS, decay=decay)

    def forward(self, z: Tensor) -> Codes:
        vectors, _, indices = self.core(z)
        return Codes(indices, vectors, encoded=z)


class Nothing(nn.Module):
    """What is encoded is what is decoded."""

    def forward(self, z: Tensor) -> Codes:
        return Codes(torch.zeros_like(z[:, 0], dtype=torch.int64), z, encoded=z)


class Images(NamedTuple):
    """One set, in 0..1."""

    batch: Callable[[np.random.Generator], Tensor]
    """(BATCH, C, 32, 32) to train on."""
    validation: Tensor
    """(N, C, 32, 32)."""
    test: Tensor
    counted: Tensor
    """Those on which the entries in use are counted."""


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


def tissue() -> Images:
    data = Sample(name="denoise-tissue")
    parts = {case.split: data.read(case).image.pixels[:, 0].astype(np.float32) / 255 for case in data.all_cases()}
    picture = torch.from_numpy(parts["train"])

    def batch(rng: np.random.Generator) -> Tensor:
        corners = rng.integers([picture.shape[1] - SIDE, picture.shape[2] - SIDE], size=(BATCH, 2))
        return torch.stack([picture[:, r : r + SIDE, c : c + SIDE] for r, c in corners.tolist()])

    def every(step: int, part: str = "test") -> Tensor:
        tiles = torch.from_numpy(parts[part]).unfold(1, SIDE, step).unfold(2, SIDE, step)
        return tiles.flatten(1, 2).movedim(1, 0).contiguous()

    return Images(batch, every(SIDE // 2, "validation"), every(SIDE // 2), every(4))


def pneumonia(folder: Path) -> Images:
    with np.load(next(folder.glob("pneumoniamnist*.npz"))) as arrays:
        parts = [arrays[f"{part}_images"].reshape(-1, 1, 28, 28) for part in ("train", "val", "test")]
    mirrored = [np.pad(part, ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect") for part in parts]
    train, validation, test = (torch.from_numpy(part.astype(np.float32) / 255) for part in mirrored)
    every = torch.cat([train, validation, test])
    return Images(lambda rng: train[torch.from_numpy(rng.integers(len(train), size=BATCH))], validation, test, every)


def network_with(name: str, seed: int, features: Sequence[int], channels: int) -> nn.Module:
    """The same initial encoder and decoder for all that have vectors of one length."""
    ours = EMASettings(codes=BOOK, channels=CHANNELS, decay=OURS.get(name, 0.99))
    quantiser = FSQSettings(levels=LEVELS[name]) if name in LEVELS else ours
    torch.manual_seed(seed)
    network = VQVAESettings(features=tuple(features), quantiser=quantiser).build(channels, channels)
    if name in THEIRS:
        torch.manual_seed(seed)
        network.quantiser = Theirs(THEIRS[name])  # type: ignore[assignment]
    if name == NOTHING:
        network.quantiser = Nothing()  # type: ignore[assignment]
    return network


def trained(name: str, images: Images, seed: int, steps: int, features: Sequence[int]) -> tuple[nn.Module, float]:
    """The network, at evaluation, and the processor's seconds."""
    device = choose_device("auto")
    network = network_with(name, seed, features, images.test.shape[1]).to(device)
    loss = Loss([MSE()] if name in LEVELS or name == NOTHING else [MSE(), Commitment()])
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    schedule, rng = TrainingSettings(steps=steps, learning_rate=RATE), np.random.default_rng(seed)
    network.train()
    started = time.process_time()
    for step in range(steps):
        x = images.batch(rng).to(device)
        torch.manual_seed(10_000 * seed + step)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, step / steps)
        total, _ = loss(run(network, x), x, step / steps)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return network.eval(), time.process_time() - started


def fitted(name: str, images: Images, seed: int, steps: int, features: Sequence[int]) -> dict[str, float]:
    """One training and what it measured."""
    network, spent = trained(name, images, seed, steps, features)
    psnr = {}
    for part, truth in (("validation", images.validation), ("psnr", images.test)):
        prediction, _ = _answers(network, truth)
        errors = (prediction.clamp(0, 1) - truth).square().flatten(1).mean(1)
        psnr[part] = float((-10 * torch.log10(errors)).mean())
    _, indices = _answers(network, images.counted)
    usage = Usage.of([indices], int(np.prod(LEVELS[name])) if name in LEVELS else BOOK)
    return {
        "codes": float(usage.used),
        "perplexity": usage.perplexity,
        **psnr,
        "ms": 1000 * spent / steps,
    }


def kept(training: dict[str, Any], images: Images, path: Path | None) -> dict[str, Any]:
    """Its line in the file if it is there, and else made now and added: a run that was cut off goes on."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
    for line in lines:
        if training.items() <= line.items():
            return {key: value for key, value in line.items() if key not in training}
    name, seed, steps, features = (training[key] for key in ("name", "seed", "steps", "features"))
    made = fitted(name, images, seed, steps, features)
    print(json.dumps(training | made), file=sys.stderr)
    if path:
        with path.open("a") as file:
            file.write(json.dumps(training | made) + "\n")
    return made


def _answers(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """(reconstructions, indices)."""
    device, made = next(network.parameters()).device, []
    with torch.no_grad():
        for part in images.split(256):
            said: Output = run(network, part.to(device))
            assert isinstance(said.latent, Codes)
            made.append((said.prediction.cpu(), said.latent.indices.cpu()))
    predictions, indices = zip(*made, strict=True)
    return torch.cat(predictions), torch.cat(indices)


def mixtures(names: Sequence[str], seeds: Sequence[int]) -> str:
    """The first table: of those that learn a book."""
    makers = {
        name: lambda decay=decay: EMASettings(codes=BOOK, channels=CHANNELS, decay=decay).build()
        for name, decay in OURS.items()
    } | {name: lambda decay=decay: Theirs(decay) for name, decay in THEIRS.items()}
    rows = []
    for name in (name for name in names if name in makers):
        found = np.array([mixture(makers[name](), seed) for seed in seeds])
        rows.append([name, *(float(value) for value in found.mean(0))])
    return table(["mixture", "perplexity", "squared error"], rows)


def show(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """One set's table, and how far ours is ahead; name -> a training for each seed."""
    rows = []
    for name, runs in found.items():
        mean = {key: float(np.mean([one[key] for one in runs])) for key in runs[0]}
        size = int(np.prod(LEVELS[name])) if name in LEVELS else BOOK
        codes = "" if name == NOTHING else f"{mean['codes']:.1f} of {size}"
        spread = float(np.std([one["psnr"] for one in runs]))
        quality = f"{mean['validation']:.2f}", f"{mean['psnr']:.2f} ± {spread:.2f}"
        rows.append([name, codes, mean["perplexity"], *quality, mean["ms"]])
    text = table(["VQ-VAE", "entries used", "perplexity", "validation, dB", "test, dB", "CPU ms a step"], rows)
    mine, peer = (_best({name: found[name] for name in names if name in found}) for names in (OURS, THEIRS))
    if mine and peer:
        gains = [one["psnr"] - other["psnr"] for one, other in zip(found[mine], found[peer], strict=True)]
        each = ", ".join(f"{gain:+.2f}" for gain in gains)
        text += f"\n\n{mine} over {peer}, each the best by validation: {np.mean(gains):+.2f} dB (each seed: {each})"
    return text


def _best(found: Mapping[str, Sequence[Mapping[str, float]]]) -> str | None:
    return max(found, key=lambda name: float(np.mean([one["validation"] for one in found[name]])), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pneumonia", type=Path, help="the folder of PneumoniaMNIST")
    parser.add_argument("--skip-tissue", action="store_true", help="only the other set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--features", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--only", nargs="+", default=[*OURS, *THEIRS, *LEVELS, NOTHING])
    parser.add_argument("--json", type=Path, help="keeps each training's numbers, a line each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(mixtures(arguments.only, arguments.seeds), flush=True)
    sets: dict[str, Images] = {} if arguments.skip_tissue else {"tissue": tissue()}
    if arguments.pneumonia:
        sets["pneumoniamnist"] = pneumonia(arguments.pneumonia)
    for title, images in sets.items():
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.only}
        for seed in arguments.seeds:  # one seed after the other, so that all quantisers see the same machine
            for name, runs in found.items():
                run_of = {"set": title, "name": name, "seed": seed, "steps": arguments.steps}
                runs.append(kept(run_of | {"features": arguments.features}, images, arguments.json))
        print(f"\n{title}, network of {arguments.features}\n\n{show(found)}", flush=True)


if __name__ == "__main__":
    main()
