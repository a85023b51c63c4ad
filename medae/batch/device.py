"""One device and the workers that share it: a process has the networks, the workers send it tiles.

A worker's back end is then a channel to that process. The process takes the tiles of whoever waits, fills forward
passes of the back end's own fixed batch with them, and answers each worker. A forward pass always has the same shape
and its samples do not see each other, so that an answer does not depend on who else is asking.
"""

import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medae.backends import Backend
from medae.batch.confinement import confine
from medae.batch.memory import resident_bytes
from medae.batch.orders import Ready
from medae.errors import InputError, MedaeError


@dataclass(frozen=True)
class Post:
    """All that a device process must know."""

    packages: Mapping[str, Path]
    device: str
    parent: int
    memory: int | None = None
    """Bytes of the device that it may use; None: all."""


class Traits(NamedTuple):
    """Of the back end behind a channel."""

    name: str
    device: str
    threads: int
    batch: int


class Ask(NamedTuple):
    """Tiles for one network; their values follow as bytes."""

    package: str
    shape: tuple[int, ...]


class RemoteBackend:
    """The back end of a worker that has no device of its own."""

    def __init__(self, channel: Connection, package: str, traits: Traits) -> None:
        self._channel = channel
        self._package = package
        self.name, self.device, self.threads, self.batch = traits

    @classmethod
    def join(cls, channel: Connection, package: str) -> "RemoteBackend":
        """Ends this process where that with the device is gone."""
        try:
            channel.send(package)
            return cls(channel, package, channel.recv())
        except (EOFError, OSError):
            raise SystemExit("the process that has the device is gone") from None

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        """(N, channels_in, *spatial) float32 -> (N, channels_out, *spatial) float32.

        Raises what the back end raises of an image. Ends this process where that with the device is gone: the parent
        starts both again, and no image is to blame.
        """
        try:
            self._channel.send(Ask(self._package, tiles.shape))
            self._channel.send_bytes(np.ascontiguousarray(tiles, np.float32).data.cast("B"))
            said = self._channel.recv()
            if isinstance(said, InputError):
                raise said
            output: NDArray[np.float32] = np.empty(said, np.float32)
            self._channel.recv_bytes_into(output.data.cast("B"))
        except (EOFError, OSError):
            raise SystemExit("the process that has the device is gone") from None
        return output


def main() -> None:
    """The device process: told by its parent who its workers are, works until the parent is gone."""
    from medae.backends.torch import TorchBackend, keep_heap, limit_memory
    from medae.package import load

    control = socket.socket(fileno=int(sys.argv[1]))
    channel = Connection(control.fileno())
    post: Post = channel.recv()
    confine(post.parent)
    try:
        keep_heap()
        if post.memory is not None:
            limit_memory(post.device, post.memory)
        backends = {
            name: TorchBackend.from_package(load(folder), post.device) for name, folder in post.packages.items()
        }
    except MedaeError as error:
        channel.send(error)
        return
    channel.send(Ready(resident_bytes()))
    serve(control, backends)


def serve(control: socket.socket, backends: Mapping[str, Backend]) -> None:
    """Answers all channels that come over `control`, until it is closed."""
    clients: list[Connection] = []
    while True:
        asked: list[Asked] = []
        for ready in wait([control, *clients]):
            if ready is control:
                _, files, _, _ = socket.recv_fds(control, 1, 1, socket.MSG_CMSG_CLOEXEC)
                if not files:
                    return
                clients.append(Connection(files[0]))
                continue
            client = ready
            assert isinstance(client, Connection), "all others are clients"
            try:
                question = client.recv()
                if isinstance(question, str):
                    backend = backends[question]
                    client.send(Traits(backend.name, backend.device, backend.threads, backend.batch))
                else:
                    tiles: NDArray[np.float32] = np.empty(question.shape, np.float32)
                    client.recv_bytes_into(tiles.data.cast("B"))
                    asked.append(Asked(client, question.package, tiles))
            except (EOFError, OSError):
                clients.remove(client)
        for client, said in answers(asked, backends):
            try:
                if isinstance(said, InputError):
                    client.send(said)
                else:
                    client.send(said.shape)
                    client.send_bytes(said.data.cast("B"))
            except OSError:
                clients.remove(client)


class Asked(NamedTuple):
    """What one worker waits for."""

    client: Connection
    package: str
    tiles: NDArray[np.float32]


def answers(
    asked: Sequence[Asked], backends: Mapping[str, Backend]
) -> Iterator[tuple[Connection, NDArray[np.float32] | InputError]]:
    """Tiles of one network and shape share forward passes; where these do not fit the device, each is tried alone."""
    together: dict[tuple[str, tuple[int, ...]], list[Asked]] = {}
    for one in asked:
        together.setdefault((one.package, one.tiles.shape[1:]), []).append(one)
    for (package, _), group in together.items():
        outputs = _run(backends[package], [one.tiles for one in group])
        if isinstance(outputs, InputError) and len(group) > 1:
            yield from ((one.client, _run(backends[package], [one.tiles])) for one in group)
        elif isinstance(outputs, InputError):
            yield group[0].client, outputs
        else:
            ends = np.cumsum([len(one.tiles) for one in group])
            yield from zip((one.client for one in group), np.split(outputs, ends[:-1]), strict=True)


def _run(backend: Backend, tiles: Sequence[NDArray[np.float32]]) -> NDArray[np.float32] | InputError:
    try:
        output: NDArray[np.float32] = backend.run(tiles[0] if len(tiles) == 1 else np.concatenate(tiles))
        return np.ascontiguousarray(output)
    except InputError as error:
        return error
