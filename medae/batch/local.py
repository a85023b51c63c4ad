"""The local engine of a batch: cases go to workers on this machine, outcomes come back as they are made.

A worker that dies (of a damaged decoder, for lack of memory, by someone's hand) takes no case with it: what it had
not reported is done again, one case alone at a time, and only a case that ends workers again and again is given up.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from medae.batch import crew
from medae.batch.crew import Device, Worker
from medae.batch.device import Post
from medae.batch.item import Item
from medae.batch.memory import Grant, resident_bytes, shared_out
from medae.batch.orders import Order
from medae.batch.work import Hand, Outcome, decode
from medae.errors import MedaeError

logger = logging.getLogger(__name__)

AHEAD_SECONDS = 0.5
"""So much work lies ready for a worker, while its parent commits; never more than AHEAD_MOST cases."""
AHEAD_MOST = 32
TICK_SECONDS = 0.5
CHANCES = 2
"""How often a case may end a worker that had nothing else to do."""


class LocalEngine:
    """`workers` processes; `order` says what each is to do. posts: the devices that they share, if any."""

    def __init__(self, order: Order, workers: int, *, posts: Sequence[Post] = (), max_ram: int | None = None) -> None:
        """max_ram: bytes of all processes together; where they do not do, there are fewer workers."""
        self._order = order
        self._count = workers
        self._max_ram = max_ram
        self._grant = Grant()
        self._posts = posts
        self._devices: list[Device] = []
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
            self._start()
            more = True
            while True:
                more = self._hand_out(items, room) and more
                if not more and not self._suspects and not any(worker.open for worker in self._workers):
                    return
                yield from self._collect()
        finally:
            for worker in self._workers:
                worker.stop()
            for device in self._devices:
                device.child.stop()

    def _start(self) -> None:
        for post in self._posts:
            self._devices.append(Device.start(post))
        if self._max_ram is not None:
            self._hire(1)
            first = self._workers[0]
            others = resident_bytes() + sum(device.bytes for device in self._devices)
            self._count, self._grant = shared_out(self._max_ram, others, first.bytes, self._count)
        self._hire(self._count)
        for worker in self._workers:
            worker.grant(self._grant)

    def _hire(self, count: int) -> None:
        before = len(self._workers)
        for number in range(before, count):
            device = self._devices[number % len(self._devices)] if self._devices else None
            self._workers.append(Worker.start(self._order, device))
        for number in range(before, count):
            self._settle(number)

    def _settle(self, number: int) -> Worker:
        """The worker, once it is ready; one that ends while it starts is started again, a few times."""
        for attempt in range(crew.CHANCES):
            worker = self._workers[number]
            if worker.await_ready():
                return worker
            worker.stop()
            if attempt + 1 < crew.CHANCES:
                self._start_at(number, worker.device)
        raise crew.cannot_start()

    def _start_at(self, number: int, device: Device | None) -> None:
        self._workers[number] = Worker.start(self._order, None if device is None else self._alive(device))

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
        except OSError:
            logger.debug("a worker was gone before it got its case")  # _collect finds out

    def _collect(self) -> Iterator[tuple[Outcome, ...]]:
        channels: dict[Any, Worker] = {worker.channel: worker for worker in self._workers}
        heard = wait(list(channels), TICK_SECONDS)
        if not heard:
            yield ()
        for worker in (channels[channel] for channel in heard):
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
        """A new worker for one that died; what it had not reported is suspected."""
        worker.stop()
        self._deaths += 1
        logger.warning("a worker ended (%s); its cases are done again", worker.child.process.returncode)
        if worker.alone and worker.open:
            self._ended[worker.open[0].id] += 1
            if self._ended[worker.open[0].id] >= CHANCES:
                yield self._lost(worker.open.popleft())
        elif self._deaths > 3 * self._count + 3:
            raise MedaeError("workers end again and again without finishing a case; is there too little memory?")
        self._suspects += worker.open
        number = self._workers.index(worker)
        self._start_at(number, worker.device)
        self._settle(number).grant(self._grant)

    def _alive(self, device: Device) -> Device:
        """The process of a device, or a new one where that has ended; its other workers end by themselves then."""
        if device in self._devices and device.child.process.poll() is None:
            return device
        at = next(number for number, known in enumerate(self._devices) if known.post == device.post)
        if self._devices[at].child.process.poll() is not None:
            self._devices[at].child.stop()
            self._devices[at] = Device.start(device.post)
        return self._devices[at]

    def _lost(self, item: Item) -> tuple[Outcome, ...]:
        reason = (
            "the process that worked on it ended each time: it needs more memory than there is, or its file breaks it"
        )
        packages = item.packages or tuple(self._order.packages)
        return tuple(Outcome(item, "fault", code="fault", reason=reason, package=package) for package in packages)


@dataclass(frozen=True)
class Inline:
    """The same in this process, for a few images."""

    hand: Hand
    allow: Sequence[str] = ()

    def run(self, items: Iterator[Item], room: Callable[[], int] = lambda: 1) -> Iterator[tuple[Outcome, ...]]:
        return (self.hand.answer(item, decode(item, allow=self.allow)) for item in items)


def gpus(device: str) -> list[str]:
    """The GPUs that workers share, by what the caller said; none where they infer themselves.

    Raises UsageError for a device that is not here.
    """
    if device == "cpu" or (
        device == "auto" and not any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/kfd"))
    ):
        return []
    from medae.backends.torch import choose_device, cuda_devices

    if choose_device(device).type == "cpu":
        return []
    return cuda_devices() if device in ("auto", "cuda") else [device]
