"""Does the service grow while it runs?

A real `medae serve` gets a steady mix for a quarter of an hour: pictures, tiles, volumes and DICOM series, for a
segmentation and a restoration, and what goes wrong in a day: damaged files, forged headers, unknown models, clients
that leave in the middle. Memory is the proportional set size of all its processes, so that shared pages count once.

After a warm-up, memory is averaged over equal blocks of time and a line is laid through the averages. The service is
steady where the line's slope lies within twice its standard error of zero, or below what nobody would notice: 1 % of
its memory an hour. Open files and threads are counted too: their number at the end is that after the warm-up.

    python -m benchmarks.soak [--minutes 15] [--rate 6] [--out soak.csv]
"""

import argparse
import asyncio
import csv
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from io import BytesIO
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from benchmarks import load
from benchmarks.models import untrained
from benchmarks.servers import Server, medae_server
from benchmarks.service import pictures
from medae.io.answer import Label
from medae.networks import DnCNNSettings, UNetSettings
from medae.tasks import Restoration, Segmentation

WARM_UP = 0.2
"""Share of the time that does not count."""
BLOCKS = 12
SAMPLE_SECONDS = 3.0
UNNOTICED = 0.01
"""Of the memory, an hour."""
EXPECTED = frozenset({0, 200, 404, 413, 415, 422, 429})
"""Statuses of the mix; 0: a client of ours that left."""


@dataclass(frozen=True)
class Sample:
    seconds: float
    """From the start."""
    memory: int
    """Bytes."""
    files: int
    threads: int


def requests() -> list[bytes]:
    """The mix, sound and not; each about as often as it stands here."""
    tiles = pictures()
    volume, series = _volume(), _series()
    sound = [load.post("/v1/segment", [tile]) for tile in tiles[:6]]
    sound += [load.post("/v1/tiles/segment", tiles[:4]), load.post("/v1/segment?output=overlay", [tiles[7]])]
    sound += [load.post("/v1/denoise", [volume]), load.post("/v1/denoise", series)]
    sound += [load.post("/v1/denoise", [volume], "application/json"), load.get("/v1/models"), load.get("/metrics")]
    broken = [
        load.post("/v1/segment", [tiles[0][:5000]]),
        load.post("/v1/segment", [b"nothing at all"]),
        load.post("/v1/segment?model=unknown", [tiles[0]]),
        load.post("/v1/denoise", [volume[:-2000]]),
        load.post("/v1/tiles/segment", [tiles[0], b"damaged", tiles[1]]),
    ]
    return [*sound, *sound, *broken]


def _volume() -> bytes:
    voxels = np.random.default_rng(0).integers(0, 255, (96, 80, 12), np.int16)
    turned = np.array([[0.9, 0.1, 0, 5], [-0.1, 0.9, 0.2, 7], [0, -0.2, 2.5, 9], [0, 0, 0, 1.0]])
    return bytes(nibabel.Nifti1Image(voxels, turned).to_bytes())


def _series() -> list[bytes]:
    """pydicom's small CT, four slices of it."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file
    from pydicom.uid import generate_uid

    slices, study = [], generate_uid()
    for n in range(4):
        dataset = dcmread(get_testdata_file("CT_small.dcm"))
        dataset.SeriesInstanceUID = study
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = [0, 0, 5.0 * n]
        dataset.InstanceNumber = n + 1
        target = BytesIO()
        dataset.save_as(target)
        slices.append(target.getvalue())
    return slices


async def drive(server: Server, *, rate: float, seconds: float) -> tuple[list[Sample], Counter[int]]:
    """`rate` requests a second, at random; every 50th client leaves in the middle of its body."""
    mix, draw, statuses = requests(), random.Random(0), Counter[int]()
    begin = time.monotonic()
    samples: list[Sample] = []

    async def one(request: bytes, leaves: bool) -> None:
        connection = load.Connection(load.Target.of(server.url))
        if leaves:
            await connection.abandon(request[: len(request) // 2])
            statuses[0] += 1
        else:
            statuses[(await connection.ask(request)).status] += 1
        connection.close()

    async def watch() -> None:
        while True:
            samples.append(await asyncio.to_thread(_sample, server, time.monotonic() - begin))
            await asyncio.sleep(SAMPLE_SECONDS)

    watching = asyncio.ensure_future(watch())
    asked: set[asyncio.Task[None]] = set()
    while time.monotonic() - begin < seconds:
        if len(asked) < 16:  # a machine that is busy with others falls behind: it is the memory that is measured
            task = asyncio.ensure_future(one(draw.choice(mix), draw.random() < 0.02))
            asked.add(task)
            task.add_done_callback(asked.discard)
        await asyncio.sleep(draw.expovariate(rate))
    await asyncio.gather(*asked)
    watching.cancel()
    return samples, statuses


def _sample(server: Server, seconds: float) -> Sample:
    family = server.family()
    return Sample(
        seconds, server.memory(), sum(one.num_fds() for one in family), sum(one.num_threads() for one in family)
    )


def slope(samples: Sequence[Sample]) -> tuple[float, float, float]:
    """(bytes an hour, its standard error, mean bytes) after the warm-up.

    Neighbouring samples are alike, so averages of blocks are what the line is laid through.
    """
    begin = WARM_UP * samples[-1].seconds
    counted = [sample for sample in samples if sample.seconds >= begin]
    blocks = np.array_split(np.array([(one.seconds / 3600, one.memory) for one in counted]), BLOCKS)
    hours, memory = np.array([block.mean(0) for block in blocks]).T
    return *_line(hours, memory), float(memory.mean())


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Least squares: slope and its standard error."""
    x = x - x.mean()
    rise = float((x * y).sum() / (x * x).sum())
    rest = y - y.mean() - rise * x
    return rise, float(np.sqrt((rest * rest).sum() / (len(x) - 2) / (x * x).sum()))


def is_steady(samples: Sequence[Sample]) -> bool:
    rise, error, mean = slope(samples)
    return rise <= max(2 * error, UNNOTICED * mean)


def soak(minutes: float, rate: float) -> tuple[list[Sample], Counter[int]]:
    """With small untrained models: it is the service that is measured."""
    nucleus = Label(name="nucleus", colour=(255, 0, 0))
    models = {
        "segmenter": untrained(Segmentation(labels=(nucleus,)), UNetSettings(features=(8, 16), strides=(2,)), 3),
        "denoiser": untrained(Restoration(), DnCNNSettings(depth=4, features=8), 1),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, package in models.items():
            package.save(Path(folder, name))
        with medae_server([Path(folder, name) for name in models], workers=2) as server:
            return asyncio.run(drive(server, rate=rate, seconds=60 * minutes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--rate", type=float, default=6, help="requests a second")
    parser.add_argument("--out", type=Path, help="every sample, as CSV")
    arguments = parser.parse_args()
    samples, statuses = soak(arguments.minutes, arguments.rate)
    if arguments.out is not None:
        with arguments.out.open("w", newline="") as file:
            csv.writer(file).writerows([[field.name for field in fields(Sample)], *map(astuple, samples)])
    rise, error, mean = slope(samples)
    first, last = next(one for one in samples if one.seconds >= WARM_UP * samples[-1].seconds), samples[-1]
    print(f"requests by status: {dict(sorted(statuses.items()))}; unexpected: {set(statuses) - EXPECTED or 'none'}")
    print(f"memory: {mean / 2**20:.0f} MiB, {rise / 2**20:+.1f} +- {error / 2**20:.1f} MiB an hour")
    print(f"open files {first.files} -> {last.files}, threads {first.threads} -> {last.threads}")
    print("steady" if is_steady(samples) else "GROWS")


if __name__ == "__main__":
    main()
