"""Who may work in an output folder: a shard is worked on by one process, and all that work at a time share one split.

The leases are locks of the operating system (flock): the kernel lets go of them when their process ends, however it
dies, so that none is left behind for people to remove.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from medae.batch.folder import Folder, taken
from medae.batch.settings import Shard
from medae.errors import OutputError, UsageError

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Lease:
    """The right to work on a shard."""

    first: bool
    """Nobody else is at work in the folder, nor will be before `share` is called."""
    split: int

    def share(self) -> None:
        """Let those in who work on other shards. Raises UsageError where one with another split was quicker."""
        if self.first and not _try(self.split, fcntl.LOCK_SH):
            raise UsageError("another process has begun to work in this output folder with another number of shards")


@contextmanager
def held(folder: Folder, shard: Shard) -> Iterator[Lease]:
    """Holds the lease of a shard; waits while the first process in the folder makes its plan.

    Raises UsageError where another process works on this shard, or where others split the cases in another way.
    """
    with _opened(folder, f"shard-{shard.number}.lock") as own, _opened(folder, "split.lock") as split:
        if not _try(own, fcntl.LOCK_EX):
            raise UsageError(f"another process is at work on shard {shard.number} in this output folder; wait for it")
        while True:
            if _try(split, fcntl.LOCK_EX):
                os.truncate(split, 0)
                os.pwrite(split, str(shard.parts).encode(), 0)
                yield Lease(True, split)
                return
            if _count(split) not in (0, shard.parts):
                raise UsageError(
                    f"other processes are at work in this output folder with {_count(split)} shards; wait for them, or "
                    "give another --out and merge"
                )
            if _try(split, fcntl.LOCK_SH):
                yield Lease(False, split)
                return
            time.sleep(_LOOK_SECONDS)


@contextmanager
def alone(folder: Folder) -> Iterator[None]:
    """Waits for what only one process may do at a time: write the table of results."""
    with _opened(folder, "results.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def is_busy(folder: Folder) -> bool:
    """Whether a process is at work in the folder."""
    with _opened(folder, "split.lock") as split:
        return not _try(split, fcntl.LOCK_EX)


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[int]:
    with taken():
        file = os.open(folder.own / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield file
    finally:
        os.close(file)


def _try(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise OutputError(
            f"the output folder's file system has no locks ({os.strerror(error.errno or 0)}), so two processes could "
            "not tell that they are two; give a folder on another one, and merge"
        ) from None
    return True


def _count(split: int) -> int:
    return int(os.pread(split, 32, 0) or 0)
