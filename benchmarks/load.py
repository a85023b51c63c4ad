"""HTTP load on loopback, by a client that costs little: requests are made beforehand and answers are not parsed.

The client runs on the machine that it measures, so what it costs is taken from the service. asyncio streams and bytes
that were put together once cost some tenths of a millisecond a request; httpx costs several.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from urllib.parse import urlsplit

HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What one request heard."""

    status: int
    """0 where the connection broke."""
    begun: float
    """On time.perf_counter; in open load when it was due, not when it was sent."""
    seconds: float
    body: bytes
    """Empty unless it was asked for."""


@dataclass(frozen=True)
class Target:
    """Where requests go."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> "Target":
        parts = urlsplit(url)
        assert parts.hostname is not None and parts.port is not None
        return cls(parts.hostname, parts.port)


def get(path: str) -> bytes:
    """A request without a body."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, files: Sequence[bytes], accept: str = "*/*") -> bytes:
    """A form with files, as curl and browsers send it."""
    boundary = "medae-benchmark-boundary"
    parts = [
        b'--%b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%b\r\n" % (boundary.encode(), data)
        for data in files
    ]
    body = b"".join([*parts, b"--%b--\r\n" % boundary.encode()])
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={boundary}\r\n\r\n"
    )
    return head.encode() + body


class Connection:
    """One connection that stays open; a broken one is made anew by its next request."""

    def __init__(self, target: Target, *, keep: bool = False) -> None:
        self._target = target
        self._keep = keep
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes, due: float | None = None) -> Answer:
        """The answer; status 0 where none came."""
        begun = time.perf_counter() if due is None else due
        try:
            status, body = await self._exchange(request)
        except (OSError, asyncio.IncompleteReadError):
            self.close()
            status, body = 0, b""
        return Answer(status, begun, time.perf_counter() - begun, body if self._keep else b"")

    async def _exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._target.host, self._target.port, limit=HEADER_BYTES)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers[b"content-length"]))
        if headers.get(b"connection") == b"close":
            self.close()
        return int(first.split()[1]), body

    async def abandon(self, part: bytes) -> None:
        """Send a part of a request, and leave."""
        _, writer = await asyncio.open_connection(self._target.host, self._target.port)
        writer.write(part)
        await writer.drain()
        writer.transport.abort()

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed(
    url: str, requests: Sequence[bytes], *, at_once: int, seconds: float, keep: bool = False
) -> list[Answer]:
    """`at_once` clients, each with a connection of its own, ask without a pause; in the order of the answers."""
    answers: list[Answer] = []
    end = time.perf_counter() + seconds
    turn = count()

    async def client() -> None:
        connection = Connection(Target.of(url), keep=keep)
        while time.perf_counter() < end:
            answers.append(await connection.ask(requests[next(turn) % len(requests)]))
        connection.close()

    await asyncio.gather(*(client() for _ in range(at_once)))
    return answers


async def opened(url: str, requests: Sequence[bytes], *, rate: float, seconds: float, seed: int = 0) -> list[Answer]:
    """Requests come at random (Poisson), `rate` a second, whether or not earlier ones were answered.

    Each takes the connection that has been idle for longest, or a new one.
    """
    return await _sent_when_due(url, requests, _poisson(rate, seconds, seed))


async def steady(url: str, requests: Sequence[bytes], *, rate: float, seconds: float) -> list[Answer]:
    """The same at equal distances."""
    return await _sent_when_due(url, requests, (n / rate for n in range(int(rate * seconds))))


async def _sent_when_due(url: str, requests: Sequence[bytes], times: Iterable[float]) -> list[Answer]:
    idle: deque[Connection] = deque()
    zero = time.perf_counter()
    tasks: list[asyncio.Task[Answer]] = []

    async def one(request: bytes, due: float) -> Answer:
        connection = idle.popleft() if idle else Connection(Target.of(url))
        answer = await connection.ask(request, due)
        idle.append(connection)
        return answer

    for index, at in enumerate(times):
        await asyncio.sleep(max(0.0, zero + at - time.perf_counter()))
        tasks.append(asyncio.ensure_future(one(requests[index % len(requests)], zero + at)))
    answers = await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return answers


def _poisson(rate: float, seconds: float, seed: int) -> Iterable[float]:
    draw, at = random.Random(seed), 0.0
    while (at := at + draw.expovariate(rate)) < seconds:
        yield at


def quantile(answers: Sequence[Answer], share: float) -> float:
    """Of the seconds; nearest rank."""
    ordered = sorted(answer.seconds for answer in answers)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rate_of(answers: Sequence[Answer]) -> float:
    """Answers a second, from the first request to the last answer."""
    begin = min(answer.begun for answer in answers)
    return len(answers) / (max(answer.begun + answer.seconds for answer in answers) - begin)
