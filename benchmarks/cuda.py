"""What does a CUDA device bring? Predictor beside the plain loop over its tiles, answers beside the CPU's, training.

One training step of SegNet and of a U-Net of the same widths: time and peak of the device's memory, in bfloat16 and in
float32. Then, on a 2048 x 2048 picture, for every network kind at its defaults (random weights): time of the Predictor
and of a plain loop over the same tiles, prepared already (bfloat16, channels last, as many tiles at once as the
Predictor takes), interleaved in one process, medians; and how far the answer is from the CPU's.

    python -m benchmarks.cuda [--repeats 7] [--steps 30]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from benchmarks.models import table
from benchmarks.nuclei import NETWORKS
from benchmarks.predictor import labelled, packages, picture, values
from medae.backends.torch import TorchBackend, choose_device
from medae.networks import NetworkConfig
from medae.networks.base import run as run_network
from medae.objectives import DiceCE, Loss
from medae.package import ModelPackage
from medae.predictor import Predictor, prepare
from medae.tiles import plan_tiles, read_tile

BATCH, PATCH = 8, 256
"""Of a training step."""


def seconds(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def plain(network: torch.nn.Module, tiles: NDArray[np.float32], batch: int) -> None:
    """What anybody would write."""
    for start in range(0, len(tiles), batch):
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
            x = torch.from_numpy(tiles[start : start + batch]).to("cuda", memory_format=torch.channels_last)
            network(x).float().cpu()


def throughput(name: str, package: ModelPackage, repeats: int) -> tuple[object, ...]:
    """One row: tiles, milliseconds of both, their ratio, pixels a second."""
    image, card = picture(package.card.channels_in), package.card
    pixels = prepare(card, image).image.pixels
    plan = plan_tiles(image.geometry.shape, card.receptive_field)
    tiles = np.stack([read_tile(pixels, tile.window)[:, 0] for tile in plan.tiles])
    backend = TorchBackend.from_package(package, "cuda")
    predictor, network = Predictor(package, backend=backend), backend._network
    calls = [
        (seconds(lambda: predictor(image)), seconds(lambda: plain(network, tiles, backend.batch)))
        for _ in range(repeats + 2)
    ][2:]  # the first ones choose algorithms and fill caches
    whole, bare = (median(call[n] for call in calls) for n in (0, 1))
    rate = np.prod(image.geometry.shape) / whole / 1e6
    return name, len(tiles), f"{1e3 * whole:.1f}", f"{1e3 * bare:.1f}", f"{whole / bare:.2f}", f"{rate:.1f}"


def aside(name: str, package: ModelPackage) -> tuple[object, ...]:
    """One row: the answer's largest and root-mean-square difference from the CPU's, of its range."""
    image = picture(package.card.channels_in)
    answers = [
        values(Predictor(package, device=device)(image, probabilities=labelled(package))).astype(np.float64)
        for device in ("cuda", "cpu")
    ]
    apart, span = np.abs(answers[0] - answers[1]), float(np.ptp(answers[1]))
    return name, f"{apart.max() / span:.1e}", f"{np.sqrt(np.square(apart).mean()) / span:.1e}"


def steps(kind: str, precise: bool, count: int) -> tuple[float, float]:
    """(milliseconds of a training step, MiB at the peak beyond weights and optimiser)."""
    torch.manual_seed(0)
    net = TypeAdapter(NetworkConfig).validate_python(NETWORKS[kind]).build(3, 2).cuda()
    net = net.to(memory_format=torch.channels_last)
    optimiser, loss = torch.optim.AdamW(net.parameters()), Loss([DiceCE()])
    x = torch.rand(BATCH, 3, PATCH, PATCH, device="cuda").to(memory_format=torch.channels_last)
    target = torch.randint(0, 2, (BATCH, 1, PATCH, PATCH), device="cuda")

    def step() -> None:
        optimiser.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=not precise):
            output = run_network(net, x)
        loss(output, target, 0.0)[0].backward()
        optimiser.step()

    for _ in range(5):
        step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    found = [seconds(step) for _ in range(count)]
    return 1e3 * median(found), (torch.cuda.max_memory_allocated() - before) / 2**20


def training(count: int) -> Iterator[tuple[Any, ...]]:
    for kind in NETWORKS:
        for precise in (False, True):
            milliseconds, peak = steps(kind, precise, count)
            yield kind, "float32" if precise else "bfloat16", f"{milliseconds:.2f}", f"{peak:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    choose_device("cuda")  # says so where there is none
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "\n")
    print(table(("network", "in", "step, ms", "peak, MiB"), list(training(arguments.steps))), "\n", flush=True)
    models = list(packages(None))
    head = ("model", "tiles", "Predictor, ms", "plain loop, ms", "ratio", "Mpixel/s")
    print(table(head, [throughput(name, package, arguments.repeats) for name, package in models]), "\n", flush=True)
    head = ("model", "largest difference", "root mean square")
    print(table(head, [aside(name, package) for name, package in models]))


if __name__ == "__main__":
    main()
