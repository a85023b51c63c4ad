"""Who may compute: a bounded number of requests at once, a bounded number waits, the others hear 429.

A request holds its place from the end of its upload to its answer. It is given up when its time is over or its client
has left. A thread cannot be stopped, so what runs keeps its place until its thread has noticed, which it does between
two tiles; what waits leaves at once.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from medae_service.engine import Ticket, timed_out
from medae_service.problems import Refusal

T = TypeVar("T")

SMALL_VOXELS = 1 << 20
"""Of a decoded image that is one tile or few."""


class Admission:
    """The places of one worker. Everything but the work itself happens on the event loop."""

    def __init__(self, *, computing: int, waiting: int, seconds: float, small: int | None = None) -> None:
        self.computing = computing
        self._small = asyncio.Semaphore(small or computing)
        self._waiting = waiting
        self._limit = seconds
        self._slots = asyncio.Semaphore(computing)
        self._threads = ThreadPoolExecutor(computing, thread_name_prefix="request")
        self._places: set[asyncio.Task[Any]] = set()
        self._lasted = 0.0

    def require_room(self) -> None:
        """Raises Refusal (429) when as many wait as may; the time to retry follows from the last request's."""
        held = sum(not task.done() for task in self._places)
        if held >= self.computing + self._waiting:
            seconds = max(1, math.ceil(held * self._lasted / self.computing))
            raise Refusal(
                429,
                "busy",
                f"{self._waiting} requests are waiting already; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )

    async def run(self, request: Request, work: Callable[[Ticket], Awaitable[T]], grace: float = 0.0) -> T:
        """What `work` gives, while the request's client waits and its time lasts.

        `grace`: seconds after the ticket's end for work that then answers with what it has.
        Raises Refusal (429, 503), ClientDisconnect, and what `work` raises.
        """
        self.require_room()
        ticket = Ticket(self._limit)
        task = asyncio.ensure_future(work(ticket))
        left = asyncio.ensure_future(_until_client_left(request))
        self._places.add(task)
        task.add_done_callback(self._leave)
        begin = time.monotonic()
        try:
            await asyncio.wait({task, left}, timeout=self._limit + grace, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                self._lasted = time.monotonic() - begin
                return task.result()
            raise ClientDisconnect if left.done() else timed_out()
        finally:
            ticket.give_up()
            task.cancel()
            left.cancel()

    @asynccontextmanager
    async def slot(self, ticket: Ticket, *, small: bool = False) -> AsyncIterator[AsyncExitStack]:
        """One of the places to decode and compute in; they are given in the order in which they are asked for.

        Small images take turns among themselves, and none of them waits for a large one. What is yielded ends the turn
        of one that turns out to be large.
        """
        async with AsyncExitStack() as turn:
            if small:
                await turn.enter_async_context(self._small)
            async with self._slots:
                ticket.check()
                yield turn

    async def in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, on a thread. Returns only when that has ended, even when this was cancelled."""
        future = asyncio.wrap_future(self._threads.submit(copy_context().run, work))
        cancelled = False
        while not future.done():
            try:
                await asyncio.wait({future})
            except asyncio.CancelledError:
                cancelled = True
        if cancelled:
            future.exception()  # looked at: nobody else will
            raise asyncio.CancelledError
        return future.result()

    def _leave(self, task: "asyncio.Task[Any]") -> None:
        self._places.discard(task)
        if not task.cancelled():
            task.exception()  # looked at: a request that was given up does not read it


async def _until_client_left(request: Request) -> None:
    """The body was read to its end, so all that can come is that the client leaves, or has its answer."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
