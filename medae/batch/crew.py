"""The processes of the local engine: workers and, where there are GPUs, one process for each that they share."""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection

from medae.batch.device import Post
from medae.batch.item import Item
from medae.batch.memory import Grant
from medae.batch.orders import Order, Ready
from medae.errors import MedaeError

START_SECONDS = 1800
CHANCES = 3
"""How often a process may end while it starts."""


@dataclass
class Child:
    """A process of ours, at the other end of a socket pair."""

    process: subprocess.Popen[bytes]
    channel: socket.socket

    @classmethod
    def start(cls, module: str, inherit: Sequence[int] = ()) -> "Child":
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                # not -m: what it sends must be of the module by its own name
                [sys.executable, "-c", f"from {module} import main; main()", str(theirs.fileno())],
                pass_fds=[theirs.fileno(), *inherit],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
        return cls(process, ours)

    def stop(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


def greeting(channel: Connection) -> Ready | None:
    """The first that a process says; None of one that ended before. Raises what it could not start for."""
    try:
        if not channel.poll(START_SECONDS):
            raise MedaeError(f"a process did not start within {START_SECONDS} s; this machine has too much to do")
        said = channel.recv()
    except (EOFError, OSError):
        return None
    if isinstance(said, MedaeError):
        raise said
    assert isinstance(said, Ready), "a process begins with Ready"
    return said


def cannot_start() -> MedaeError:
    return MedaeError(
        f"a process ended while it started, {CHANCES} times (its own message is above); is there too little memory?"
    )


@dataclass
class Device:
    """The process that has a GPU."""

    post: Post
    child: Child
    bytes: int
    """What it held before its first case."""

    @classmethod
    def start(cls, post: Post) -> "Device":
        """Raises what it cannot start for."""
        for _ in range(CHANCES):
            child = Child.start("medae.batch.device")
            with Connection(os.dup(child.channel.fileno())) as channel:
                with suppress(OSError):
                    channel.send(replace(post, parent=os.getpid()))
                said = greeting(channel)
            if said is not None:
                return cls(post, child, said.bytes)
            child.stop()
        raise cannot_start()

    def admit(self, end: socket.socket) -> None:
        """One more worker. Raises OSError where the process is gone."""
        socket.send_fds(self.child.channel, [b"+"], [end.fileno()])


@dataclass
class Worker:
    """A worker, and the cases that it has not reported yet."""

    child: Child
    channel: Connection
    device: Device | None = None
    open: deque[Item] = field(default_factory=deque)
    alone: bool = False
    """Whether it has a case that ended another worker: nothing else is given to it meanwhile."""
    bytes: int = 0
    """What it held before its first case."""

    @classmethod
    def start(cls, order: Order, device: Device | None = None) -> "Worker":
        if device is None:
            child = Child.start("medae.batch.lane")
        else:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                with suppress(OSError):  # without a device, a worker ends while it starts
                    device.admit(ours)
                order = replace(order, shared=theirs.fileno())
                child = Child.start("medae.batch.lane", inherit=[theirs.fileno()])
        channel = Connection(os.dup(child.channel.fileno()))
        with suppress(OSError):
            channel.send(replace(order, parent=os.getpid()))
        return cls(child, channel, device)

    def await_ready(self) -> bool:
        """False where it has ended. Raises what it could not start for."""
        said = greeting(self.channel)
        self.bytes = 0 if said is None else said.bytes
        return said is not None

    def grant(self, grant: Grant) -> None:
        """It works from now on; one that has ended meanwhile is found when it should answer."""
        with suppress(OSError):
            self.channel.send(grant)

    def stop(self) -> None:
        self.channel.close()
        self.child.stop()
