"""The warm pool of decoders: from uploaded files to an Image, and nothing worse.

A decoder (decoder.py) that breaks its memory or its time, or crashes, is killed and replaced; its request is refused,
and no other. Pixels come back in sealed anonymous files, which are mapped and not copied (decoded.py).
"""

import asyncio
import json
import mmap
import os
import socket
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from medae.image import Image
from medae_service import decoder, packets
from medae_service.decoded import Breach, Decoded, DecoderFault, image_of, judged, require_pixels
from medae_service.metrics import DECODER_RESTARTS
from medae_service.problems import Refusal
from medae_service.settings import WorkerSettings
from medae_service.uploads import Uploaded

START_SECONDS = 60.0
"""In which a decoder is ready."""
PATIENCE = 0.25
"""Seconds that a decoder has to finish for a client who left; starting another costs more."""


class Decoders:
    """Reads images in child processes, as many at a time as there are children; the others wait. For one event loop.

    Children end with `close`, with this object, or with the process.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self.count = settings.decoders or _default_count(settings.workers or 1)
        self._settings = settings
        self._turn = asyncio.Semaphore(self.count)
        self._idle: deque[_Child] = deque()
        order = {
            "memory": settings.decode_memory_bytes,
            "seconds": settings.decode_seconds,
            "limits": settings.limits.model_dump(),
        }
        self._nursery = _Nursery(order)
        self.close = weakref.finalize(self, self._nursery.close)
        """Ends all children."""

    def start(self) -> None:
        """Starts the children and returns at once; they are ready half a second later. `read` does it if need be."""
        self._idle.extend(self._nursery.start() for _ in range(self.count - len(self._idle)))

    async def read(
        self,
        files: Sequence[Uploaded],
        *,
        as_labels: bool = False,
        series: int | str | None = None,
        regular_grid: bool = False,
    ) -> Image:
        """As read_image, or as read_labels, which knows no series.

        Raises what they raise, and Refusal (422 decode-limit) where the decoder broke a limit or crashed. If this is
        cancelled, the decoder has a moment to finish; then it is killed.
        """
        await self._turn.acquire()
        how = {"labels": as_labels, "series": series, "regular_grid": regular_grid}
        job = asyncio.ensure_future(self._job(files, how))
        job.add_done_callback(self._ended)
        try:
            read = await asyncio.shield(job)
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_later(PATIENCE, job.cancel)
            raise
        if read.has_headers:
            return await asyncio.to_thread(image_of, read, files)  # to read the headers takes a while
        return image_of(read, files)

    def _ended(self, job: "asyncio.Future[Decoded]") -> None:
        self._turn.release()
        if not job.cancelled():
            job.exception()  # known now, also where nobody waits for it any more

    async def _job(self, files: Sequence[Uploaded], how: Mapping[str, Any]) -> Decoded:
        child = await self._ready_child()
        settings = self._settings
        try:
            async with asyncio.timeout(settings.decode_seconds):
                packet = await child.ask(files, how)
            reply = judged(packet, most=settings.decode_memory_bytes, most_header=(1 << 18) + 64 * len(files))
        except TimeoutError:
            self._replace(child)
            raise _refusal(f"it was not decoded within {settings.decode_seconds:g} s") from None
        except Breach:
            self._replace(child)
            raise _refusal(
                f"its decoder crashed, or needed more than {settings.decode_memory_bytes} bytes of memory"
            ) from None
        except BaseException:
            self._replace(child)
            raise
        self._idle.append(child)
        return require_pixels(reply)

    async def _ready_child(self) -> "_Child":
        """The idle one that worked last. Raises DecoderFault where a new one does not start."""
        if not self._idle:
            self.start()
        while (child := self._idle.pop()).is_gone:
            self._replace(child)
        try:
            await child.ready()
        except BaseException:
            self._replace(child)
            raise
        return child

    def _replace(self, child: "_Child") -> None:
        child.forget()
        self._nursery.end(child)
        self._idle.appendleft(self._nursery.start())
        DECODER_RESTARTS.inc()


def _default_count(workers: int) -> int:
    cores = len(os.sched_getaffinity(0))
    return min(cores, max(2, min(4, cores // workers)))


class _Nursery:
    """Starts and ends children on a thread of its own: the kernel ends a child with the thread that started it."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self._order = order
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decoders")
        self._living: set[_Started] = set()

    def start(self) -> "_Child":
        return _Child(self._thread.submit(self._start))

    def end(self, child: "_Child") -> None:
        self._thread.submit(self._end, child)

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)
        for started in self._living:
            started.end()
        self._living.clear()

    def _start(self) -> "_Started":
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        descriptor, page = packets.new_page()
        order = json.dumps({**self._order, "parent": os.getpid(), "page": descriptor})
        try:
            with its:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", decoder.__name__, order],
                    stdin=its.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(descriptor,),
                    start_new_session=True,
                )
        finally:
            os.close(descriptor)
        started = _Started(process, ours, page)
        self._living.add(started)
        return started

    def _end(self, child: "_Child") -> None:
        started = child.process()
        self._living.discard(started)
        started.end()


@dataclass(frozen=True, eq=False)
class _Started:
    process: subprocess.Popen[bytes]
    channel: socket.socket
    page: mmap.mmap

    def end(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()
        self.page.close()


class _Child:
    """One decoder, as the event loop sees it."""

    def __init__(self, started: "Future[_Started]") -> None:
        self._starting = started
        self._started: _Started | None = None  # once it is ready
        self._next: asyncio.Future[packets.Packet] | None = None
        self._is_gone = False

    @property
    def is_gone(self) -> bool:
        """Whether it was started and has ended."""
        if self._started is not None:
            return self._is_gone
        if not self._starting.done() or self._starting.exception() is not None:
            return False  # `ready` tells
        return self._starting.result().process.poll() is not None

    async def ready(self) -> None:
        """Raises DecoderFault where it does not become so."""
        if self._started is not None:
            return
        self._started = await asyncio.shield(asyncio.wrap_future(self._starting))
        asyncio.get_running_loop().add_reader(self._started.channel, self._take, self._started)
        try:
            async with asyncio.timeout(START_SECONDS):
                message = (await self._packet()).message
        except TimeoutError:
            message = b""
        if message != packets.READY:
            raise DecoderFault("a decoder did not start")

    async def ask(self, files: Sequence[Uploaded], how: Mapping[str, Any]) -> packets.Packet:
        """The packet of its answer. Raises Breach where there is none."""
        assert self._started is not None
        given = [len(file) if isinstance(file, bytes) else os.fspath(file) for file in files]
        blobs = [file for file in files if isinstance(file, bytes)]
        question = {"files": given, **how}
        try:
            packets.send(self._started.channel, self._started.page, question, blobs)
        except ConnectionError:
            raise Breach from None
        packet = await self._packet()
        if not packet.message:
            raise Breach
        return packet

    async def _packet(self) -> packets.Packet:
        self._next = asyncio.get_running_loop().create_future()
        return await self._next

    def _take(self, started: _Started) -> None:
        """Its channel has something: an answer, or its end."""
        packet = packets.receive(started.channel, started.page)
        if not packet.message:
            self.forget()
        if self._next is not None and not self._next.done():
            self._next.set_result(packet)
        elif packet.file is not None:  # nobody asked
            os.close(packet.file)

    def forget(self) -> None:
        """Nothing of it is looked at any more."""
        self._is_gone = True
        if self._started is not None:
            asyncio.get_running_loop().remove_reader(self._started.channel)

    def process(self) -> _Started:
        """It, once it is there; for the thread that ends it."""
        return self._starting.result()


def _refusal(reason: str) -> Refusal:
    return Refusal(422, "decode-limit", f"the image is damaged, or too much for this service: {reason}")
