"""A zip that was given instead of files: unpacked into a private folder, with nothing in it believed.

Names are looked at only to refuse those that would lead out of a folder; what is unpacked has names of ours. Sizes are
counted while they grow. The whole is judged against the bytes that really came, so that entries which share their data
(a zip bomb without nesting) count as often as they are listed.
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
    """Of one zip."""

    files: int
    bytes: int
    freely: int
    """Bytes that any zip may unpack to, whatever came."""


def is_zip(head: bytes) -> bool:
    """By the first 132 bytes. A DICOM file may begin with anything, and is none."""
    return head.startswith((b"PK\3\4", b"PK\5\6")) and head[128:132] != b"DICM"


def unpack(archive: Path | bytes, folder: Path, bounds: Bounds, is_unwanted: Callable[[], bool]) -> list[Path]:
    """The files of a zip, in its order, under names of ours in `folder`; as far as it gets when it becomes unwanted.

    Left out: folders, files that systems hide, and the directory of a DICOM medium; so there may be none.
    Raises UnreadableImage (damaged), UnsupportedImage (encrypted, nested, or not safe) and LimitExceeded. OSError where
    the disk is full.
    """
    with _opened(archive, bounds) as (table, came):
        entries = [entry for entry in table.infolist() if _is_wanted(entry)]
        _admit(entries, came, bounds)
        kept: list[Path] = []
        count = 0
        for entry in entries:
            path = folder / f"unpacked-{len(kept):06d}"
            is_image, size = _extract(table, entry, path, is_unwanted)
            count += size
            _admit_bytes(count, came, bounds)
            if is_unwanted():
                break
            if is_image:
                kept.append(path)
            else:
                path.unlink()
    return kept


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


def _is_wanted(entry: zipfile.ZipInfo) -> bool:
    """Whether it is a file that people see. Raises UnsupportedImage for what no tool would pack for us."""
    names = (entry.filename, entry.orig_filename)
    mode = entry.external_attr >> 16
    is_unsafe = any(
        "\0" in name or name.startswith(("/", "\\")) or _DRIVE.match(name) or ".." in re.split(r"[/\\]", name)
        for name in names
    )
    if is_unsafe or stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UnsupportedImage("the zip has links, or paths that lead out of it; pack plain files only")
    parts = entry.filename.split("/")
    return not (entry.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith("."))


def _admit(entries: list[zipfile.ZipInfo], came: int, bounds: Bounds) -> None:
    """Judges what the table declares, before anything is unpacked."""
    if len(entries) > bounds.files:
        raise LimitExceeded(f"the zip holds {len(entries)} files, at most {bounds.files} are allowed; send fewer")
    if any(entry.flag_bits & _ENCRYPTED for entry in entries):
        raise UnsupportedImage("the zip is encrypted; pack it without a password")
    if any(entry.compress_type not in _METHODS for entry in entries):
        raise UnsupportedImage("the zip is packed in an unusual way; pack it with deflate, or store the files")
    _admit_bytes(sum(entry.file_size for entry in entries), came, bounds)


def _admit_bytes(count: int, came: int, bounds: Bounds) -> None:
    if count > bounds.bytes:
        raise LimitExceeded(f"the zip unpacks to {count} bytes, at most {bounds.bytes} are allowed; send less at once")
    if count > max(bounds.freely, PLAUSIBLE_RATIO * came):
        raise LimitExceeded(
            f"the zip unpacks to {count} bytes from {came} that came, more than {PLAUSIBLE_RATIO} for one; send the "
            "files as they are"
        )


def _extract(
    table: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, is_unwanted: Callable[[], bool]
) -> tuple[bool, int]:
    """Writes one entry; whether it may be an image, and its size. No more is inflated than the table declared."""
    size, is_image = 0, True
    with table.open(entry) as packed, path.open("xb") as file:
        while (piece := packed.read(_PIECE)) and not is_unwanted():
            if size == 0:
                is_image = _may_be_image(piece)
            size += len(piece)
            file.write(piece)
    if size != entry.file_size and not is_unwanted():
        raise UnreadableImage("the zip declares other sizes than its files have; it is damaged, pack it again")
    return is_image, size


def _may_be_image(head: bytes) -> bool:
    if is_zip(head):
        raise UnsupportedImage("there is a zip in the zip; pack the image files themselves")
    return not is_directory(head)
