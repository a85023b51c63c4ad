"""What Prometheus reads at /metrics about this service, beside BentoML's own metrics.

prometheus_client is in its multi-process mode (BentoML sets it up): each worker writes its numbers to files in a folder
that all share, and whichever worker is asked adds them up. Labels are words of ours: stages, routes, names of served
models, statuses, verdicts; never what a client chose, or strangers would fill the memory and patients would be named.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from threading import Lock
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram

Stage = Literal["upload", "decode", "prepare", "queue", "forward", "answer"]
STAGES: tuple[Stage, ...] = get_args(Stage)
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)

STAGE_SECONDS = Histogram(
    "medae_stage_seconds", "Seconds that a request or a batch spent in a stage", ["stage"], buckets=SECONDS
)
QUEUE_DEPTH = Gauge("medae_queue_depth", "Tiles that wait for a device", multiprocess_mode="livesum")
BATCH_SIZE = Histogram("medae_batch_size", "Tiles of one forward pass", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
REQUESTS = Counter("medae_requests", "Requests, by route and status", ["route", "status"])
IMAGES = Counter("medae_images", "Images asked of a model, by the status of each", ["model", "status"])
VERDICTS = Counter("medae_gate_verdicts", "What the quality gate of a model said", ["model", "verdict"])
UPLOAD_BYTES = Counter("medae_upload_bytes", "Bytes of request bodies received")
DECODER_RESTARTS = Counter("medae_decoder_restarts", "Decoders that broke a limit and were replaced")

for _stage in STAGES:  # there from the start: a rate needs the zero
    STAGE_SECONDS.labels(_stage)

Spent = dict[Stage, float]
"""Seconds of one request, by stage."""

_spent: ContextVar[Spent | None] = ContextVar("medae_spent", default=None)
_adding = Lock()


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Times a block of work.

    It also enters the log line of the request in whose context it runs: `asyncio.to_thread` carries the context along,
    an executor does not (`contextvars.copy_context().run`). Work that many requests share belongs to none of them.
    """
    begin = time.perf_counter()
    try:
        yield
    finally:
        observe(name, time.perf_counter() - begin)


def observe(name: Stage, seconds: float) -> None:
    """The same for a time that was measured already, such as that from entering a queue to leaving it."""
    STAGE_SECONDS.labels(name).observe(seconds)
    spent = _spent.get()
    if spent is not None:
        with _adding:  # the images of one request can be worked on at once
            spent[name] = spent.get(name, 0.0) + seconds


def begin_request() -> Spent:
    """An empty account for the request that begins in this context."""
    spent: Spent = {}
    _spent.set(spent)
    return spent


def answered(model: str, status: int, gate: str = "none") -> None:
    """One image was asked of a served model: the name on its card, the status of this image, the gate's verdict."""
    IMAGES.labels(model, str(status)).inc()
    VERDICTS.labels(model, gate).inc()


def forget_the_dead() -> None:
    """Without the queue depths of workers that were killed, which would be added for ever. At a worker's start."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder is None:
        return
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = int(path.stem.rpartition("_")[2])
        if not Path(f"/proc/{pid}").exists():
            path.unlink(missing_ok=True)  # another worker may begin now too
