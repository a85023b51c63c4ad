"""The local engine of a batch: cases go to workers on this machine, outcomes come back as they are made.

A worker that dies (of a damaged decoder, for lack of memory, by someone's hand) takes no case with it: what it had
not reported is done again, one case alone at a time, and only a case that ends workers again and again is given up.
"""

import logging
import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any

from medae.batch.lane import Order, Ready
from medae.batch.manifest import Item
from medae.batch.work import Hand, Outcome, decode
from medae.errors import MedaeError
from medae.io import DEFAULT_LIMITS, Limits

logger = logging.getLogger(__name__)

AHEAD_SECONDS = 0.5
"""So much work lies ready for a worker, while its parent commits; never more than AHEAD_MOST cases."""
AHEAD_MOST = 32
TICK_SECONDS = 0.5
START_SECONDS = 300
CHANCES = 2
"""How often a case may end a worker that had nothing else to do."""


@dataclass
class Worker:
    """A child process, and what it has not reported yet."""

    process: subprocess.Popen[bytes]
    channel: Connection
    open: deque[Item] = field(default_factory=deque)
    alone: bool = False
    """Whether it has a case that ended another worker: nothing else is given to it meanwhile."""
    bytes: int = 0

    @classmethod
    def start(cls, order: Order, inherit: Sequence[int] = ()) -> "Worker":
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", "from medae.batch.lane import main; main()", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *inherit],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        worker = cls(process, Connection(ours.detach()))
        worker.channel.send(replace(order, parent=os.getpid()))
        return worker

    def await_ready(self) -> None:
        """Raises what the worker could not start for."""
        if not self.channel.poll(START_SECONDS):
            raise MedaeError(f"a worker did not start within {START_SECONDS} s; this machine has too much to do")
        try:
            said = self.channel.recv()
        except (EOFError, OSError):
            raise MedaeError(
                "a worker ended while it started (its own message is above): there may be too little memory; "
                "give fewer with --workers"
            ) from None
        if isinstance(said, MedaeError):
            raise said
        assert isinstance(said, Ready), "a worker begins with Ready"
        self.bytes = said.bytes

    def stop(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


class LocalEngine:
    """`workers` processes; `order` says what each is to do."""

    def __init__(self, order: Order, workers: int) -> None:
        self._order = order
        self._count = workers
        self._workers: list[Worker] = []
        self._suspects: deque[Item] = deque()
        self._ended: Counter[str] = Counter()
        self._seconds = AHEAD_SECONDS
        self._deaths = 0

    def run(self, items: Iterator[Item], room: Callable[[], int]) -> Iterator[tuple[Outcome, ...]]:
        """The outcomes of each case, in the order in which they are done; an empty one now and then, for the clock.

        room: how many more cases may be in work or uncommitted; those in work are subtracted here.
        Raises what concerns the whole batch.
        """
        try:
            self._workers = [Worker.start(self._order) for _ in range(self._count)]
            for worker in self._workers:
                worker.await_ready()
            more = True
            while True:
                more = self._hand_out(items, room) and more
                if not more and not self._suspects and not any(worker.open for worker in self._workers):
                    return
                yield from self._collect()
        finally:
            for worker in self._workers:
                worker.stop()

    def _hand_out(self, items: Iterator[Item], room: Callable[[], int]) -> bool:
        """Fills the workers' queues, the emptiest first; whether there may be more items."""
        for worker in self._workers:
            if self._suspects and not worker.open:
                self._give(worker, self._suspects.popleft())
                worker.alone = True
        free = room() - sum(len(worker.open) for worker in self._workers)
        while free > 0:
            worker = min(self._workers, key=lambda worker: (worker.alone, len(worker.open)))
            if worker.alone or len(worker.open) >= self._ahead() or self._suspects:
                return True
            item = next(items, None)
            if item is None:
                return False
            self._give(worker, item)
            free -= 1
        return True

    def _ahead(self) -> int:
        """How many cases lie ready for one worker: more of quick ones, two of slow ones."""
        return int(min(max(AHEAD_SECONDS / max(self._seconds, 1e-6), 2), AHEAD_MOST))

    def _give(self, worker: Worker, item: Item) -> None:
        worker.open.append(item)
        try:
            worker.channel.send(item)
        except OSError:  # it is gone; _collect finds out
            logger.debug("a worker was gone before it got its case")

    def _collect(self) -> Iterator[tuple[Outcome, ...]]:
        channels = {worker.channel: worker for worker in self._workers}
        heard = wait(list(channels), TICK_SECONDS)
        if not heard:
            yield ()
        for channel in heard:
            worker = channels[channel]  # type: ignore[index]
            said: Any = None
            try:
                said = worker.channel.recv()
            except (EOFError, OSError):
                yield from self._replace(worker)
            if isinstance(said, MedaeError):
                raise said
            for outcomes in said or ():
                worker.open.remove(outcomes[0].item)
                worker.alone = False
                self._deaths = 0
                self._seconds += 0.1 * (sum(outcome.seconds for outcome in outcomes) - self._seconds)
                yield outcomes

    def _replace(self, worker: Worker) -> Iterator[tuple[Outcome, ...]]:
        """A new worker for one that died; what it had not reported is suspected, one case twice suspected is lost."""
        worker.stop()
        self._deaths += 1
        logger.warning("a worker ended (%s); its cases are done again", worker.process.returncode)
        if worker.alone and worker.open:
            self._ended[worker.open[0].id] += 1
            if self._ended[worker.open[0].id] >= CHANCES:
                yield self._lost(worker.open.popleft())
        elif self._deaths > 3 * self._count + 3:
            raise MedaeError("workers end again and again without finishing a case; is there too little memory?")
        self._suspects += worker.open
        fresh = Worker.start(self._order)
        self._workers[self._workers.index(worker)] = fresh
        fresh.await_ready()

    def _lost(self, item: Item) -> tuple[Outcome, ...]:
        reason = (
            "the process that worked on it ended, each time: it needs more memory than there is, or its file breaks it"
        )
        packages = item.packages or tuple(self._order.packages)
        return tuple(Outcome(item, "fault", code="fault", reason=reason, package=package) for package in packages)


@dataclass(frozen=True)
class Inline:
    """The same in this process, for a few images."""

    hand: Hand
    limits: Limits = DEFAULT_LIMITS
    allow: Sequence[str] = ()

    def run(self, items: Iterator[Item], room: Callable[[], int] = lambda: 1) -> Iterator[tuple[Outcome, ...]]:
        return (self.hand.answer(item, decode(item, self.limits, self.allow)) for item in items)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
