"""Cases in zip and tar archives: listed and read member by member, never unpacked, with nothing in them believed.

Names are used to list and to call answers by, never as places to write to. What a member declares is judged before it
is read, and no more of it is read than it declared.
"""

import os
import tarfile
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from medae.batch.manifest import HEAD_BYTES, counts_as_image
from medae.errors import InputError, LimitExceeded, UnreadableImage, UsageError
from medae.io import dicom
from medae.io.archive import entries_of, is_seen, require_inside
from medae.io.guard import DEFAULT_LIMITS, Limits

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
    def __init__(self, path: Path) -> None:
        try:
            self._table = tarfile.open(path, "r:")  # noqa: SIM115  # stays open for the reads to come
        except tarfile.ReadError:
            raise UsageError(
                "a tar among the inputs is damaged or compressed as a whole, so that single files cannot be reached; "
                "pack it again as plain .tar or as .zip"
            ) from None
        super().__init__(path, self._table)

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
        with packed:
            return packed.read(size)


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
