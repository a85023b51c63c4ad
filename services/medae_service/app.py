"""The ASGI app that owns `/`, /openapi.json and /v1: routes, and the way of a request through them.

Needs no BentoML: it takes its models by argument, and the same app is mounted into the service and called by tests.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from medae.errors import MedaeError
from medae.image import Image
from medae.io import read_image
from medae.pseudonyms import Pseudonyms
from medae_service import items, limits
from medae_service.admission import SMALL_VOXELS, Admission
from medae_service.answering import (
    STEM,
    Answer,
    Form,
    Question,
    compute,
    counted,
    parse_query,
    respond,
    wanted_form,
)
from medae_service.description import openapi, page
from medae_service.engine import Ticket
from medae_service.logs import CLIENT_GONE
from medae_service.metrics import stage
from medae_service.models import ENDPOINTS, Endpoint, Model, Models
from medae_service.problems import Refusal, on_fault, on_http_exception, on_medae_error, on_refusal, request_id_of
from medae_service.settings import WorkerSettings
from medae_service.uploads import Uploaded, uploaded_files

T = TypeVar("T")


class Read(Protocol):
    """The files of one image, decoded, as read_image does it. Raises InputError, and Refusal."""

    def __call__(
        self, files: Sequence[Uploaded], /, *, series: int | str | None, regular_grid: bool
    ) -> Awaitable[Image]: ...


def create_app(settings: WorkerSettings, models: Models, read: Read | None = None) -> Starlette:
    """The app, without its door (medae_service.security.door). Without `read`, images are decoded in this process."""
    doors = _Doors(settings, models, read or partial(_read_here, settings))
    paths: dict[str, Endpoint] = {name: name for name in ENDPOINTS.values()} | {"denoise": "restore"}
    routes = [
        *(Route(f"/v1/{path}", partial(doors.ask, endpoint=end), methods=["POST"]) for path, end in paths.items()),
        *(Route(f"/v1/tiles/{path}", partial(doors.ask_each, endpoint=end), methods=["POST"])
          for path, end in paths.items()),
        Route("/v1/models", doors.list_models),
        Route("/v1/limits", doors.limits),
        Route("/openapi.json", doors.openapi),
        Route("/", doors.page),
    ]  # fmt: skip
    handlers = {
        MedaeError: on_medae_error,
        Refusal: on_refusal,
        HTTPException: on_http_exception,
        ClientDisconnect: _on_client_left,
        Exception: on_fault,
    }
    return Starlette(routes=routes, exception_handlers=handlers)


def paths(app: Starlette) -> list[str]:
    """All paths that the app answers."""
    return [route.path for route in app.routes if isinstance(route, Route)]


async def _on_client_left(request: Request, error: Exception) -> Response:
    """For the log: nobody reads it."""
    return Response(status_code=CLIENT_GONE)


async def _read_here(
    settings: WorkerSettings, files: Sequence[Uploaded], *, series: int | str | None, regular_grid: bool
) -> Image:
    read = partial(read_image, limits=settings.limits, series=series, regular_grid=regular_grid)
    return await asyncio.to_thread(read, files[0] if len(files) == 1 else files)


@dataclass(frozen=True)
class _Asked:
    """What a request wants, apart from its files."""

    model: Model
    question: Question
    form: Form
    id: str


class _Doors:
    """The routes' handlers."""

    def __init__(self, settings: WorkerSettings, models: Models, read: Read) -> None:
        self._settings = settings
        self._models = models
        self._pseudonyms = None if settings.id_key is None else Pseudonyms.from_file(settings.id_key)
        self._read = read
        self._admission = Admission(
            computing=settings.computing,
            waiting=settings.waiting,
            seconds=settings.compute_seconds,
            small=settings.small,
        )

    async def ask(self, request: Request, endpoint: Endpoint) -> Response:
        """One image, one answer."""
        asked = self._understand(request, endpoint)
        async with AsyncExitStack() as stack:
            files = await self._receive(request, stack)
            finish = partial(respond, model=asked.model, form=asked.form)

            async def work(ticket: Ticket) -> Response:
                return await self._answer(asked, files, ticket, STEM, asked.id, finish)

            return await self._admission.run(request, work)

    async def ask_each(self, request: Request, endpoint: Endpoint) -> Response:
        """Many images, each with its own answer."""
        asked = self._understand(request, endpoint)
        async with AsyncExitStack() as stack:
            files = await self._receive(request, stack)
            items.require_few(len(files), self._settings.request_items)
            return await self._admission.run(request, partial(self._each, asked, files), items.GRACE_SECONDS)

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"models": [model.describe() for model in self._models.all()]})

    async def limits(self, request: Request) -> Response:
        return JSONResponse(limits.describe(self._settings))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(openapi())

    async def page(self, request: Request) -> Response:
        return HTMLResponse(page())

    def _understand(self, request: Request, endpoint: Endpoint) -> _Asked:
        """All that can be refused before the body is read."""
        question = parse_query(request.query_params, endpoint)
        model = self._models.choose(endpoint, question.model)
        question.require_fit(model, self._pseudonyms)
        self._admission.require_room()  # and again after the body
        return _Asked(model, question, wanted_form(request.headers.get("accept", "*/*")), request_id_of(request))

    async def _receive(self, request: Request, stack: AsyncExitStack) -> list[Uploaded]:
        """The request's files; they stay until the stack is left."""
        with stage("upload"):
            return (await stack.enter_async_context(uploaded_files(request, self._settings))).files

    async def _answer(
        self,
        asked: _Asked,
        files: Sequence[Uploaded],
        ticket: Ticket,
        stem: str,
        id: str,
        finish: Callable[[Answer], T],
    ) -> T:
        """From the files of one image to what `finish` makes of its answer, in one of the places to compute."""
        async with self._admission.slot(ticket, small=all(isinstance(file, bytes) for file in files)) as turn:
            with counted(asked.model):
                with stage("decode"):
                    question = asked.question
                    image = await self._read(files, series=question.series, regular_grid=question.regular_grid)
                if image.pixels.size > SMALL_VOXELS:
                    await turn.aclose()

                def work() -> T:
                    made = compute(
                        asked.model,
                        image,
                        asked.question,
                        stem=stem,
                        id=id,
                        ticket=ticket,
                        pseudonyms=self._pseudonyms,
                    )
                    return finish(made)

                return await self._admission.in_thread(work)

    async def _each(self, asked: _Asked, files: Sequence[Uploaded], ticket: Ticket) -> Response:
        async def one(index: int) -> items.Item:
            stem = items.stem_of(index)
            return await items.item_of(
                self._answer(asked, [files[index]], ticket, stem, f"{asked.id}-{index}", lambda made: made), asked.id
            )

        collected = items.Collected(asked.id, asked.model, zipped=asked.form != "json", spool=self._settings.spool)
        at_once = max(1, self._admission.computing // 2)
        try:
            answers = items.in_order(len(files), one, at_once=at_once, ticket=ticket, request_id=asked.id)
            async with aclosing(answers):
                async for item in answers:
                    await asyncio.to_thread(collected.add, item)
        except BaseException:
            collected.close()
            raise
        return collected.respond()
