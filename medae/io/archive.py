"""Zips, with nothing in them believed: what any of them must be, and one that was given instead of files, unpacked.

Names are looked at only to refuse those that would lead out of a folder; what is unpacked has names of ours, and lies
in a private folder. Sizes are counted while they grow, over zips within zips, too. The whole is judged against the
bytes that really came, and entries that share their data (a zip bomb without nesting) are refused.
"""

import errno
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO

from medae.errors import LimitExceeded, UnreadableImage, UnsupportedImage
from medae.io.dicom_directory import is_directory
from medae.io.guard import PLAUSIBLE_RATIO
from medae.settings import Settings

_PIECE = 1 << 20
_HEAD = 1024  # enough to tell a zip and a DICOMDIR
_ENTRY_BYTES = 256  # of an entry in the table of contents, on average: 46, the name, times and owners
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1
_DRIVE = re.compile("[A-Za-z]:")
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    LookupError,
)


class Bounds(Settings):
    """Of one zip, with those in it."""

    files: int
    bytes: int
    freely: int
    """Bytes that any zip may unpack to, whatever came."""
    depth: int = 1
    """Zips within one another."""


def is_zip(head: bytes) -> bool:
    """By the first 132 bytes. A DICOM file may begin with anything, and is none."""
    return head.startswith((b"PK\3\4", b"PK\5\6")) and head[128:132] != b"DICM"


def unpack(archive: Path | bytes, folder: Path, bounds: Bounds, is_unwanted: Callable[[], bool]) -> list[Path]:
    """The files of a zip, in its order, under names of ours in `folder`; as far as it gets when it becomes unwanted.

    Left out: folders, files that systems hide, and the directory of a DICOM medium; so there may be none.
    Raises UnreadableImage (damaged), UnsupportedImage (encrypted, nested too deep, or not safe) and LimitExceeded.
    OSError where the disk is full.
    """
    with _opened(archive, bounds) as (table, came):
        unpacking = _Unpacking(folder, bounds, came, is_unwanted)
        unpacking.take(table, came, depth=1)
    return unpacking.kept


class _Unpacking:
    """A zip and those in it, counted together."""

    def __init__(self, folder: Path, bounds: Bounds, came: int, is_unwanted: Callable[[], bool]) -> None:
        self.kept: list[Path] = []
        self._folder, self._bounds, self._came, self._is_unwanted = folder, bounds, came, is_unwanted
        self._files = self._size = 0

    def take(self, table: zipfile.ZipFile, size: int, *, depth: int) -> None:
        """The files of one, which is so large."""
        entries = [entry for entry in entries_of(table, size) if is_seen(entry.filename)]
        self._files += len(entries)
        if self._files > self._bounds.files:
            raise LimitExceeded(
                f"the zip holds {self._files} files, at most {self._bounds.files} are allowed; send fewer"
            )
        self._admit(self._size + sum(entry.file_size for entry in entries))
        for entry in entries:
            path = self._folder / f"unpacked-{len(self.kept):06d}"
            head = self._extract(table, entry, path)
            if self._is_unwanted():
                return
            if is_zip(head):
                self._take_nested(path, depth)
            elif is_directory(head):
                path.unlink()
            else:
                self.kept.append(path)

    def _take_nested(self, path: Path, depth: int) -> None:
        if depth >= self._bounds.depth:
            raise UnsupportedImage("there is a zip in the zip; pack the image files themselves")
        nested = path.rename(self._folder / f"zip-{depth}")  # its first file takes its name
        with _opened(nested, self._bounds) as (table, size):
            self.take(table, size, depth=depth + 1)
        nested.unlink()

    def _admit(self, count: int) -> None:
        bounds = self._bounds
        if count > bounds.bytes:
            raise LimitExceeded(
                f"the zip unpacks to {count} bytes, at most {bounds.bytes} are allowed; send less at once"
            )
        if count > max(bounds.freely, PLAUSIBLE_RATIO * self._came):
            raise LimitExceeded(
                f"the zip unpacks to {count} bytes from {self._came} that came, more than {PLAUSIBLE_RATIO} for one; "
                "send the files as they are"
            )

    def _extract(self, table: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
        """Writes one entry; its first bytes. No more is inflated than the table declared."""
        size, head = 0, b""
        with table.open(entry) as packed, path.open("xb") as file:
            while (piece := packed.read(_PIECE)) and not self._is_unwanted():
                head = head or piece[:_HEAD]
                size += len(piece)
                file.write(piece)
        if size != entry.file_size and not self._is_unwanted():
            raise UnreadableImage("the zip declares other sizes than its files have; it is damaged, pack it again")
        self._size += size
        self._admit(self._size)
        return head


def entries_of(table: zipfile.ZipFile, size: int) -> list[zipfile.ZipInfo]:
    """The files of a zip that has `size` bytes, those that systems hide as well; all judged before any is unpacked.

    Raises UnsupportedImage for what no tool would pack for us: paths that lead out, links, passwords, rare packing, and
    files that share their data.
    """
    entries = []
    for entry in table.infolist():
        require_inside(entry.filename, entry.orig_filename)
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsupportedImage("the zip has links; pack plain files only")
        if entry.flag_bits & _ENCRYPTED:
            raise UnsupportedImage("the zip is encrypted; pack it without a password")
        if entry.compress_type not in _METHODS:
            raise UnsupportedImage("the zip is packed in an unusual way; pack it with deflate, or store the files")
        if not entry.is_dir():
            entries.append(entry)
    if sum(entry.compress_size for entry in entries) > size:
        raise UnsupportedImage("the zip has files that share their data, as zip bombs have; pack it again")
    return entries


def require_inside(*names: str) -> None:
    """Raises UnsupportedImage for the name of an archive's file that leads out of the archive."""
    for name in names:
        if "\0" in name or name.startswith(("/", "\\")) or _DRIVE.match(name) or ".." in re.split(r"[/\\]", name):
            raise UnsupportedImage("the archive has paths that lead out of it; pack plain files only")


def is_seen(name: str) -> bool:
    """Whether a file of an archive is none of those that systems hide."""
    parts = name.split("/")
    return "__MACOSX" not in parts and not any(part.startswith(".") and part != "." for part in parts)


@contextmanager
def _opened(archive: Path | bytes, bounds: Bounds) -> Iterator[tuple[zipfile.ZipFile, int]]:
    """The zip, and its size. What zipfile and zlib raise on damage becomes UnreadableImage."""
    with BytesIO(archive) if isinstance(archive, bytes) else archive.open("rb") as stream:
        came = stream.seek(0, 2)
        stream.seek(0)
        most = max(_ENTRY_BYTES * 2 * bounds.files, _PIECE)  # twice: macOS adds a file for each
        try:
            with zipfile.ZipFile(_Meted(stream, most)) as table:
                yield table, came
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that one is a seek to before the start
                raise
            raise UnreadableImage("the zip is damaged or cut short; pack it again") from None


class _Meted:
    """A stream that gives no more at once than an honest table of contents has: zipfile reads all of it as it comes."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self._stream = stream
        self._most = most
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # zipfile reads the last bytes so
            at = self.tell()
            size = self.seek(0, 2) - at
            self.seek(at)
        if size > self._most:
            raise LimitExceeded("the zip's table of contents is too long; send fewer files at once")
        return self._stream.read(size)

    def close(self) -> None:
        """The stream is closed where it was opened."""
