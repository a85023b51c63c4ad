"""The device of this process, and the tiles of all requests that wait for it.

Every request's Predictor runs on a thread of its own and sees a SharedBackend; its tiles are run here, on the device's
only thread, so that two forward passes never share a device. Requests take turns, tile by tile: one picture does not
wait for a volume of a thousand tiles. On a GPU tiles of one model and shape, of whichever requests, make one batch.
A back end gives the same bits for any batch, so an answer never depends on who else is asking.
"""

import asyncio
import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from medae.backends import Backend
from medae.package import Card
from medae_service.metrics import BATCH_SIZE, QUEUE_DEPTH, observe, stage
from medae_service.problems import Refusal

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often a thread that waits for room looks whether its request was given up."""
READY_SECONDS = 0.05
"""How long a probe waits for its test forward: a tile may be running."""
LEAST_CANARY = 16
"""Voxels along each axis of the test tile, at least."""


class Abandoned(Exception):
    """Nobody waits for this request any more. Raised in its own thread, between two tiles."""


class Ticket:
    """One request: until when it may compute, and whether it was given up."""

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds
        self._given_up = False

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; not below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self._given_up or self.remaining == 0

    def give_up(self) -> None:
        """No tile of this request runs any more, but the one that runs now."""
        self._given_up = True

    def check(self) -> None:
        """Raises Abandoned when the request was given up, Refusal (503) when its time is over."""
        if self._given_up:
            raise Abandoned
        if self.over:
            raise timed_out()


def timed_out() -> Refusal:
    """What a request hears whose time is over."""
    return Refusal(
        503,
        "compute-timeout",
        "the answer was not ready in the time that one request is given; send a smaller image, or try again when "
        "fewer requests are waiting",
        {"Retry-After": "10"},
    )


@dataclass(frozen=True, eq=False)
class Network:
    """A back end with a model's weights, and the smallest tile that shows whether it works."""

    backend: Backend
    canary: NDArray[np.float32]
    """(1, C, *spatial)"""

    @classmethod
    def of(cls, backend: Backend, card: Card) -> Self:
        field = card.receptive_field
        side = field.stride * max(2, -(-LEAST_CANARY // field.stride))
        shape = (1, card.channels_in, *(field.window or [side] * field.dims))
        return cls(backend, np.linspace(0, 1, math.prod(shape), dtype=np.float32).reshape(shape))


@dataclass(eq=False)
class _Tile:
    """(C, *spatial) pixels of one request on their way through the device."""

    ticket: Ticket
    network: Network
    pixels: NDArray[Any]
    since: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    output: Future[NDArray[Any]] = field(default_factory=Future)

    def fits(self, other: "_Tile") -> bool:
        return self.network is other.network and self.pixels.shape == other.pixels.shape


class Engine:
    """One device. `batch_tiles` and `batch_seconds` bound a GPU's batch in size and in time; a back end on the CPU
    asks for single tiles. At most `waiting_tiles` wait; whoever brings more waits with them."""

    def __init__(self, *, batch_tiles: int = 16, batch_seconds: float = 0.004, waiting_tiles: int = 1024,
                 stuck_seconds: float = math.inf) -> None:  # fmt: skip
        self._batch_tiles = batch_tiles
        self._batch_seconds = batch_seconds
        self._waiting_tiles = waiting_tiles
        self._stuck_seconds = stuck_seconds
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._changed = Condition()
        self._lines: dict[Ticket, deque[_Tile]] = {}  # the request whose turn is next comes first
        self._depth = 0
        self._working = 0
        self._begun: float | None = None
        self._latest: weakref.ref[Network] | None = None  # not held: its weights may be put away
        self._check: Future[None] | None = None
        self._broken = False

    @property
    def broken(self) -> bool:
        """The device failed a test forward. For ever: a CUDA context does not recover in its process."""
        return self._broken

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While a request computes: a batch waits for others only while there are others."""
        with self._changed:
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def submit(self, ticket: Ticket, network: Network, pixels: NDArray[Any]) -> _Tile:
        """One more tile, (C, *spatial), for the request. Raises Abandoned and Refusal (503)."""
        with self._changed:
            while self._depth >= self._waiting_tiles and not ticket.over and not self._broken:
                self._changed.wait(LOOK_SECONDS)
            ticket.check()
            if self._broken:
                raise _device_fault()
            tile = _Tile(ticket, network, pixels)
            self._lines.setdefault(ticket, deque()).append(tile)
            self._count(1)
            self._changed.notify_all()
        self._device.submit(self._turn)
        return tile

    def test(self, network: Network) -> bool:
        """Whether a tiny forward works and gives numbers; if not, the device is broken for good. Warms it up, too."""
        return self._device.submit(self._test, network).result()

    async def ready(self) -> bool:
        """Whether a tiny forward works now. Where a tile is running, the test comes next and this does not wait for
        it: busy is ready, unless that tile has been running for longer than a request may take."""
        check = self._check_soon()
        if check is not None:
            await asyncio.wait({asyncio.wrap_future(check)}, timeout=READY_SECONDS)
        begun = self._begun
        stuck = begun is not None and time.monotonic() - begun > self._stuck_seconds
        return not self._broken and not stuck

    def _check_soon(self) -> Future[None] | None:
        with self._changed:
            if self._broken or self._latest is None:
                return None
            if self._check is None:
                self._check = Future()
                self._device.submit(self._turn)
            return self._check

    # on the device's thread

    def _turn(self) -> None:
        """One test that is wanted, or one batch. Called as often as tiles were brought, so none is left lying."""
        with self._changed:
            check, self._check = self._check, None
        if check is not None:
            network = self._latest() if self._latest is not None else None
            if network is not None:
                self._test(network)
            check.set_result(None)
        batch = self._take()
        if batch:
            self._run(batch)

    def _take(self) -> list[_Tile]:
        with self._changed:
            first = self._next()
            if first is None:
                return []
            batch = [first]
            most = min(self._batch_tiles, first.network.backend.batch)
            end = time.monotonic() + self._batch_seconds
            while len(batch) < most:
                more = self._next(first)
                if more is not None:
                    batch.append(more)
                elif not self._others(batch) or not self._changed.wait(max(0.0, end - time.monotonic())):
                    break
            self._changed.notify_all()
            return batch

    def _others(self, batch: list[_Tile]) -> bool:
        """Whether a request computes that has no tile here: its next one may come at any moment."""
        return self._working > len({tile.ticket for tile in batch} | self._lines.keys())

    def _next(self, like: _Tile | None = None) -> _Tile | None:
        """The next tile in turn; one for the same batch as `like`, if given."""
        for ticket in list(self._lines):
            line = self._lines[ticket]
            while line and ticket.over:
                self._drop(line.popleft(), ticket)
            if line and (like is None or line[0].fits(like)):
                tile = line.popleft()
                del self._lines[ticket]
                if line:
                    self._lines[ticket] = line  # behind all others
                tile.waited = time.perf_counter() - tile.since
                if self._leave(tile):
                    return tile
            elif not line:
                del self._lines[ticket]
        return None

    def _leave(self, tile: _Tile) -> bool:
        """Out of the queue; whether anybody waits for it still."""
        self._count(-1)
        return tile.output.set_running_or_notify_cancel()

    def _drop(self, tile: _Tile, ticket: Ticket) -> None:
        if self._leave(tile):
            try:
                ticket.check()
            except (Abandoned, Refusal) as error:
                tile.output.set_exception(error)

    def _run(self, batch: list[_Tile]) -> None:
        """One forward pass. If it fails, each tile is tried alone, so that a bad one fails alone."""
        network = batch[0].network
        try:
            pixels = batch[0].pixels[None] if len(batch) == 1 else np.stack([tile.pixels for tile in batch])
            answered = list(zip(batch, self._forward(network, pixels), strict=True))
        except Exception as error:
            if len(batch) > 1:
                for tile in batch:
                    self._run([tile])
            elif self._broken or not self._test(network):
                batch[0].output.set_exception(_device_fault())
            else:
                batch[0].output.set_exception(error)
            return
        BATCH_SIZE.observe(len(batch))
        for tile, output in answered:
            tile.output.set_result(output)

    def _forward(self, network: Network, pixels: NDArray[Any]) -> NDArray[Any]:
        self._latest = weakref.ref(network)
        self._begun = time.monotonic()
        try:
            with stage("forward"):
                return network.backend.run(pixels)
        finally:
            self._begun = None

    def _test(self, network: Network) -> bool:
        try:
            works = bool(np.isfinite(self._forward(network, network.canary)).all())
        except Exception as error:
            logger.error("the test forward failed", extra={"fields": {"error": type(error).__name__}})
            works = False
        if not works:
            self._break()
        return works

    def _break(self) -> None:
        logger.error("the device is broken; this worker answers nothing any more")
        with self._changed:
            self._broken = True
            for line in self._lines.values():
                for tile in line:
                    if self._leave(tile):
                        tile.output.set_exception(_device_fault())
            self._lines.clear()
            self._changed.notify_all()

    def _count(self, change: int) -> None:
        self._depth += change
        QUEUE_DEPTH.inc(change)


def _device_fault() -> Refusal:
    return Refusal(
        503,
        "device-fault",
        "the device of this worker has failed; try again, another may answer",
        {"Retry-After": "10"},
    )


class SharedBackend:
    """What a request's Predictor gets for a back end: the same answers, run by the engine in turn with others."""

    def __init__(self, engine: Engine, network: Network, ticket: Ticket) -> None:
        self.name = network.backend.name
        self.device = network.backend.device
        self.threads = network.backend.threads
        self.batch = network.backend.batch
        self._engine = engine
        self._network = network
        self._ticket = ticket
        self._made: float | None = time.perf_counter()

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """As Backend.run. Raises Abandoned and Refusal (503) between tiles, and what the back end raises for one."""
        if self._made is not None:
            observe("prepare", time.perf_counter() - self._made)
            self._made = None
        brought: list[_Tile] = []
        try:
            for tile in tiles:
                brought.append(self._engine.submit(self._ticket, self._network, tile))
            outputs = [one.output.result() for one in brought]
        finally:
            for one in brought:  # after a failure the others are not needed
                one.output.cancel()
        observe("queue", max(one.waited for one in brought))
        return outputs[0][None] if len(outputs) == 1 else np.stack(outputs)
