"""Bearer tokens: made, listed and revoked by `medae token`, read by a running service whenever the file changes.

A line of the file is `NAME SCOPE,SCOPE SHA256`. A line of one word is a token in plain text, as a container's secret
brings it: it may do everything. `#` begins a comment.

A token is 256 random bits, so its plain SHA-256 keeps it safe: slow hashes such as scrypt protect what people choose
and others can guess, and here each request would pay for them, those of strangers too.
"""

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from medae.errors import OutputError, UsageError

logger = logging.getLogger(__name__)

Scope = Literal["segment", "restore", "score", "models", "metrics", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
"""The first three ask models of a kind; models: what is served, and the limits; metrics: /metrics; admin: all."""
CLIENT_SCOPES: tuple[Scope, ...] = ("segment", "restore", "score", "models")
"""What `medae token new` gives when it is not told."""

PREFIX = "medae_"
"""By which scanners, and people, know a token that lies around."""
SHORT_TOKEN = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEADER = "# NAME SCOPES SHA256: written by `medae token`"


@dataclass(frozen=True)
class Entry:
    """One token: whose it is, what it may do, and its hash. Of one in plain text the name is its line."""

    name: str
    scopes: frozenset[Scope]
    sha256: str
    plain: bool = False

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


def digest_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def parse(text: str) -> list[Entry]:
    """The entries of a token file. Raises UsageError that names the line, never a token."""
    entries = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) == 1:
            entries.append(Entry(f"line-{number}", frozenset({"admin"}), digest_of(words[0]), plain=True))
        else:
            entries.append(_entry(words, number))
    return entries


def _entry(words: Sequence[str], number: int) -> Entry:
    if len(words) != 3 or not _NAME.fullmatch(words[0]) or not _SHA256.fullmatch(words[2]):
        raise UsageError(f"line {number} of the token file is neither `NAME SCOPES SHA256` nor a token alone")
    return Entry(words[0], _scopes(words[1].split(",")), words[2])


def _scopes(names: Sequence[str]) -> frozenset[Scope]:
    chosen = frozenset(scope for scope in SCOPES if scope in names)
    if not chosen or not set(names) <= set(SCOPES):
        raise UsageError(f"a scope is one of {', '.join(SCOPES)}")
    return chosen


def read(path: Path) -> list[Entry]:
    """Raises UsageError for a file that cannot be read, or holds what is no token."""
    try:
        return parse(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{path}: the token file cannot be read as ASCII text") from None


def check(path: Path) -> None:
    """Before a service starts. Raises UsageError without a token; warns of one that others may read or guess."""
    if not read(path):
        raise UsageError(f"{path}: no token in it; make one with `medae token new NAME --file {path}`")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("%s: others may read the tokens; chmod 600 it", path)
    alone = [words[0] for line in path.read_text().splitlines() if len(words := line.split()) == 1]
    if any(len(word) < SHORT_TOKEN for word in alone if not word.startswith("#")):
        logger.warning("%s: a token of less than %d characters can be guessed", path, SHORT_TOKEN)


class Keys:
    """The tokens of a file as they are now: a look at the file's state for each question, a read when it changed.

    A file that is gone or broken lets nobody in.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state: tuple[int, ...] | None = ()
        self._entries: list[Entry] = []

    def find(self, token: str) -> Entry | None:
        """The entry of a token. All are compared, each in constant time: the time tells nothing about any of them."""
        self._refresh()
        digest = digest_of(token)
        found = [entry for entry in self._entries if hmac.compare_digest(digest, entry.sha256)]
        return found[0] if found else None

    def _refresh(self) -> None:
        state = _state(self._path)
        if state == self._state:
            return
        self._state = state
        try:
            self._entries = read(self._path)
            logger.info("tokens read", extra={"fields": {"tokens": len(self._entries)}})
        except UsageError:
            self._entries = []
            logger.error("the token file cannot be used: nobody is let in until it can")


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size, found.st_ctime_ns


def new(path: Path, name: str, scopes: Sequence[str]) -> str:
    """A new token, which is stored nowhere: the file gets its hash. Raises UsageError, OutputError."""
    if not _NAME.fullmatch(name):
        raise UsageError("a name is 1 to 40 letters, digits, dots, hyphens or underscores, such as scanner-2")
    chosen = _scopes(scopes)
    with _locked(path) as lines:
        if any(entry.name == name for entry in parse("\n".join(lines))):
            raise UsageError(f"{path} has a token {name} already; revoke it first, or take another name")
        token = PREFIX + secrets.token_urlsafe(32)
        ordered = ",".join(scope for scope in SCOPES if scope in chosen)
        _write(path, [*(lines or [_HEADER]), f"{name} {ordered} {digest_of(token)}"])
    return token


def revoke(path: Path, name: str) -> None:
    """Remove a token; a running service refuses it from its next request on. Raises UsageError, OutputError."""
    with _locked(path) as lines:
        kept = [line for line in lines if line.split()[:1] != [name] or len(line.split()) == 1]
        if len(kept) == len(lines):
            raise UsageError(f"{path} has no token {name}; `medae token list --file {path}` names them")
        _write(path, kept)


@contextmanager
def _locked(path: Path) -> Iterator[list[str]]:
    """The lines of a file that nobody else changes meanwhile: its folder is locked, since the file is replaced."""
    try:
        folder = os.open(path.resolve().parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        raise OutputError(f"{path}: its folder is not there or not yours") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if path.exists():
            read(path)
            yield path.read_text(encoding="ascii").splitlines()
        else:
            yield []
    finally:
        os.close(folder)


def _write(path: Path, lines: Sequence[str]) -> None:
    """All or nothing, mode 0600, the owner kept: an administrator must not shut the service out of its own file."""
    target = path.resolve()
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=".tokens-", dir=target.parent)  # mode 0600
        with open(descriptor, "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(descriptor)
            if target.exists():
                before = target.stat()
                os.fchown(descriptor, before.st_uid, before.st_gid)
        os.replace(temporary, target)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"{path}: the token file cannot be written: {error.strerror}") from None
