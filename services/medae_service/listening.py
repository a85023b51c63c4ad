"""Which worker takes a connection: they share one listening socket, and the one with the least to do should.

asyncio takes all connections that wait, in a loop: of 32 clients that come together one worker gets nearly all, answers
some with 429, and the others have nothing to do. A connection that stays open then stays with its worker for ever. So
workers tell each other how many requests they have; one that has more than another takes one connection at a time, and
later, and asks clients to connect again after their answer. All of it is a hint: delays are short, so a worker that
died or hangs holds nobody up.
"""

import asyncio
import mmap
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS_A_REQUEST = 0.002
"""That a connection is left to the others, for each request that this worker has more than another."""
MOST_SECONDS = 0.02
COMING_SECONDS = 0.05
"""That a new connection counts as a request: its first one is on the way."""
MUCH = 2
"""Requests more than another worker has: clients are asked to connect again."""
_NUMBER = 4
_ABSENT = (1 << 31) - 1


class Board:
    """How many requests each worker has: one number a worker, in a file that all of them map."""

    def __init__(self, path: Path | None, index: int) -> None:
        """Without a path, there are no others. `index`: of this worker, from 0."""
        if path is None:
            self._numbers = memoryview(bytearray(_NUMBER)).cast("i")
            self._index = 0
            return
        with path.open("r+b") as file:
            self._numbers = memoryview(mmap.mmap(file.fileno(), 0)).cast("i")
        self._index = index % len(self._numbers)

    @staticmethod
    def make(path: Path, workers: int) -> Path:
        """The file, private, with a place for each worker: nobody is there yet."""
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(_ABSENT.to_bytes(_NUMBER, "little") * workers)
        return path

    def post(self, requests: int) -> None:
        self._numbers[self._index] = requests

    def more(self) -> int:
        """Requests that this worker has more than the one that has the least; not below 0."""
        return max(0, self._numbers[self._index] - min(self._numbers))


class Listener:
    """The outermost layer of a worker: counts its requests, and takes connections accordingly."""

    def __init__(self, app: ASGIApp, board: Board) -> None:
        self.app = app
        self._board = board
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # it begins before the server listens
            self._count(0)
            self._take_turns(asyncio.get_running_loop())
            await self.app(scope, receive, send)
            return

        async def send_and_part(message: Message) -> None:
            if message["type"] == "http.response.start" and self._board.more() >= MUCH:
                message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        self._count(1)
        try:
            await self.app(scope, receive, send_and_part)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._requests += change
        self._board.post(self._requests)

    def _take_turns(self, loop: Any) -> None:
        """Connections are accepted one a turn of the loop, and not at once where another worker has less to do."""
        accept_all = getattr(loop, "_accept_connection", None)
        if accept_all is None:  # not asyncio's own loop: it shares as it likes
            return

        def accept(factory: Any, listening: Any, tls: Any, server: Any, most: int, *rest: Any) -> None:
            self._count(1)
            loop.call_later(COMING_SECONDS, self._count, -1)
            accept_all(factory, listening, tls, server, 1, *rest)

        def take(*waiting: Any) -> None:
            more = self._board.more()
            if more == 0:
                accept(*waiting)
                return
            loop._remove_reader(waiting[1].fileno())
            loop.call_later(min(MOST_SECONDS, more * SECONDS_A_REQUEST), after_a_while, *waiting)

        def after_a_while(*waiting: Any) -> None:
            listening = waiting[1]
            if listening.fileno() >= 0:  # else the server was stopped meanwhile
                accept(*waiting)
                loop._add_reader(listening.fileno(), take, *waiting)

        loop._accept_connection = take
