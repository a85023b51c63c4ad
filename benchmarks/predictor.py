"""Is tiled inference exact, and how much does it cost beside the pure forward pass of the same tiles?

On a 2048 x 2048 picture, for every network kind with batch norm at its default settings (random weights) and for the
demo's models where a folder of them is given: planned pixels / the image's; largest difference from inference on the
whole image / range of that; time of Predictor / time of the planned tiles through the same back end, interleaved in
one process, medians, by wall and by the process's CPU clock (which other processes disturb less); and whether tiles
alone and four at a time give equal bits.

    python -m benchmarks.predictor [--models demo/models]
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.models import table, untrained
from medae.backends.torch import TorchBackend, keep_heap
from medae.data.samples import retina, stained_tissue
from medae.image import Image
from medae.io.answer import Label
from medae.networks import ConvAutoencoderSettings, DnCNNSettings, SegNetSettings, UNetSettings, VAESettings
from medae.package import ModelPackage, load
from medae.predictor import Prediction, Predictor, prepare
from medae.tasks import Anomaly, Restoration, Segmentation
from medae.tiles import plan_tiles, read_tile

SIDE = 2048
WHOLE = SIDE * SIDE
SMALL = 640 * 640
"""So many pixels a tile when the batch is varied: more than four tiles, the last batch not full."""


@dataclass(frozen=True)
class Result:
    """One model on the picture."""

    name: str
    planned: float
    """Pixels the network sees / pixels of the image."""
    difference: float
    """Largest one from inference on the whole image / range."""
    wall: float
    """Predictor / pure forward of its tiles."""
    cpu: float
    """The same by CPU time."""
    forward_seconds: float
    """Wall of the pure forward."""
    same_bits: bool


def picture(channels: int = 3) -> Image:
    """Tissue mirrored to fill the upper half, retina the lower one; one channel of it where grey is wanted."""
    half = SIDE // 2
    tissue, eye = (np.asarray(image.pixels[:, 0]) for image in (stained_tissue(), retina()))
    pair = np.concatenate([tissue, tissue[:, :, ::-1]], 2)
    upper = np.concatenate([pair, pair[:, ::-1]], 1)
    halves = [np.tile(upper, (1, 1, 2)), np.tile(eye[:, 180 : 180 + half, 180 : 180 + half], (1, 1, 2))]
    rgb = np.moveaxis(np.concatenate(halves, 1), 0, 2)
    assert rgb.shape == (SIDE, SIDE, 3)
    image = Image.from_picture(np.ascontiguousarray(rgb))
    return image if channels == 3 else image.with_pixels(image.pixels[1:2])


def packages(models: Path | None) -> Iterator[tuple[str, ModelPackage]]:
    """Every kind at its defaults with a task that fits it, then the demo's."""
    cells = Segmentation(labels=tuple(Label(name=name, colour=(255, 0, 0)) for name in ("nucleus", "stroma")))
    tasks = {
        UNetSettings(): cells,
        SegNetSettings(): cells,
        ConvAutoencoderSettings(): Restoration(),
        DnCNNSettings(): Restoration(),
        VAESettings(): Anomaly(),
    }
    for network, task in tasks.items():
        yield f"{network.kind} (defaults)", untrained(task, network, 3)
    if models is not None:
        for folder in sorted(models.glob("*/package")):
            yield folder.parent.name, load(folder)


def measure(name: str, package: ModelPackage, repeats: int) -> Result:
    """One model, on the CPU and one thread."""
    image = picture(package.card.channels_in)
    backend = TorchBackend.from_package(package, "cpu")
    plan = plan_tiles(image.geometry.shape, package.card.receptive_field)
    wall, cpu, seconds = _cost(Predictor(package, backend=backend), backend, image, repeats)
    difference, same = _difference(package, backend, image), _same_bits(package, image)
    return Result(name, plan.voxels / WHOLE, difference, wall, cpu, seconds, same)


def _cost(predictor: Predictor, backend: TorchBackend, image: Image, repeats: int) -> tuple[float, float, float]:
    """(wall ratio, CPU ratio, seconds of the pure forward): medians of interleaved calls."""
    card = predictor.package.card
    pixels = prepare(card, image).image.pixels
    plan = plan_tiles(image.geometry.shape, card.receptive_field)
    tiles = [np.array(read_tile(pixels, tile.window)[None, :, 0]) for tile in plan.tiles]

    def forward() -> None:
        for tile in tiles:
            backend.run(tile)

    calls = [(_times(lambda: predictor(image)), _times(forward)) for _ in range(repeats + 1)]
    calls = calls[1:]  # the first warms caches and heap
    wall, cpu = (median(whole[n] for whole, _ in calls) / median(pure[n] for _, pure in calls) for n in (0, 1))
    return wall, cpu, median(pure[0] for _, pure in calls)


def _times(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _difference(package: ModelPackage, backend: TorchBackend, image: Image) -> float:
    tiled = values(Predictor(package, backend=backend)(image, probabilities=labelled(package)))
    whole = values(Predictor(package, backend=backend, tile_voxels=WHOLE)(image, probabilities=labelled(package)))
    return float(np.abs(tiled - whole).max() / np.ptp(whole))


def _same_bits(package: ModelPackage, image: Image) -> bool:
    answers = []
    for size in (1, 4):
        backend = TorchBackend.from_package(package, "cpu")
        backend.batch = size
        predictor = Predictor(package, backend=backend, tile_voxels=SMALL)
        answers.append(values(predictor(image, probabilities=labelled(package))))
    return bool(np.array_equal(*answers))


def labelled(package: ModelPackage) -> bool:
    return isinstance(package.card.task, Segmentation)


def values(prediction: Prediction) -> NDArray[np.float32]:
    """What is not rounded to labels."""
    return (prediction.probabilities or prediction.image).pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="the demo's models, as `medae demo` leaves them: demo/models")
    parser.add_argument("--only", default="", help="models whose name holds this")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    keep_heap()
    chosen = [(name, package) for name, package in packages(arguments.models) if arguments.only in name]
    found = [measure(name, package, arguments.repeats) for name, package in chosen]
    rows = [
        (one.name, one.planned, f"{one.difference:.1e}", one.wall, one.cpu, one.forward_seconds, one.same_bits)
        for one in found
    ]
    columns = ("model", "planned / image", "difference / range", "wall", "CPU", "forward, s", "same bits")
    print(table(columns, rows))
    print(f"\n{os.cpu_count()} cores, one thread, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
