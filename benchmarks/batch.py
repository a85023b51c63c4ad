"""Does a batch keep up with its model, stay small, resume at once, survive being killed, and grow with machines?

throughput: PNG tiles of 128 px through a U-Net. Rates of one process for decoding alone and for the forward pass alone
(the tiles through the same back end; and, to say what larger batches would give on this machine, 4, 16 and 64 at once),
of two such processes at the same time, then `medae batch run` with one and with two workers, from the first outcome to
the last; which stage binds.
memory: peak of all processes together (proportional set size) at 2,000 and at 200,000 cases of a nearly free model;
then how long the finished batch takes to say so. plan: a list of 1,000,000 cases. kills: SIGKILL to a random process of
the batch (parent or worker) at random moments, again and again, until so many have hit; the results must be those of a
run that nobody disturbed. ray: a cluster of two nodes of one core against the local engine with one worker.

What is measured is a line in results.jsonl as soon as it is; with --work, a second call goes on where the first ended.

    python -m benchmarks.batch throughput|memory|plan|kills|ray [--scale 1.0] [--work FOLDER]
"""

import argparse
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.batch_kills import kills
from benchmarks.batch_parts import BATCH, Book, Clock, package, tiles
from benchmarks.batch_ray import ray
from benchmarks.models import table, untrained
from medae.backends.torch import TorchBackend, keep_heap
from medae.batch import results
from medae.batch.folder import Folder
from medae.batch.item import Item
from medae.batch.manifest import Listing
from medae.batch.plan import write_plan
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from medae.batch.work import decode
from medae.image import Image
from medae.networks import DnCNNSettings
from medae.package import load
from medae.predictor import prepare
from medae.tasks import Restoration


def throughput(folder: Path, scale: float, book: Book) -> None:
    count = int(20_000 * scale)
    model, source = package(folder / "model", (16, 32, 64, 128)), tiles(folder / "in", count)
    paths = sorted(source.iterdir())[:300]
    keep_heap()
    book.once("decode", lambda: {"rate": _rate(lambda: [decode(Item(p.stem, (p,))) for p in paths], len(paths))})
    alone = book.once("forward", lambda: forward_rates(model, paths[:100]))["1"]
    both = book.once("two forwards at once", lambda: {"rate": _two_forwards(model, paths[:100])})["rate"]
    for workers, cases in ((2, source), (1, tiles(folder / "few", count // 5))):
        out = folder / f"out{workers}"

        def measure(cases: Path = cases, out: Path = out, workers: int = workers) -> dict[str, Any]:
            settings = BatchSettings(packages=(str(model),), inputs=(str(cases),), out=out, workers=workers)
            clock, start = Clock(), time.perf_counter()
            run(settings, clock)
            return {"cases": len(clock.times), "rate": clock.rate, "whole": time.perf_counter() - start}

        rate = book.once(f"{workers} workers", measure)["rate"]
        most = both if workers == 2 else alone
        print(f"{workers} workers / one forward {rate / alone:.3f}, / {workers} at once {rate / most:.3f}")
    print(stages(folder / "out2"))


def _ready(model: Path, paths: Sequence[Path]) -> tuple[TorchBackend, Any]:
    made = load(model)
    images = [decode(Item(path.stem, (path,))).image for path in paths]
    ready = [prepare(made.card, image).image.pixels[:, 0][None] for image in images if isinstance(image, Image)]
    return TorchBackend.from_package(made, "cpu"), np.concatenate(ready)


def forward_rates(model: Path, paths: Sequence[Path]) -> dict[str, float]:
    """Tiles a second of the network alone, by batch; 1 is what the back end does on a CPU."""
    import torch

    backend, ready = _ready(model, paths)
    rates = {"1": _rate(lambda: [backend.run(tile[None]) for tile in ready], len(ready))}
    torch.set_num_threads(1)
    for batch in (4, 16, 64):
        pieces = [torch.from_numpy(ready[at : at + batch]) for at in range(0, len(ready), batch)]

        def forward(pieces: Sequence[Any] = pieces) -> None:
            with torch.inference_mode():
                for piece in pieces:
                    backend._network(piece)

        rates[str(batch)] = _rate(forward, len(ready))
    return rates


def _two_forwards(model: Path, paths: Sequence[Path]) -> float:
    """Tiles a second of two processes together, as the cores share caches and memory."""
    at = time.time() + 10
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return sum(pool.map(forward_from, [(model, paths, at)] * 2))


def forward_from(given: tuple[Path, Sequence[Path], float]) -> float:
    """Of one process, in 8 s from a moment on."""
    model, paths, at = given
    keep_heap()
    backend, ready = _ready(model, paths)
    while time.time() < at:
        backend.run(ready[:1])
    done, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < 8:
        backend.run(ready[done % len(ready)][None])
        done += 1
    return done / took


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


def memory(folder: Path, scale: float, book: Book) -> None:
    model, source = folder / "model", tiles(folder / "in", 100, side=16)
    if not model.exists():
        untrained(Restoration(), DnCNNSettings(depth=2, features=2), 3).save(model)
    peaks = {}
    for count in (2_000, int(200_000 * scale), int(100_000 * scale)):
        cases = folder / f"{count}.csv"
        cases.write_text("id,path\n" + "".join(f"c{n:07d},{source}/t{n % 100:06d}.png\n" for n in range(count)))
        command = [*BATCH, str(model), str(cases), "--out", str(folder / f"o{count}"), "--output", "table"]
        found = book.once(f"{count} cases", lambda command=command: peak([*command, "--workers", "2"]))  # type: ignore[misc]
        peaks[count] = found["peak_mib"]
        book.once(f"{count} cases, finished before", lambda command=command: peak(command))  # type: ignore[misc]
    print(f"peak at {max(peaks)} / at 2000: {peaks[max(peaks)] / peaks[2_000]:.3f}")


def peak(command: Sequence[str]) -> dict[str, float]:
    """The most that a command and its children hold together (shared pages count once), its time, and their CPU."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
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
        time.sleep(0.5)
    if process.returncode:
        raise SystemExit(f"the batch ended with {process.returncode}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
    return {"peak_mib": most / 2**20, "seconds": time.perf_counter() - start, "cpu": cpu}


def plan(folder: Path, scale: float, book: Book) -> None:
    count = int(1_000_000 * scale)
    cases = folder / "cases.csv"
    with cases.open("w") as file:
        file.write("id,path,patient\n")
        file.writelines(f"case-{n:07d},/archive/site-{n % 17}/scan-{n:07d}.dcm,p{n // 5}\n" for n in range(count))

    def measure() -> dict[str, Any]:
        start, cpu = time.perf_counter(), time.process_time()
        made = write_plan(Listing([str(cases)]), folder / "plan.parquet")
        return {
            "rows": made.count,
            "seconds": time.perf_counter() - start,
            "cpu": time.process_time() - cpu,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
            "on_disk_mib": made.path.stat().st_size / 2**20,
        }

    book.once("plan", measure)


@contextmanager
def kept(work: Path | None) -> Iterator[Path]:
    if work is not None:
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    questions = {"throughput": throughput, "memory": memory, "plan": plan, "kills": kills, "ray": ray}
    parser.add_argument("question", choices=questions)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of cases")
    parser.add_argument("--work", type=Path, help="a folder to keep, and to go on in")
    arguments = parser.parse_args()
    with kept(arguments.work) as folder:
        questions[arguments.question](folder, arguments.scale, Book(folder))


if __name__ == "__main__":
    main()
