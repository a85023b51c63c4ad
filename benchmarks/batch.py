"""Does a batch keep up with its model, stay small, resume at once, and survive being killed?

throughput: PNG tiles of 128 px through a U-Net. Rates of one process for decoding alone and for the forward pass alone
(the tiles through the same back end; and, to say what larger batches would give on this machine, 4, 16 and 64 at once),
then `medae batch run` with one and with two workers, from the first outcome to the last; which stage binds.
memory: peak of all processes together (proportional set size) at 2,000 and at 200,000 cases of a nearly free model;
then how long the finished batch takes to say so. plan: a list of 1,000,000 cases. kills: SIGKILL to a random process of
the batch (parent or worker) at random moments, again and again, until so many have hit; the results must be those of a
run that nobody disturbed.

    python -m benchmarks.batch throughput|memory|plan|kills [--scale 1.0]
"""

import argparse
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image as Pillow

from benchmarks.models import table, untrained
from medae.backends.torch import TorchBackend, keep_heap
from medae.batch import results
from medae.batch.folder import Folder
from medae.batch.manifest import Item, Listing
from medae.batch.plan import write_plan
from medae.batch.run import RESERVE, run
from medae.batch.settings import BatchSettings
from medae.batch.work import Outcome, decode
from medae.data.samples import stained_tissue
from medae.image import Image
from medae.io.answer import Label
from medae.networks import UNetSettings
from medae.predictor import prepare
from medae.tasks import Segmentation

SIDE = 128
SEED = 0


class Clock:
    """Notes when each case was done."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.begun = 0.0

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
    untrained(task, UNetSettings(kind="unet", features=tuple(features), strides=strides), channels).save(folder)
    return folder


def tiles(folder: Path, count: int, side: int = SIDE) -> Path:
    """PNG tiles cut at random places of stained tissue."""
    folder.mkdir()
    rng = np.random.default_rng(SEED)
    pixels = np.moveaxis(stained_tissue().pixels[:, 0], 0, -1)
    for number in range(count):
        row, column = (int(rng.integers(0, length - side)) for length in pixels.shape[:2])
        tile = pixels[row : row + side, column : column + side]
        Pillow.fromarray(tile).save(folder / f"t{number:06d}.png", compress_level=1)
    return folder


def throughput(folder: Path, scale: float) -> None:
    count = int(20_000 * scale)
    model, source = package(folder / "model", (16, 32, 64, 128)), tiles(folder / "in", count)
    paths = sorted(source.iterdir())[:300]
    decoding = _rate(lambda: [decode(Item(path.stem, (path,))) for path in paths], len(paths))
    print(f"decode alone: {decoding:.0f} tiles/s")
    keep_heap()
    forward = forward_rates(model, paths[:150])
    rows = []
    for workers in (1, 2):
        settings = BatchSettings(
            packages=(str(model),), inputs=(str(source),), out=folder / f"out{workers}", workers=workers
        )
        clock, start = Clock(), time.perf_counter()
        run(settings, clock)
        wall = time.perf_counter() - start
        ratio = clock.rate / forward[1]
        rows.append((workers, f"{clock.rate:.1f}", f"{count / wall:.1f}", ratio, clock.rate / (workers * forward[1])))
        print(rows[-1], flush=True)
    again = forward_rates(model, paths[:150])
    print(f"forward before and after: {forward[1]:.1f}, {again[1]:.1f} tiles/s")
    print(table(("workers", "tiles/s", "with start and table", "/ forward", "/ (workers x forward)"), rows))
    print(stages(folder / "out2"))


def forward_rates(model: Path, paths: Sequence[Path]) -> dict[int, float]:
    """Tiles a second of the network alone, by batch; 1 is what the back end does on a CPU."""
    import torch

    from medae.package import load

    package = load(model)
    backend = TorchBackend.from_package(package, "cpu")
    images = [decode(Item(path.stem, (path,))).image for path in paths]
    ready = np.concatenate(
        [prepare(package.card, image).image.pixels[:, 0][None] for image in images if isinstance(image, Image)]
    )
    rates = {1: _rate(lambda: [backend.run(tile[None]) for tile in ready], len(ready))}
    torch.set_num_threads(1)
    for batch in (4, 16, 64):
        pieces = [torch.from_numpy(ready[at : at + batch]) for at in range(0, len(ready), batch)]

        def forward(pieces: Sequence[Any] = pieces) -> None:
            with torch.inference_mode():
                for piece in pieces:
                    backend._network(piece)

        rates[batch] = _rate(forward, len(ready))
    print("forward alone:", {batch: round(rate, 1) for batch, rate in rates.items()}, "tiles/s by batch", flush=True)
    return rates


def _rate(call: Callable[[], Any], count: int) -> float:
    call()
    best = float("inf")
    for _ in range(2):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return count / best


def stages(out: Path) -> str:
    rows = results.read(Folder(out)).to_table().to_pandas()
    names = [name for name in rows.columns if name.startswith("seconds_")]
    return table(("stage", "ms a tile"), [(name.removeprefix("seconds_"), 1000 * rows[name].mean()) for name in names])


def memory(folder: Path, scale: float) -> None:
    model, source = package(folder / "model", (2, 4)), tiles(folder / "in", 100, side=16)
    peaks = {}
    for count in (2_000, int(200_000 * scale)):
        cases = folder / f"{count}.csv"
        cases.write_text("id,path\n" + "".join(f"c{n:07d},{source}/t{n % 100:06d}.png\n" for n in range(count)))
        command = [
            sys.executable,
            "-m",
            "medae",
            "batch",
            "run",
            str(model),
            str(cases),
            "--out",
            str(folder / f"o{count}"),
        ]
        start = time.perf_counter()
        peaks[count] = peak([*command, "--output", "table", "--workers", "2"])
        wall = time.perf_counter() - start
        print(f"{count} cases: peak {peaks[count] / 2**20:.0f} MiB, {count / wall:.0f} cases/s", flush=True)
        start = time.perf_counter()
        subprocess.run([*command, "--output", "table"], check=True, stderr=subprocess.DEVNULL)
        print(f"{count} cases, finished before: said in {time.perf_counter() - start:.1f} s", flush=True)
    small, large = peaks.values()
    print(f"peak at {int(200_000 * scale)} / at 2000: {large / small:.3f}")


def peak(command: Sequence[str]) -> int:
    """The most bytes that a command and its children hold together; shared pages count once."""
    process = psutil.Popen(command, stderr=subprocess.DEVNULL)
    most = 0
    while process.poll() is None:
        total = 0
        for one in (process, *process.children(recursive=True)):
            try:
                total += one.memory_full_info().pss
            except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
                continue
        most = max(most, total)
        time.sleep(0.25)
    if process.returncode:
        raise SystemExit(f"the batch ended with {process.returncode}")
    return most


def plan(folder: Path, scale: float) -> None:
    count = int(1_000_000 * scale)
    cases = folder / "cases.csv"
    with cases.open("w") as file:
        file.write("id,path,patient\n")
        file.writelines(f"case-{n:07d},/archive/site-{n % 17}/scan-{n:07d}.dcm,p{n // 5}\n" for n in range(count))
    start = time.perf_counter()
    made = write_plan(Listing([str(cases)]), folder / "plan.parquet")
    seconds = time.perf_counter() - start
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    size = made.path.stat().st_size >> 20
    print(f"{made.count} rows planned in {seconds:.1f} s, peak {held:.0f} MiB of the process, {size} MiB on disk")


def kills(folder: Path, scale: float) -> None:
    hits, count = int(50 * scale), 1500
    model, source = package(folder / "model", (4, 8, 16)), tiles(folder / "in", count)
    (source / "t000007.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "medae", "batch", "run", str(model), str(source), "--workers", "2"]
    subprocess.run([*command, "--out", str(folder / "whole")], stderr=subprocess.DEVNULL, check=False)
    rng, rounds, hit, lost, at_most = random.Random(SEED), 0, {"parent": 0, "worker": 0}, [], 256
    while sum(hit.values()) < hits:
        rounds += 1
        out = folder / f"killed{rounds}"
        while not disturbed(command, out, rng, hit, lost, hits):
            pass
        same = everything(out) == everything(folder / "whole")
        print(f"round {rounds}: {hit}, the same: {same}", flush=True)
        if not same:
            raise SystemExit("results differ")
    print(f"{hit} killed in {rounds} batches of {count} cases")
    print(f"answers lost a kill: {max(lost)} at most, {np.mean(lost):.1f} on average; {at_most} are allowed")


def disturbed(
    command: Sequence[str], out: Path, rng: random.Random, hit: dict[str, int], lost: list[int], hits: int
) -> bool:
    """One run that is hit at random moments; whether it came to its end. lost: answers that were not committed."""
    process = psutil.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    struck = 0
    while process.poll() is None:
        time.sleep(rng.uniform(0.3, 4.0))
        if sum(hit.values()) >= hits:
            process.wait()
            break
        try:
            children = process.children()
            victim = rng.choice([process, *children])
            victim.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, IndexError):
            continue
        hit["parent" if victim.pid == process.pid else "worker"] += 1
        struck += 1
        if victim.pid == process.pid:
            process.wait()
            psutil.wait_procs(children, timeout=30)
            left = [path for path in (out / ".batch" / "staging").glob("*/*") if path.name != RESERVE]
            lost.append(-(-len(left) // max(struck, 1)))
            return False
    return process.wait() in (0, 3)


def everything(out: Path) -> tuple[Any, dict[str, bytes]]:
    rows = results.read(Folder(out)).to_table().to_pylist()
    rows = [{name: value for name, value in row.items() if not name.startswith("seconds_")} for row in rows]
    return rows, {path.name: path.read_bytes() for path in sorted((out / "answers").rglob("*.png"))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = {"throughput": throughput, "memory": memory, "plan": plan, "kills": kills}
    parser.add_argument("question", choices=questions)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of cases")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        questions[arguments.question](Path(folder), arguments.scale)


if __name__ == "__main__":
    main()
