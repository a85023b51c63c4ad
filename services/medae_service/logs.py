"""JSON lines about requests and faults that hold nothing about a patient.

The journal writes one line a request, but none for a probe that went well: an id of ours, the name of the token, the
route, the status, sizes and times; never a query, a header, a file name or a client's path. Of an exception only its
type and the line of code are kept: pydicom, nibabel and others quote tags and values in their messages, so their
records are kept without text. Error answers that are not ours (BentoML's, which can quote the request) become problems.
"""

import json
import logging
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medae_service import metrics
from medae_service.problems import PROBLEM_TYPE, fault, foreign

logger = logging.getLogger(__name__)

OURS = frozenset({"medae", "medae_service", "bentoml", "uvicorn"})
"""Loggers whose messages hold no request content. BentoML names the path only, and only known paths reach it."""

HEALTH = frozenset({"/livez", "/readyz", "/healthz"})
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})
CLIENT_GONE = 499


class JsonLines(logging.Formatter):
    """One JSON object a line; of exceptions the type, of foreign loggers no text."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
        }
        if record.name.partition(".")[0] in OURS:
            entry["message"] = record.getMessage()
        entry.update(getattr(record, "fields", {}))
        if record.exc_info and record.exc_info[0] is not None:
            entry["error"] = record.exc_info[0].__name__
        return json.dumps(entry)


def configure() -> None:
    """Make JSON lines on stdout the only output of this process. Called once its models are loaded:
    until then no patient's data is here, and full messages help."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    for name in list(logging.root.manager.loggerDict):
        for old in list(logging.getLogger(name).handlers):
            logging.getLogger(name).removeHandler(old)
        logging.getLogger(name).propagate = True
    logging.root.handlers = [handler]
    logging.getLogger("medae_service").setLevel(logging.INFO)
    logging.captureWarnings(True)


class Journal:
    """The outermost layer: gives each request an id, writes one line about it, lets no exception out."""

    def __init__(self, app: ASGIApp, known_paths: frozenset[str]) -> None:
        self.app = app
        self.known_paths = known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        entry = _Entry(scope, receive, send)
        scope["medae.request"] = entry.id
        try:
            await self.app(scope, receive, entry.send)
        except ClientDisconnect:
            entry.status = CLIENT_GONE
        except Exception as error:
            log_fault(entry.id, error)
            if entry.status == 0:
                await fault(entry.id)(scope, receive, entry.send)
        if scope["path"] in HEALTH and entry.status == 200:
            return  # probes come every few seconds
        route = scope["path"] if scope["path"] in self.known_paths else "-"
        method = scope["method"] if scope["method"] in METHODS else "-"
        metrics.REQUESTS.labels(route, str(entry.status)).inc()
        logger.info("request", extra={"fields": {"method": method, "path": route, **entry.fields()}})


class _Entry:
    """What is noted about one request; passes its answer on, with the id in a header."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.id = uuid4().hex
        self.status = 0
        self._sent = 0
        self._begin = time.monotonic()
        self._stages = metrics.begin_request()
        self._replaced = False
        self._scope, self._receive, self._send = scope, receive, send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if _is_foreign_error(message):
                self._replaced = True
                answer = foreign(self.id, self.status, message["headers"])
                await answer(self._scope, self._receive, self._pass_on)
                return
        if not self._replaced:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"x-request-id", self.id.encode())]}
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b""))
        await self._send(message)

    def fields(self) -> dict[str, Any]:
        client = self._scope.get("medae.client")
        return {
            "request": self.id,
            **({"client": client} if client else {}),
            "status": self.status,
            "sent": self._sent,
            "ms": _milliseconds(time.monotonic() - self._begin),
            "stages_ms": {name: _milliseconds(took) for name, took in self._stages.items()},
        }


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _is_foreign_error(start: Message) -> bool:
    return start["status"] >= 400 and (b"content-type", PROBLEM_TYPE.encode()) not in start["headers"]


def log_fault(request_id: str, error: Exception) -> None:
    """A fault of ours: where, and of which type; never what it says."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    where = f"{Path(last.filename).name}:{last.lineno}" if last else "-"
    fields = {"request": request_id, "error": type(error).__name__, "at": where}
    logger.error("fault", extra={"fields": fields})
