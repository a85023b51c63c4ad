"""Client and AsyncClient: the same questions, asked of httpx's two kinds of client."""

import asyncio
import itertools
import time
from asyncio import sleep as sleep_async
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

import httpx

from medae import __version__
from medae.client.answer import Answer, Outcome, Reply, answer_of, forget, object_of, outcomes_of, reply_of, spooled
from medae.client.form import CHUNK, Source, Task
from medae.client.patience import Patience
from medae.client.progress import shown
from medae.client.question import Question, Reading, ask, ask_each, gate_params
from medae.errors import MedaeError, UsageError

if TYPE_CHECKING:
    from medae.answers import Output
    from medae.io.dicom_options import DicomAnswers
    from medae.verdict import GateLimits

UnpackedT = TypeVar("UnpackedT")

AHEAD = 2
"""Answers that `many` has ready or under way, for each that it may ask for at once."""


class _Asks:
    """What both clients know: the address, the token, how patient to be."""

    def __init__(
        self, base_url: str, token: str | None, timeout: float, retries: int, gate: "GateLimits | None"
    ) -> None:
        try:
            scheme = httpx.URL(base_url).scheme
        except httpx.InvalidURL:
            scheme = ""
        if scheme not in ("http", "https"):
            raise UsageError("base_url is the address of a service, such as http://localhost:3000")
        self._patience, self._gate = Patience(retries), gate_params(gate)
        headers = {"User-Agent": f"medae/{__version__}"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._options: dict[str, Any] = {
            "base_url": base_url,
            "headers": headers,
            # no timeout for the pool: there, our own requests wait for each other
            "timeout": httpx.Timeout(timeout, connect=10, write=60, pool=None),
            # neither proxies nor netrc by way of the environment: images go where the caller said, and nowhere else
            "trust_env": False,
        }

    def _pause(self, attempt: int, outcome: Reply | httpx.TransportError) -> float | None:
        """Seconds until the next attempt; None: this outcome is the last."""
        if isinstance(outcome, Reply):
            return self._patience.pause_after_answer(attempt, outcome.status, outcome.headers)
        return self._patience.pause_after_error(attempt, outcome)


class Client(_Asks):
    """A medae service. Safe to use from several threads; close it, or use it in a `with` block.

    timeout: seconds that the service may be silent, such as while it computes. retries: of what was refused because the
    service was busy (429, 503) and of broken connections, with growing pauses, never earlier than Retry-After says.
    gate: when the gates of models warn; None: at the usual rates. transport: for proxies and own certificates
    (httpx.HTTPTransport); none are taken from the environment.
    Raises UsageError for an address that is none.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = 1800,
        retries: int = 5,
        gate: "GateLimits | None" = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, token, timeout, retries, gate)
        self._http = httpx.Client(**self._options, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def segment(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """Labels for every voxel. threshold: a probability. dicom: how answers to DICOM are written.

        series, regular_grid: how its files become one image, as medae.read_image takes them.

        Raises InputError, UsageError and ServiceError.
        """
        return self._answer(ask("segment", source, model, output, threshold, dicom, **reading))

    def restore(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """The image as it would be without its noise."""
        return self._answer(ask("restore", source, model, output, None, dicom, **reading))

    denoise = restore

    def score(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """How unlike the model's normal images this one is. threshold: a target false-positive rate."""
        return self._answer(ask("score", source, model, output, threshold, dicom, **reading))

    def tiles(
        self,
        sources: Iterable[Source],
        task: Task = "segment",
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
    ) -> list[Outcome]:
        """Many small images in one request, an outcome for each, in order; an image that fails, fails alone."""
        begin = time.monotonic()
        reply = self._send(ask_each(task, sources, model, output, threshold, dicom))
        return outcomes_of(reply, time.monotonic() - begin)

    def models(self) -> list[dict[str, Any]]:
        """The models served there, as GET /v1/models describes them."""
        models: list[dict[str, Any]] = self._get("/v1/models")["models"]
        return models

    def limits(self) -> dict[str, Any]:
        """What the service accepts, as GET /v1/limits says it."""
        return self._get("/v1/limits")

    def many(
        self,
        sources: Iterable[Source],
        task: Task = "segment",
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        concurrency: int = 4,
        progress: bool = True,
        **reading: Unpack[Reading],
    ) -> Iterator[Outcome]:
        """Outcomes in the order of `sources`, as they come. An image that fails, fails alone.

        concurrency: how many are asked for at once. progress: a bar, where stderr is a terminal.
        Raises UsageError, since what is wrong with the call is wrong for all.
        """

        def one(number: int, source: Source) -> Outcome:
            try:
                return Outcome(number, self._answer(ask(task, source, model, output, threshold, dicom, **reading)))
            except UsageError:
                raise
            except MedaeError as error:
                return Outcome(number, error=error)

        pool = ThreadPoolExecutor(concurrency, thread_name_prefix="medae-client")
        waiting: deque[Future[Outcome]] = deque()
        try:
            with shown(sources, progress) as advance:
                for number, source in enumerate(sources):
                    if len(waiting) >= AHEAD * concurrency:
                        yield advance(waiting.popleft().result())
                    waiting.append(pool.submit(one, number, source))
                while waiting:
                    yield advance(waiting.popleft().result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _answer(self, question: Question) -> Answer:
        begin = time.monotonic()
        return answer_of(self._send(question), time.monotonic() - begin)

    def _get(self, path: str) -> dict[str, Any]:
        return object_of(self._send(Question(path)))

    def _send(self, question: Question) -> Reply:
        for attempt in itertools.count():
            outcome = self._once(question)
            pause = self._pause(attempt, outcome)
            if pause is None:
                break
            forget(outcome)
            time.sleep(pause)
        return reply_of(outcome)

    def _once(self, question: Question) -> Reply | httpx.TransportError:
        content = question.form.pieces() if question.form else None
        try:
            with spooled() as body:
                with self._http.stream(**question.options(self._gate), content=content) as response:
                    for piece in response.iter_bytes(CHUNK):
                        body.write(piece)
                return Reply(response.status_code, response.headers, body)
        except httpx.TransportError as error:
            return error


class AsyncClient(_Asks):
    """The same for asyncio; see Client."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout: float = 1800,
        retries: int = 5,
        gate: "GateLimits | None" = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(base_url, token, timeout, retries, gate)
        self._http = httpx.AsyncClient(**self._options, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def segment(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """As Client.segment."""
        return await self._answer(partial(ask, "segment", source, model, output, threshold, dicom, **reading))

    async def restore(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """As Client.restore."""
        return await self._answer(partial(ask, "restore", source, model, output, None, dicom, **reading))

    denoise = restore

    async def score(
        self,
        source: Source,
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        **reading: Unpack[Reading],
    ) -> Answer:
        """As Client.score."""
        return await self._answer(partial(ask, "score", source, model, output, threshold, dicom, **reading))

    async def tiles(
        self,
        sources: Iterable[Source],
        task: Task = "segment",
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
    ) -> list[Outcome]:
        """As Client.tiles."""
        asked = partial(ask_each, task, sources, model, output, threshold, dicom)
        return await self._unpacked(outcomes_of, asked)

    async def models(self) -> list[dict[str, Any]]:
        """As Client.models."""
        return list((await self._get("/v1/models"))["models"])

    async def limits(self) -> dict[str, Any]:
        """As Client.limits."""
        return await self._get("/v1/limits")

    async def many(
        self,
        sources: Iterable[Source],
        task: Task = "segment",
        *,
        model: str | None = None,
        output: "Output" = "default",
        threshold: float | None = None,
        dicom: "DicomAnswers | None" = None,
        concurrency: int = 4,
        progress: bool = True,
        **reading: Unpack[Reading],
    ) -> AsyncIterator[Outcome]:
        """As Client.many, an asynchronous iterator."""
        free = asyncio.Semaphore(concurrency)

        async def one(number: int, source: Source) -> Outcome:
            async with free:
                try:
                    asked = partial(ask, task, source, model, output, threshold, dicom, **reading)
                    return Outcome(number, await self._answer(asked))
                except UsageError:
                    raise
                except MedaeError as error:
                    return Outcome(number, error=error)

        waiting: deque[asyncio.Task[Outcome]] = deque()
        try:
            with shown(sources, progress) as advance:
                for number, source in enumerate(sources):
                    if len(waiting) >= AHEAD * concurrency:
                        yield advance(await waiting.popleft())
                    waiting.append(asyncio.create_task(one(number, source)))
                while waiting:
                    yield advance(await waiting.popleft())
        finally:
            for task_left in waiting:
                task_left.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _answer(self, ask: Callable[[], Question]) -> Answer:
        return await self._unpacked(answer_of, ask)

    async def _unpacked(self, unpack: Callable[[Reply, float], UnpackedT], ask: Callable[[], Question]) -> UnpackedT:
        begin = time.monotonic()
        # looking at files and unpacking large answers takes time that others can use
        reply = await self._send(await asyncio.to_thread(ask))
        with reply.body:  # whoever is cancelled here never comes to unpack, which would close it
            return await asyncio.to_thread(unpack, reply, time.monotonic() - begin)

    async def _get(self, path: str) -> dict[str, Any]:
        return object_of(await self._send(Question(path)))

    async def _send(self, question: Question) -> Reply:
        for attempt in itertools.count():
            outcome = await self._once(question)
            pause = self._pause(attempt, outcome)
            if pause is None:
                break
            forget(outcome)
            await sleep_async(pause)
        return reply_of(outcome)

    async def _once(self, question: Question) -> Reply | httpx.TransportError:
        content = question.form.pieces_async() if question.form else None
        try:
            with spooled() as body:
                async with self._http.stream(**question.options(self._gate), content=content) as response:
                    async for piece in response.aiter_bytes(CHUNK):
                        body.write(piece)
                return Reply(response.status_code, response.headers, body)
        except httpx.TransportError as error:
            return error
