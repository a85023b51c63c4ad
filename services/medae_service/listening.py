"""Who of the workers takes a connection: they share one listening socket, and the least busy one should.

asyncio takes all connections that wait, in a loop: of 32 clients that come together one worker gets nearly all, answers
some with 429, and the others have nothing to do. So a worker takes one connection a turn of its event loop, and the
more requests it has the longer it leaves the next one to the others. Nothing is shared for that, so a worker that dies
or hangs holds up nobody.
"""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

SECONDS_A_REQUEST = 0.001
"""That a connection is left to the others, for each request of this worker."""
MOST_SECONDS = 0.02


class Listener:
    """The outermost layer of a worker: counts its requests, and takes connections accordingly."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # it begins before the server listens
            self._take_turns(asyncio.get_running_loop())
        self.requests += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.requests -= 1

    def _take_turns(self, loop: Any) -> None:
        accept = getattr(loop, "_accept_connection", None)
        if accept is None:  # another loop than asyncio's own: as fair as that is
            return

        def one(factory: Any, listening: Any, tls: Any, server: Any, backlog: int, *rest: Any) -> None:
            accept(factory, listening, tls, server, 1, *rest)

        def again(*waiting: Any) -> None:
            listening = waiting[1]
            if listening.fileno() >= 0:  # else the server was stopped meanwhile
                one(*waiting)
                loop._add_reader(listening.fileno(), take, *waiting)

        def take(*waiting: Any) -> None:
            if self.requests <= 1:  # its own lifespan counts
                one(*waiting)
                return
            loop._remove_reader(waiting[1].fileno())
            loop.call_later(min(MOST_SECONDS, self.requests * SECONDS_A_REQUEST), again, *waiting)

        loop._accept_connection = take
