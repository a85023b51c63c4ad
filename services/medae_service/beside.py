"""Our app beside BentoML's, not inside it: its layers cost more processor time than our own, and make a trace of each
piece of a body. BentoML keeps its health, metrics and native endpoints."""

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medae_service.problems import Refusal, refuse


class Beside:
    """`ours` answers `paths`, `theirs` all else."""

    def __init__(self, ours: ASGIApp, paths: Iterable[str], theirs: ASGIApp) -> None:
        self.ours = ours
        self.paths = frozenset(paths)
        self.theirs = theirs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.ours if scope["type"] == "http" and scope["path"] in self.paths else self.theirs
        await app(scope, receive, send)


class Deadline:
    """504 for a request whose answer has not begun in its time; what was done for it is cancelled."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self.seconds) as limit:

                async def begin(message: Message) -> None:
                    limit.reschedule(None)
                    await send(message)

                await self.app(scope, receive, begin)
        except TimeoutError:
            if not limit.expired():
                raise
            reason = f"the answer had not begun after {self.seconds:g} s, upload included; send less, or try again"
            await refuse(scope["medae.request"], Refusal(504, "request-timeout", reason))(scope, receive, send)
