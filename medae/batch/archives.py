"""Cases in zip and tar archives: listed and read member by member, never unpacked, with nothing in them believed.

Names are used to list and to call answers by, never as places to write to. What a member declares is judged before it
is read, and no more of it is read than it declared.
"""

import gzip
import os
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from medae.batch.files import HEAD_BYTES, counts_as_image
from medae.errors import InputError, LimitExceeded, UnreadableImage, UsageError
from medae.io import dicom
from medae.io.archive import entries_of, is_seen, require_inside
from medae.io.guard import DEFAULT_LIMITS, PLAUSIBLE_RATIO, Limits

_GZIP = b"\x1f\x8b"
_HEADER_BYTES = 1 << 20
"""Of one header of a tar, at most: names, times and owners."""
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    LookupError,
    OSError,
)


class Entry(NamedTuple):
    """A file of an archive, as the archive declares it."""

    size: int
    stored: int
    """Bytes that it takes in the archive."""


class _Archive(ABC):
    """An archive that stays open for the reads to come."""

    def __init__(self, path: Path, table: zipfile.ZipFile | tarfile.TarFile) -> None:
        """Raises UsageError or UnsupportedImage for an archive that no honest tool makes."""
        self.close = table.close
        try:
            self.entries = self._listed(path)
            """By name, in the archive's order."""
        except BaseException:
            table.close()
            raise

    @abstractmethod
    def _listed(self, path: Path) -> dict[str, Entry]: ...

    @abstractmethod
    def read(self, name: str, size: int) -> bytes:
        """At most so many bytes of a file."""


class _Zip(_Archive):
    def __init__(self, path: Path) -> None:
        self._table = zipfile.ZipFile(path)
        super().__init__(path, self._table)

    def _listed(self, path: Path) -> dict[str, Entry]:
        found = entries_of(self._table, os.stat(path).st_size)
        return {entry.filename: Entry(entry.file_size, entry.compress_size) for entry in found}

    def read(self, name: str, size: int) -> bytes:
        with self._table.open(name) as packed:
            return packed.read(size)


class _Tar(_Archive):
    """Plain, or packed by gzip as a whole: then what lies before a file is inflated to reach it, so that files are read
    fast in the archive's own order only."""

    def __init__(self, path: Path) -> None:
        self._stream = _Metered(path)
        try:
            self._table = tarfile.TarFile(fileobj=self._stream)  # type: ignore[arg-type]  # all that it calls is there
            super().__init__(path, self._table)
        except BaseException as error:
            self._stream.close()
            if isinstance(error, tarfile.ReadError):
                raise UsageError(
                    "a tar among the inputs is damaged or compressed by another tool than gzip; pack it again as "
                    ".tar, .tar.gz or .zip"
                ) from None
            raise
        self.close = self._stream.close

    def _listed(self, path: Path) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for member in self._table:
            require_inside(member.name)
            if member.isreg() and member.sparse is None:
                entries[member.name] = Entry(member.size, member.size)
        return entries

    def read(self, name: str, size: int) -> bytes:
        packed = self._table.extractfile(name)
        assert packed is not None, "entries are regular files"
        with packed, self._stream.giving(size):
            return packed.read(size)


class _Metered:
    """The bytes of a tar: no more in all than what came makes plausible, and no more at once than a header has or than
    was asked for. tarfile itself would read or inflate whatever a header declares."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        is_packed = self._file.read(2) == _GZIP
        self._file.seek(0)
        self._stream: IO[bytes] = gzip.GzipFile(fileobj=self._file) if is_packed else self._file  # type: ignore[assignment]
        plausible = max(DEFAULT_LIMITS.inflate_freely, PLAUSIBLE_RATIO * os.stat(path).st_size)
        self._end = plausible if is_packed else None
        self._most = _HEADER_BYTES

    @contextmanager
    def giving(self, size: int) -> Iterator[None]:
        """So many bytes at once."""
        self._most = max(size, _HEADER_BYTES)
        try:
            yield
        finally:
            self._most = _HEADER_BYTES

    def read(self, size: int) -> bytes:
        if size > self._most:
            raise UnreadableImage("a tar has a header of an impossible length; it is damaged, pack it again")
        self._admit(self._stream.tell() + size)
        return self._stream.read(size)

    def seek(self, at: int) -> int:
        self._admit(at)
        return self._stream.seek(at)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        self._stream.close()
        self._file.close()

    def _admit(self, end: int) -> None:
        if self._end is not None and end > self._end:
            raise LimitExceeded(
                f"a packed tar unpacks to {end} bytes or more, which is over {PLAUSIBLE_RATIO} for each that came; "
                "pack it as plain .tar or as .zip"
            )


def group_members(archive: Path) -> tuple[list[tuple[str, ...]], int]:
    """The members of each image (those of a DICOM series together), and how many files are none.

    Raises UsageError for an archive that cannot be read, or that no honest tool makes.
    """
    with _refused_whole():
        opened = _opened(archive)
        is_dicom = {name: _is_dicom(opened, name, entry) for name, entry in opened.entries.items() if is_seen(name)}
        alone = [(name,) for name, so in is_dicom.items() if not so and counts_as_image(name)]
        groups = [*alone, *_series(opened, [name for name, so in is_dicom.items() if so])]
    place = {name: number for number, name in enumerate(opened.entries)}
    groups.sort(key=lambda group: min(place[name] for name in group))
    return groups, len(opened.entries) - sum(len(group) for group in groups)


def choose_members(archive: Path, series: int | str) -> tuple[tuple[str, ...], int | None, int]:
    """The members of the one series that is meant, and which volume in them it is, as `dicom.choose_series` says; and
    how many files are left out. Raises UsageError also where that is not clear, with what there is.
    """
    with _refused_whole():
        opened = _opened(archive)
        names = [name for name, entry in opened.entries.items() if is_seen(name) and _is_dicom(opened, name, entry)]
        with _unpacked(opened, sorted(names)) as of:
            paths, number = dicom.choose_series(list(of), series)
            chosen = tuple(of[path] for path in paths)
    return chosen, number, len(opened.entries) - len(chosen)


@contextmanager
def _refused_whole() -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise UsageError(f"an archive among the inputs is refused: {error}") from None
    except _DAMAGE as error:
        raise UsageError(
            f"an archive among the inputs cannot be read ({type(error).__name__}); is it whole? Pack it again"
        ) from None


def read_member(archive: Path, name: str, limits: Limits) -> bytes:
    """Raises UnreadableImage for a member that is damaged or gone, LimitExceeded for one that is too large."""
    try:
        opened = _opened(archive)
        entry = opened.entries.get(name)
        if entry is None:
            raise UnreadableImage("the archive does not hold this file any more")
        _admit(entry, limits)
        data = opened.read(name, entry.size)
    except (*_DAMAGE, UsageError) as error:
        raise UnreadableImage(f"a file in an archive cannot be read ({type(error).__name__}); it is damaged") from None
    if len(data) != entry.size:
        raise UnreadableImage("the archive declares another size than its file has; it is damaged, pack it again")
    return data


_open: dict[tuple[Path, int, int], _Archive] = {}
"""The archive that was read last, since the table of contents of a large one takes seconds."""


def _opened(archive: Path) -> _Archive:
    """Anew where it has changed. For processes that work on one case at a time."""
    found = os.stat(archive)
    key = (archive, found.st_mtime_ns, found.st_size)
    if key not in _open:
        while _open:
            _open.popitem()[1].close()
        _open[key] = _Zip(archive) if archive.name.lower().endswith(".zip") else _Tar(archive)
    return _open[key]


def _is_dicom(opened: _Archive, name: str, entry: Entry) -> bool:
    if counts_as_image(name) and not name.lower().endswith(".dcm"):
        return False
    return entry.size >= HEAD_BYTES and dicom.is_dicom(opened.read(name, HEAD_BYTES))


def _series(opened: _Archive, names: Iterable[str]) -> list[tuple[str, ...]]:
    """DICOM members, grouped by their headers."""
    with _unpacked(opened, names) as of:
        return [tuple(of[path] for path in series.paths) for series in dicom.group_series(list(of))] if of else []


@contextmanager
def _unpacked(opened: _Archive, names: Iterable[str]) -> Iterator[dict[Path, str]]:
    """Members in files of our naming, while the block runs."""
    with tempfile.TemporaryDirectory() as folder:
        of = {}
        for number, name in enumerate(names):
            entry = opened.entries[name]
            _admit(entry, DEFAULT_LIMITS)
            path = Path(folder) / f"{number:08d}"
            path.write_bytes(opened.read(name, entry.size))
            of[path] = name
        yield of


def _admit(entry: Entry, limits: Limits) -> None:
    limits.admit_bytes(entry.size)
    if entry.size > max(limits.inflate_freely, limits.inflate_ratio * entry.stored):
        raise LimitExceeded(
            f"the archive declares {entry.size} bytes from {entry.stored} packed ones, more than "
            f"{limits.inflate_ratio} for one; it is forged or damaged"
        )
