"""/v1/tiles: many images in one request, each with its own answer and its own status.

The answer is the manifest as JSON, or a zip of the files that it names with the manifest beside them. Items are
answered in the order in which they came. A few are worked on at once, so that decoding and writing overlap with the
device; they share the request's turns there, and never take all places to compute.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from starlette.responses import JSONResponse, Response, StreamingResponse

from medae.errors import LimitExceeded, MedaeError
from medae.io.answer import AnswerFile
from medae_service.answering import ZIP, Answer, model_headers
from medae_service.engine import Ticket, timed_out
from medae_service.logs import log_fault
from medae_service.models import Model
from medae_service.problems import FAULT, Refusal, document

IN_MEMORY = 8 << 20
"""Bytes of a zip that is being written before it goes to the disk."""
CHUNK = 1 << 18
GRACE_SECONDS = 5.0
"""After the request's time is over, to answer with the items that are done."""
MANIFEST = "manifest.json"
VERDICTS = ("none", "ok", "review", "reject")
"""Of the gate, the worst last."""


@dataclass(frozen=True)
class Item:
    """One image's place in the answer."""

    status: int
    facts: dict[str, Any]
    """The summary, or the problem."""
    files: Sequence[AnswerFile] = ()
    gate: str = "none"

    def describe(self, index: int) -> dict[str, Any]:
        return {"index": index, "status": self.status, "summary" if self.status == 200 else "problem": self.facts}


def stem_of(index: int) -> str:
    """Of the names of an item's files; they sort as the items came."""
    return f"{index:06d}"


def require_few(count: int, most: int) -> None:
    """Raises LimitExceeded for more items than one request may have."""
    if count > most:
        raise LimitExceeded(f"a request takes at most {most} images, and this one has {count}; send fewer at once")


async def item_of(answer: Awaitable[Answer], request_id: str) -> Item:
    """The answer, or what went wrong with this one; the other items go on."""
    try:
        done = await answer
    except (MedaeError, Refusal) as error:
        return Item(error.status, document(request_id, error.status, error.code, str(error)))
    except Exception as error:
        log_fault(request_id, error)
        return Item(500, document(request_id, 500, FAULT))
    return Item(200, done.facts, done.files, done.gate)


async def in_order(
    count: int, one: Callable[[int], Awaitable[Item]], *, at_once: int, ticket: Ticket, request_id: str
) -> AsyncGenerator[Item, None]:
    """All items, in order, `at_once` of them in work. Those that are not done in the ticket's time say so."""
    late = timed_out()
    tasks: deque[asyncio.Future[Item]] = deque()
    try:
        for index in range(count + at_once):
            if index < count:
                tasks.append(asyncio.ensure_future(one(index)))
            if index + 1 < at_once or not tasks:
                continue
            task = tasks.popleft()
            try:
                done, _ = await asyncio.wait({task}, timeout=ticket.remaining)
            finally:
                task.cancel()
            yield task.result() if done else Item(503, document(request_id, 503, late.code, str(late)))
    finally:
        for task in tasks:
            task.cancel()


class Collected:
    """What becomes the answer: the manifest, and the zip where one is wanted, spooled while it grows."""

    def __init__(self, id: str, model: Model, *, zipped: bool, spool: Path | None) -> None:
        self._id = id
        self._model = model
        self._items: list[dict[str, Any]] = []
        self._gate = "none"
        folder = None if spool is None else str(spool)
        self._target: IO[bytes] | None = SpooledTemporaryFile(IN_MEMORY, dir=folder) if zipped else None  # noqa: SIM115
        self._zip = ZipFile(self._target, "w", ZIP_STORED) if self._target else None

    def add(self, item: Item) -> None:
        """The next item."""
        self._items.append(item.describe(len(self._items)))
        self._gate = max(self._gate, item.gate, key=VERDICTS.index)
        if self._zip is not None:
            for file in item.files:
                self._zip.writestr(ZipInfo(file.name), file.data)

    def respond(self) -> Response:
        """The answer; it owns the zip from here on. Its gate is the worst of all items'."""
        card = self._model.card
        headers = model_headers(self._model, self._gate)
        manifest = {
            "id": self._id,
            "model": {"name": card.name, "version": card.version, "digest": self._model.package.digest},
            "count": len(self._items),
            "failed": sum(item["status"] != 200 for item in self._items),
            "items": self._items,
        }
        if self._zip is None or self._target is None:
            return JSONResponse(manifest, headers=headers)
        self._zip.writestr(ZipInfo(MANIFEST), json.dumps(manifest, allow_nan=False))
        self._zip.close()
        size = self._target.tell()
        self._target.seek(0)
        told = headers | {"Content-Length": str(size), "Content-Disposition": 'attachment; filename="answers.zip"'}
        return StreamingResponse(_chunks(self._target), media_type=ZIP, headers=told)

    def close(self) -> None:
        """For a request that ends without an answer."""
        if self._target is not None:
            self._target.close()


async def _chunks(source: IO[bytes]) -> AsyncIterator[bytes]:
    with source:
        while chunk := await asyncio.to_thread(source.read, CHUNK):
            yield chunk
