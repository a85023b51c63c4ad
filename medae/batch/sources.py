"""The bytes of a case, from wherever its files lie, and their fingerprint when they are read."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from medae.batch.archives import read_member
from medae.batch.files import File, Member, Url
from medae.batch.remote import read_url
from medae.errors import InputError, UnreadableImage
from medae.io.guard import Limits

_PIECE = 1 << 20
_WHOLE = 1 << 26
"""Bytes of a file that is read once, for its digest and its pixels; longer ones and series are read by their path."""


class Fingerprint(NamedTuple):
    """By which a changed input is known."""

    digest: str
    """ "sha256:" and that of the bytes; of several files, that of their digests in order."""
    size: int
    """Bytes; 0 of what cannot be asked for it cheaply: members of archives, URLs."""
    time: int
    """When the file was changed last (ns since 1970); of several the latest, of an archive's member the archive's."""


class Fetched(NamedTuple):
    """What `read_image` takes, and what it was."""

    sources: list[Path | bytes]
    fingerprint: Fingerprint


def fetch(files: Sequence[File], limits: Limits, allow: Sequence[str] = ()) -> Fetched:
    """The bytes of a case, or its paths where they are many, with their fingerprint.

    Raises UnreadableImage where one is not there or cannot be read, LimitExceeded for too many bytes.
    """
    files = _expanded(files)
    limits.admit_files(len(files))
    before = stamp(files)  # a file that is changed while it is read is found to have changed
    limits.admit_bytes(before.size)
    by_path = len(files) > 1 or before.size > _WHOLE or _has_neighbours(files[0])
    sources: list[Path | bytes] = []
    digests: list[str] = []
    for file in files:
        if isinstance(file, Path) and by_path:
            sources.append(file)
            digests.append(_digest_of(_pieces(file)))
        else:
            content = _content(file, limits, allow)
            sources.append(content)
            digests.append(hashlib.sha256(content).hexdigest())
    return Fetched(sources, Fingerprint(joined(digests), before.size, before.time))


def _has_neighbours(file: File) -> bool:
    """Whether its pixels lie in files beside it, so that its bytes alone are no image."""
    return isinstance(file, Path) and (file.name.upper() == "DICOMDIR" or file.suffix.lower() in (".mhd", ".nhdr"))


class Stamp(NamedTuple):
    """By which a change is suspected."""

    size: int
    time: int


def stamp(files: Sequence[File]) -> Stamp:
    """Size and time of a case, without reading; of an archive's member the archive's time; zeros of a URL.

    Raises UnreadableImage where a file is not there.
    """
    each = [_stamp(file) for file in _expanded(files)]
    return Stamp(sum(at.size for at in each), max(at.time for at in each))


def _stamp(file: File) -> Stamp:  # of what _expanded gives
    if isinstance(file, Url):
        return Stamp(0, 0)
    try:
        found = os.stat(file.archive if isinstance(file, Member) else file)
    except OSError as error:
        raise _unreadable(error) from None
    return Stamp(0 if isinstance(file, Member) else found.st_size, found.st_mtime_ns)


def _expanded(files: Sequence[File]) -> Sequence[File]:
    """A folder stands for the files in it, as `read_image` takes them."""
    files = [Path(file) if isinstance(file, str) else file for file in files]
    if len(files) != 1 or not isinstance(folder := files[0], Path) or not folder.is_dir():
        return files
    found = [Path(parent) / name for parent, _, names in os.walk(folder) for name in names]
    inside = sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not inside:
        raise UnreadableImage("the folder of a case holds no file")
    return inside


def fingerprint(files: Sequence[File], limits: Limits, allow: Sequence[str] = ()) -> Fingerprint:
    """As `fetch`, with nothing kept."""
    return fetch(files, limits, allow).fingerprint


def joined(digests: Sequence[str]) -> str:
    """One digest for the files of a case."""
    one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"sha256:{one}"


def _content(file: File, limits: Limits, allow: Sequence[str]) -> bytes:
    if isinstance(file, Member):
        return read_member(file.archive, file.name, limits)
    if isinstance(file, Url):
        return read_url(file.address, limits, allow)
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise _unreadable(error) from None


def _pieces(path: Path) -> Iterable[bytes]:
    try:
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except OSError as error:
        raise _unreadable(error) from None


def _digest_of(pieces: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _unreadable(error: OSError) -> InputError:
    return UnreadableImage(f"the file cannot be opened ({type(error).__name__}); check that it exists and may be read")
