"""Ten times what a real service takes: answers and 429, nothing else, in memory that stays, and normal soon after."""

import asyncio
import threading
import time
from collections import Counter
from pathlib import Path
from statistics import median

import psutil
import pytest

from benchmarks import load
from tests.service_parts import denoiser, png
from tests.test_service_process import Running, start, stop

pytestmark = pytest.mark.slow

PLACES = 12
"""Two workers, of which each computes two and lets four wait."""
SECONDS = 15.0
GROWTH = 64 << 20


class Memory:
    """Of the service and its children (proportional set size), looked at while the block runs."""

    def __init__(self, running: Running) -> None:
        top = psutil.Process(running.process.pid)
        self.family = [top, *top.children(recursive=True)]
        self.seen: list[int] = []
        self.end = threading.Event()
        self.watch = threading.Thread(target=self._watch)

    def __enter__(self) -> "Memory":
        self.watch.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self.end.set()
        self.watch.join()

    def _watch(self) -> None:
        while not self.end.wait(0.5):
            self.seen.append(sum(one.memory_full_info().pss for one in self.family))


def alone(running: Running, request: bytes) -> float:
    """Seconds of one request."""
    (answer,) = asyncio.run(load.steady(running.url, [request], rate=1, seconds=1))
    assert answer.status == 200
    return answer.seconds


def test_overload_is_answered_or_refused_in_flat_memory_and_over_in_five_seconds(tmp_path: Path) -> None:
    denoiser().save(tmp_path / "denoiser")
    (tmp_path / "service.yaml").write_text("computing: 2\nwaiting: 4\n")
    running = start(tmp_path, "denoiser", "--workers", "2", "--config", "service.yaml")
    request = load.post("/v1/denoise", [png(400, 400)])
    try:
        asyncio.run(load.closed(running.url, [request], at_once=PLACES, seconds=5))
        normal = median(alone(running, request) for _ in range(5))
        with Memory(running) as memory:
            answers = asyncio.run(load.closed(running.url, [request], at_once=10 * PLACES, seconds=SECONDS))
        end = time.monotonic()
        while alone(running, request) > 3 * normal:
            assert time.monotonic() - end < 5
        heard = Counter(answer.status for answer in answers)
        assert set(heard) == {200, 429}, heard
        third = len(memory.seen) // 3
        assert max(memory.seen[third:]) - max(memory.seen[:third]) < GROWTH, memory.seen
    finally:
        stop(running)
