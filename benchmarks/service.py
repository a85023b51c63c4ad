"""What does the service cost beside the work itself, and beside a service that one writes without medae?

256 x 256 RGB pictures of tissue (PNG), a U-Net of the demo, two workers with one thread each. In turn, several rounds:

- in-process: two processes decode, run the network and encode, in a loop. `bare`: medae's codecs around the network,
  no more; `whole`: what `medae predict` does, with planned tiles, scores and the summary; `by hand`: Pillow around the
  network as torch runs it (benchmarks/by_hand.py), with medae's settings of the allocator; `forward`: of that the
  network alone.
- service: `medae serve`, 32 clients at once, one picture a request; also 32 pictures a request (/v1/tiles).
- plain: FastAPI + uvicorn + Pillow + torch (benchmarks/plain.py), the same clients; `threads` is its `def` endpoint,
  `inline` its `async def` one.

The processor time a picture takes (of all the server's processes, without the client's) is disturbed less than the rate
where the machine has other work.

Then latency at 70 % of the service's rate, and that of its health while a large volume runs in every worker.

    python -m benchmarks.service [--package runs/nuclei-unet/package]
"""

import argparse
import asyncio
import gzip
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
from PIL import Image as Picture

from benchmarks import load
from benchmarks.models import table, trained, untrained
from benchmarks.servers import Server, medae_server, plain_server
from medae.data.samples import stained_tissue
from medae.networks import DnCNNSettings
from medae.package import ModelPackage
from medae.tasks import Restoration
from medae_service.launch import HUGE_PAGES

SIDE = 256
WORKERS = 2
AT_ONCE = 32
VOLUME = (96, 512, 512)


def pictures() -> list[bytes]:
    """Sixteen overlapping tiles of tissue as PNG, about 125 kB each."""
    pixels = np.moveaxis(np.asarray(stained_tissue().pixels[:, 0]), 0, 2)
    last = min(pixels.shape[:2]) - SIDE
    starts = np.linspace(0, last, 4, dtype=int)
    return [_png(pixels[row : row + SIDE, column : column + SIDE]) for row in starts for column in starts]


def _png(picture: Any) -> bytes:
    target = BytesIO()
    Picture.fromarray(np.ascontiguousarray(picture)).save(target, "PNG")
    return target.getvalue()


# in this machine's processes, without a service


def bare(package: ModelPackage) -> Callable[[bytes], object]:
    """Decode, forward, encode: no tiles, no geometry, no scores."""
    from medae.backends.torch import TorchBackend
    from medae.io import DEFAULT_LIMITS, png

    backend = TorchBackend.from_package(package, "cpu")

    def work(data: bytes) -> bytes:
        pixels, _ = png.decode(data, DEFAULT_LIMITS)
        x = np.moveaxis(pixels.astype(np.float32) / np.float32(255), 2, 0)[None]
        output = backend.run(np.ascontiguousarray(x))[0]
        return png.encode((output[1] > output[0]).astype(np.uint8), palette=[(0, 0, 0), (255, 210, 0)])

    return work


def whole(package: ModelPackage) -> Callable[[bytes], object]:
    """What the command line does for one file."""
    from medae.answers import answer_files, summary
    from medae.io import read_image
    from medae.predictor import Predictor

    predictor = Predictor(package, device="cpu")

    def work(data: bytes) -> object:
        image = read_image(data)
        prediction = predictor(image)
        files = answer_files(prediction, package, stem="image", original=image)
        return summary(prediction, id="image", files=files)

    return work


def by_hand(package: ModelPackage) -> Callable[[bytes], object]:
    """What one writes without medae."""
    from benchmarks.by_hand import answer, network

    return partial(answer, network(package))


def forward(package: ModelPackage) -> Callable[[bytes], object]:
    """The network alone, as torch runs it."""
    from benchmarks.by_hand import decoded, forward, network

    model = network(package)
    kept = {data: decoded(data) for data in pictures()}
    return lambda data: forward(model, kept[data])


WAYS = {"bare": bare, "whole": whole, "by hand": by_hand, "forward": forward}


class InProcess:
    """WORKERS processes with one thread each, started once."""

    def __init__(self, package: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends = []
        for _ in range(WORKERS):
            ours, its = context.Pipe()
            context.Process(target=_serve_loops, args=(package, its), daemon=True).start()
            self._ends.append(ours)
        for end in self._ends:
            end.recv()

    def rate(self, way: str, seconds: float) -> tuple[float, float]:
        """(pictures a second of all, processor milliseconds a picture)."""
        for end in self._ends:
            end.send((way, seconds))
        done = [end.recv() for end in self._ends]
        return sum(rate for rate, _ in done), sum(cpu for _, cpu in done) / WORKERS


def _serve_loops(folder: Path, end: Connection) -> None:
    from medae.backends.torch import keep_heap
    from medae.package import load as load_package

    keep_heap()
    package, data = load_package(folder), pictures()
    works = {name: way(package) for name, way in WAYS.items()}
    for work in works.values():
        for one in data:
            work(one)
    end.send("ready")
    while True:
        try:
            name, seconds = end.recv()
        except EOFError:  # the benchmark is over
            return
        begin, spent, done = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < seconds:
            works[name](data[done % len(data)])
            done += 1
        spent = time.process_time() - spent
        end.send((done / (time.perf_counter() - begin), 1000 * spent / done))


# over HTTP


def throughput(server: Server, path: str, seconds: float, items: int = 1) -> tuple[float, float]:
    """(pictures a second, the server's processor milliseconds a picture) of AT_ONCE clients, or of four with many."""
    data = pictures()
    requests = [load.post(path, [data[(first + n) % len(data)] for n in range(items)]) for first in range(len(data))]
    begun = server.cpu()
    answers = asyncio.run(
        load.closed(server.url, requests, at_once=AT_ONCE if items == 1 else 2 * WORKERS, seconds=seconds)
    )
    spent = server.cpu() - begun
    require_ok(answers)
    return load.rate_of(answers) * items, 1000 * spent / (len(answers) * items)


def require_ok(answers: Sequence[load.Answer]) -> None:
    bad = [answer.status for answer in answers if answer.status != 200]
    if bad:
        raise RuntimeError(f"{len(bad)} of {len(answers)} requests were not answered 200, such as {bad[:3]}")


@dataclass(frozen=True)
class Latency:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, answers: Sequence[load.Answer]) -> "Latency":
        require_ok(answers)
        return cls(*(1000 * load.quantile(answers, share) for share in (0.5, 0.95, 0.99)))


def latency(server: Server, rate: float, seconds: float, *, random: bool) -> Latency:
    """Of single pictures that come `rate` a second, at random or at equal distances."""
    requests = [load.post("/v1/segment", [data]) for data in pictures()]
    send = load.opened if random else load.steady
    asyncio.run(load.closed(server.url, requests, at_once=4, seconds=1))
    return Latency.of(asyncio.run(send(server.url, requests, rate=rate, seconds=seconds)))


def volume() -> bytes:
    """Noise as .nii.gz: 96 x 512 x 512 int16."""
    voxels = np.random.default_rng(0).integers(0, 256, VOLUME[::-1], np.int16)
    return gzip.compress(nibabel.Nifti1Image(voxels, np.diag([0.7, 0.7, 3.0, 1.0])).to_bytes(), 1)


async def _health(server: Server, path: str, seconds: float) -> list[load.Answer]:
    """Probes on new connections, as orchestrators send them, 20 a second, while volumes run in all workers."""
    body = load.post("/v1/restore", [volume()])
    volumes = [asyncio.ensure_future(load.Connection(load.Target.of(server.url)).ask(body)) for _ in range(2 * WORKERS)]
    await asyncio.sleep(2)
    answers = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        connection = load.Connection(load.Target.of(server.url))
        answers.append(await connection.ask(load.get(path)))
        connection.close()
        await asyncio.sleep(0.05)
    if any(task.done() for task in volumes):
        raise RuntimeError("the volumes were done before the probes were")
    for task in volumes:
        task.cancel()
    return answers


def health(package: Path, seconds: float) -> dict[str, Latency]:
    found = {}
    for path in ("/livez", "/readyz"):
        with medae_server([package], workers=WORKERS) as server:
            found[path] = Latency.of(asyncio.run(_health(server, path, seconds)))
    return found


# the whole comparison


def compare(package: Path, rounds: int, seconds: float) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Pictures a second and processor milliseconds a picture, by what was measured, one number a round."""
    rates: dict[str, list[float]] = {}
    spent: dict[str, list[float]] = {}
    here = InProcess(package)
    with medae_server([package], workers=WORKERS) as ours, plain_server(package, workers=WORKERS) as plain:
        served = {
            "service": (ours, "/v1/segment", 1),
            "service, 32 a request": (ours, "/v1/tiles/segment", 32),
            "plain, threads": (plain, "/segment", 1),
            "plain, inline": (plain, "/segment_inline", 1),
        }
        for server, path, items in served.values():
            throughput(server, path, 2, items)
        for _ in range(rounds):
            measured = {f"in-process, {way}": here.rate(way, seconds) for way in WAYS}
            measured |= {
                name: throughput(server, path, seconds, items) for name, (server, path, items) in served.items()
            }
            for name, (rate, cpu) in measured.items():
                rates.setdefault(name, []).append(rate)
                spent.setdefault(name, []).append(cpu)
            said = {name: f"{rate:.1f}/s {cpu:.1f} ms" for name, (rate, cpu) in measured.items()}
            print(said, file=sys.stderr, flush=True)
    return rates, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, help="a segmentation of RGB pictures; without it, one is trained now")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of each measurement")
    parser.add_argument("--only", choices=["throughput", "latency", "health"])
    arguments = parser.parse_args()
    os.environ["GLIBC_TUNABLES"] = HUGE_PAGES  # for all sides, as `medae serve` has it by itself
    with tempfile.TemporaryDirectory() as folder:
        package = arguments.package or Path(folder, "package")
        if arguments.package is None:
            trained("demo/nuclei-unet", ["training.steps=150"]).save(package)
        if arguments.only in (None, "throughput"):
            _print_throughput(package, arguments.rounds, arguments.seconds)
        if arguments.only in (None, "latency"):
            _print_latency(package, 4 * arguments.seconds)
        if arguments.only in (None, "health"):
            denoiser = Path(folder, "denoiser")
            untrained(Restoration(), DnCNNSettings(), 1).save(denoiser)
            _print_health(denoiser, 2 * arguments.seconds)
    print(f"\n{os.cpu_count()} cores, {WORKERS} workers, one thread each, load {os.getloadavg()[0]:.1f}")


def _print_throughput(package: Path, rounds: int, seconds: float) -> None:
    rates, spent = compare(package, rounds, seconds)
    names = (*(f"in-process, {way}" for way in WAYS), "plain, threads")
    base = {name: median(rates[name]) for name in names}
    rows = [
        (
            name,
            f"{median(rate):.1f} ({min(rate):.1f}-{max(rate):.1f})",
            f"{median(spent[name]):.1f}",
            *(median(rate) / each for each in base.values()),
            median(spent["in-process, bare"]) / median(spent[name]),
        )
        for name, rate in rates.items()
    ]
    heads = ("what", "pictures/s", "CPU ms", *(f"/ {way}" for way in WAYS), "/ plain, threads", "CPU of bare / CPU")
    print(table(heads, rows))


def _print_latency(package: Path, seconds: float) -> None:
    rows = []
    with medae_server([package], workers=WORKERS) as server:
        top, _ = throughput(server, "/v1/segment", 6)
        for random in (False, True):
            found = latency(server, 0.7 * top, seconds, random=random)
            rows.append(("at random" if random else "steady", found.p50, found.p95, found.p99, found.p99 / found.p50))
    print(f"\nAt 70 % of {top:.1f} pictures/s, milliseconds:\n")
    print(table(("arrivals", "p50", "p95", "p99", "p99 / p50"), rows))


def _print_health(package: Path, seconds: float) -> None:
    rows = [(path, found.p50, found.p95, found.p99) for path, found in health(package, seconds).items()]
    print(f"\nHealth while {2 * WORKERS} volumes of {VOLUME} run, milliseconds:\n")
    print(table(("route", "p50", "p95", "p99"), rows))


if __name__ == "__main__":
    main()
