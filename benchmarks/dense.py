"""Does a dense autoencoder find the principal components, go beyond them, and gain by layer-wise training?

On scikit-learn's digits (8 x 8), 1437 to train and 360 to test: a linear code of 16 beside the 16 principal components
(test error, and the largest angle between the two planes), a non-linear one of the same length, and deep ones that are
trained end to end or layer by layer first: at equal steps in all, of which the stages take a tenth, and at equal steps
of the whole network, the stages' before them.

    python -m benchmarks.dense [--only components layers] [--deep "tanh, batch norm"] [--json results.jsonl]
    python -m benchmarks.dense --figure docs/pictures/digits.png
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from benchmarks.models import table
from medae.experiment import TrainingSettings
from medae.networks import DenseAutoencoderSettings, StackedAutoencoder
from medae.training.layer_wise import phase_at, stage_loss
from medae.training.loop import learning_rate

SEEDS = (0, 1, 2)
CODE = 16
WIDTHS = (128, 64, 32, 10)
DEEP: dict[str, dict[str, Any]] = {
    "tanh, batch norm": {"activation": "tanh", "norm": "batch"},
    "relu, batch norm": {"activation": "relu", "norm": "batch"},
    "tanh": {"activation": "tanh"},
    "sigmoid": {"activation": "sigmoid"},
}
STEPS = 12_000
WAYS = {"end to end": (0.0, STEPS), "equal steps": (0.1, STEPS), "equal fine-tuning": (0.2, STEPS * 5 // 4)}
"""Part of the steps that goes through the four stages, and steps in all."""
BATCH = 64


def digits() -> tuple[Tensor, Tensor]:
    """(N, 1, 8, 8) in 0..1: to train, to test."""
    from sklearn.datasets import load_digits

    images = torch.from_numpy(load_digits().images / 16)[:, None]
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
    return images[order[:1437]], images[order[1437:]]


def components(train: Tensor) -> Any:
    """The principal components of the training images."""
    from sklearn.decomposition import PCA

    return PCA(CODE).fit(train.flatten(1).numpy())


def of_components(pca: Any, images: Tensor) -> Tensor:
    """What they rebuild."""
    rebuilt = pca.inverse_transform(pca.transform(images.flatten(1).numpy()))
    return torch.from_numpy(rebuilt).view(images.shape)


def network(seed: int, **settings: Any) -> StackedAutoencoder:
    """Untrained, in double precision."""
    torch.manual_seed(seed)
    return DenseAutoencoderSettings(size=(8, 8), **settings).build(1, 1).double()


def linear(train: Tensor, seed: int, *, tied: bool, iterations: int = 1000) -> StackedAutoencoder:
    """A linear code, to its optimum (L-BFGS on all images: how it gets there is not the question)."""
    net = network(seed, widths=(CODE,), activation="linear", tied=tied)
    optimiser = torch.optim.LBFGS(
        net.parameters(),
        max_iter=iterations,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-9,
        tolerance_change=1e-13,
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (net(train) - train).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return net


def trained(
    train: Tensor, seed: int, layer_wise: float = 0.0, steps: int = 800, **settings: Any
) -> tuple[StackedAutoencoder, list[float]]:
    """By AdamW, with the schedule and the phases of `medae train`; and the loss of every step."""
    net = network(seed, **settings)
    schedule = TrainingSettings(steps=steps, learning_rate=0.003)
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=schedule.weight_decay)
    chance = torch.Generator().manual_seed(seed)
    losses = []
    for step in range(steps):
        phase = phase_at(step / steps, layer_wise, len(net.stages))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(schedule, phase.progress)
        x = train[torch.randint(len(train), (BATCH,), generator=chance)]
        loss = (net(x) - x).square().mean() if phase.stage is None else stage_loss(net.train(), phase.stage, x, x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return net.eval(), losses


def error(rebuild: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Mean squared, of a value in 0..1."""
    with torch.no_grad():
        return (rebuild(images) - images).square().mean().item()


def angle(net: StackedAutoencoder, pca: Any) -> float:
    """Largest principal angle between the decoder's plane and that of the components, degrees."""
    from scipy.linalg import subspace_angles

    with torch.no_grad():
        units = torch.eye(CODE, dtype=torch.float64).view(CODE, CODE, 1, 1)
        plane: NDArray[Any] = (net.decoder(units) - net.decoder(0 * units)).flatten(1).numpy()
    return float(np.degrees(subspace_angles(plane.T, pca.components_.T)).max())


def monotone(losses: list[float], share: float, stages: int) -> bool:
    """Whether each stage's loss, in fifths of the stage, only falls."""
    length = int(len(losses) * share / stages)
    fifths = (
        np.reshape(losses[: length * stages], (stages, length))[:, : length // 5 * 5].reshape(stages, 5, -1).mean(2)
    )
    return bool((np.diff(fifths) < 0).all())


def figure(rows: list[Tensor], path: Path) -> None:
    """Images above what was rebuilt of them, a grey line between two, four pixels a pixel."""
    from PIL import Image as Pillow

    framed = [functional.pad(row[:, 0].clamp(0, 1), (1, 1, 1, 1), value=0.5) for row in rows]
    grid = torch.cat([torch.cat(list(row), 1) for row in framed])
    grey = np.kron((255 * grid.numpy()).round().astype(np.uint8), np.ones((4, 4), np.uint8))
    Pillow.fromarray(grey).save(path, optimize=True)


def of_components_rows(train: Tensor, test: Tensor) -> list[tuple[object, ...]]:
    """Errors of codes of 16 beside that of the components, which comes first."""
    pca = components(train)
    floor = error(lambda x: of_components(pca, x), test)
    rows: list[tuple[object, ...]] = [("16 principal components", f"{floor:.5f}", "1.0000", "")]
    for tied in (True, False):
        nets = [linear(train, seed, tied=tied) for seed in SEEDS]
        errors, angles = [error(net, test) for net in nets], [angle(net, pca) for net in nets]
        name = f"linear, {'tied' if tied else 'free'}"
        rows.append((name, f"{np.mean(errors):.5f}", f"{np.mean(errors) / floor:.4f}", f"{max(angles):.2f}"))
    wide = [trained(train, seed, widths=(128, CODE))[0] for seed in SEEDS]
    errors = [error(net, test) for net in wide]
    rows.append(("non-linear, 64-128-16", f"{np.mean(errors):.5f}", f"{np.mean(errors) / floor:.4f}", ""))
    return rows


def layers(
    train: Tensor, test: Tensor, names: list[str], seeds: list[int], path: Path | None
) -> list[tuple[object, ...]]:
    """Each deep network in each of the ways, means over the seeds."""
    rows: list[tuple[object, ...]] = []
    for name in names:
        means: dict[str, list[float]] = {}
        for way, (share, steps) in WAYS.items():
            found = []
            for seed in seeds:
                net, losses = trained(train, seed, share, steps, widths=WIDTHS, **DEEP[name])
                falls = share == 0 or monotone(losses, share, len(net.stages))
                found.append((error(net, train), error(net, test), falls))
                line = {"network": name, "way": way, "seed": seed, "train": found[-1][0], "test": found[-1][1]}
                if path:
                    with path.open("a") as file:
                        file.write(json.dumps(line | {"monotone": falls}) + "\n")
            means[way] = [float(np.mean([one[which] for one in found])) for which in (0, 1)]
            ratios = [f"{mine / whole:.3f}" for mine, whole in zip(means[way], means["end to end"], strict=True)]
            falling = f"{sum(one[2] for one in found)} of {len(found)}" if share else ""
            rows.append((name, way, steps, *(f"{value:.5f}" for value in means[way]), *ratios, falling))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--figure",
        type=Path,
        help="only draw: digits, what the components and what the non-linear code rebuild of them, as a PNG",
    )
    parser.add_argument("--only", choices=("components", "layers"), nargs="+", default=["components", "layers"])
    parser.add_argument("--deep", choices=list(DEEP), nargs="+", default=list(DEEP), help="of the deep networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the deep trainings")
    parser.add_argument("--json", type=Path, help="also append the numbers of each deep training here, a line each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, test = digits()
    if arguments.figure:
        shown, (net, _) = test[:14], trained(train, 0, widths=(128, CODE))
        with torch.no_grad():
            figure([shown, of_components(components(train), shown), net(shown)], arguments.figure)
        return
    if "components" in arguments.only:
        head = ("code of 16", "test error", "of the components'", "largest angle, degrees")
        print(table(head, of_components_rows(train, test)), "\n", flush=True)
    if "layers" in arguments.only:
        head = ("64-128-64-32-10", "way", "steps", "training error", "test error", "ratio", "ratio", "stages monotone")
        print(table(head, layers(train, test, arguments.deep, arguments.seeds, arguments.json)))


if __name__ == "__main__":
    main()
