"""What the benchmarks of the batch share: a notebook, a watch, a model and tiles."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from benchmarks.models import untrained
from medae.batch.work import Outcome
from medae.data.samples import stained_tissue
from medae.io.answer import Label
from medae.networks import UNetSettings
from medae.tasks import Segmentation

SIDE = 128
SEED = 0
BATCH = [sys.executable, "-m", "medae", "batch", "run"]


class Book:
    """What was measured, a line each."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "results.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def once(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What an earlier call has measured, or what `measure` finds now."""
        found = next((line for line in self.lines if line["name"] == name), None)
        if found is None:
            found = {"name": name, **measure()}
            self.lines.append(found)
            with self._path.open("a") as file:
                file.write(json.dumps(found) + "\n")
        print(", ".join(f"{key} {_short(value)}" for key, value in found.items()), flush=True)
        return found


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Clock:
    """Notes when each case was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def begin(self, total: int, before: int) -> None:
        self.begun = time.perf_counter()

    def see(self, outcomes: Sequence[Outcome]) -> None:
        self.times.append(time.perf_counter())

    @property
    def rate(self) -> float:
        """Cases a second between the first outcome and the last: without the start of the workers."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def package(folder: Path, features: Sequence[int], channels: int = 3) -> Path:
    task = Segmentation(kind="segmentation", labels=(Label(name="nucleus", colour=(255, 0, 0)),))
    strides = (2,) * (len(features) - 1)
    if not folder.exists():
        untrained(task, UNetSettings(kind="unet", features=tuple(features), strides=strides), channels).save(folder)
    return folder


def tiles(folder: Path, count: int, side: int = SIDE) -> Path:
    """PNG tiles cut at random places of stained tissue."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(SEED)
    pixels = np.moveaxis(stained_tissue().pixels[:, 0], 0, -1)
    for number in range(count):
        row, column = (int(rng.integers(0, length - side)) for length in pixels.shape[:2])
        path = folder / f"t{number:06d}.png"
        if not path.exists():
            Pillow.fromarray(pixels[row : row + side, column : column + side]).save(path, compress_level=1)
    return folder
