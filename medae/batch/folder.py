"""The output folder of a batch: where things lie in it, that it can be written, and that what was written stays."""

import ctypes
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medae.errors import OutputError
from medae.io.answer import sync_one


@dataclass(frozen=True)
class Folder:
    """Where things lie."""

    out: Path

    @property
    def own(self) -> Path:
        """What only medae reads; hidden, so that no one takes it for answers."""
        return self.out / ".batch"

    @property
    def plan(self) -> Path:
        return self.own / "plan.parquet"

    @property
    def settings(self) -> Path:
        return self.own / "batch.json"

    @property
    def segments(self) -> Path:
        return self.own / "journal"

    @property
    def staging(self) -> Path:
        return self.own / "staging"

    @property
    def table(self) -> Path:
        """What the table of results was made of."""
        return self.own / "table.json"

    @property
    def results(self) -> Path:
        return self.out / "results.parquet"

    @property
    def report(self) -> Path:
        return self.out / "report.html"


def require_writable(out: Path) -> None:
    """Make the output folder. Raises OutputError where nothing can be written, before any work is done for it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise OutputError(f"the output folder cannot be written ({reason}); give another one with --out") from None


@contextmanager
def taken() -> Iterator[None]:
    """Where only the output folder can be at fault: raises OutputError for an OSError."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise OutputError(
            f"the output folder did not take a file ({reason}); make room or make it writable, then give the same "
            "command again: what was committed is kept"
        ) from None


def sync(paths: Sequence[Path]) -> None:
    """Make files or folders durable: by one call for the file system where there is one, else one by one.

    One fsync a file would cost more than the work of a small case: 128 files of 3 kB take 7 ms by one call, and 450 ms
    one by one (ext4 on a virtual disk). Raises OSError.
    """
    if not paths:
        return
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except AttributeError:  # not Linux
        for path in paths:
            sync_one(path)
        return
    descriptor = os.open(paths[0].parent, os.O_RDONLY)
    try:
        if syncfs(descriptor) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
    finally:
        os.close(descriptor)
