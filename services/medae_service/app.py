"""The ASGI app that owns `/`, /openapi.json and /v1: routes, and one queue in front of the device.

Needs no BentoML: it takes its models by argument, and the same app is mounted into the service and called by tests.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from medae.errors import MedaeError
from medae_service import limits
from medae_service.answering import answer, parse_query, wanted_form
from medae_service.description import openapi, page
from medae_service.models import Endpoint, Models
from medae_service.problems import Refusal, on_fault, on_http_exception, on_medae_error, on_refusal, request_id_of
from medae_service.settings import WorkerSettings
from medae_service.uploads import uploaded_files

T = TypeVar("T")


def create_app(settings: WorkerSettings, models: Models) -> Starlette:
    """The app, without its door (medae_service.security.door)."""
    doors = _Doors(settings, models)
    routes = [
        Route("/v1/segment", partial(doors.ask, endpoint="segment"), methods=["POST"]),
        Route("/v1/restore", partial(doors.ask, endpoint="restore"), methods=["POST"]),
        Route("/v1/denoise", partial(doors.ask, endpoint="restore"), methods=["POST"]),
        Route("/v1/score", partial(doors.ask, endpoint="score"), methods=["POST"]),
        Route("/v1/models", doors.list_models),
        Route("/v1/limits", doors.limits),
        Route("/openapi.json", doors.openapi),
        Route("/", doors.page),
    ]
    handlers = {
        MedaeError: on_medae_error,
        Refusal: on_refusal,
        HTTPException: on_http_exception,
        Exception: on_fault,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def paths(app: Starlette) -> list[str]:
    """All paths that the app answers."""
    return [route.path for route in app.routes if isinstance(route, Route)]


class DeviceQueue:
    """One request at a time on the device, first come first served; a bounded number waits.

    A thread cannot be stopped: a request that is given up while it runs holds the device until its thread is done, so
    that two never run at once. One that is given up while it waits leaves at once.
    """

    def __init__(self, waiting: int) -> None:
        self._waiting = waiting
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._lock = Lock()
        self._held = 0
        self._seconds = 0.0

    def require_room(self) -> None:
        """Raises Refusal (429) when as many wait as may; the time to retry follows from the last request's."""
        if self._held > self._waiting:
            seconds = max(1, math.ceil(self._held * self._seconds))
            raise Refusal(
                429,
                "busy",
                f"{self._waiting} requests are waiting already; try again in {seconds} s",
                {"Retry-After": str(seconds)},
            )

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` gives. Raises Refusal (429), and what `work` raises."""
        self.require_room()
        self._count(1)
        job = self._device.submit(self._timed, work)
        job.add_done_callback(lambda _: self._count(-1))
        return await asyncio.wrap_future(job)

    def _count(self, change: int) -> None:
        with self._lock:  # a job ends on the device's thread
            self._held += change

    def _timed(self, work: Callable[[], T]) -> T:
        begin = time.monotonic()
        try:
            return work()
        finally:
            self._seconds = time.monotonic() - begin


class _Doors:
    """The routes' handlers."""

    def __init__(self, settings: WorkerSettings, models: Models) -> None:
        self._settings = settings
        self._models = models
        self._queue = DeviceQueue(settings.waiting)

    async def ask(self, request: Request, endpoint: Endpoint) -> Response:
        question = parse_query(request.query_params, endpoint)
        model = self._models.choose(endpoint, question.model)
        question.require_fit(model)
        self._queue.require_room()  # before the body is read, and again after it
        async with uploaded_files(request, self._settings) as files:
            work = partial(
                answer,
                model,
                files,
                question,
                form=wanted_form(request.headers.get("accept", "*/*")),
                request_id=request_id_of(request),
                limits=self._settings.limits,
            )
            return await self._queue.run(work)

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"models": [model.describe() for model in self._models.all()]})

    async def limits(self, request: Request) -> Response:
        return JSONResponse(limits.describe(self._settings))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page())
