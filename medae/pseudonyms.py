"""Names that stand for identifiers: the same for the same identifier, and without the key nobody can tell for which.

HMAC-SHA256 (RFC 2104) under a key that the site keeps.
"""

import hashlib
import hmac
from pathlib import Path
from typing import Self

from medae.errors import UsageError

LEAST_BYTES = 16
MOST_BYTES = 4096


class Pseudonyms:
    """Keyed hashes of identifiers. `key`: secret, at least LEAST_BYTES long."""

    def __init__(self, key: bytes) -> None:
        if not LEAST_BYTES <= len(key) <= MOST_BYTES:
            raise UsageError(
                f"a key has {LEAST_BYTES} to {MOST_BYTES} bytes, this one {len(key)}; `openssl rand -hex 32` makes one"
            )
        self._key = key

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The key is the file's content, without white space at its ends. Raises UsageError."""
        try:
            with path.open("rb") as stream:
                return cls(stream.read(MOST_BYTES + 1).strip())
        except OSError as error:
            raise UsageError(f"the key file cannot be read ({type(error).__name__})") from None

    def name(self, identifier: str) -> str:
        """32 hexadecimal digits for an id, a name, a number."""
        return self._digest("name", identifier).hex()[:32]

    def uid(self, uid: str) -> str:
        """A DICOM UID (2.25 and a number of 128 bits, PS3.5 B.2) for another."""
        return f"2.25.{int.from_bytes(self._digest('uid', uid)[:16], 'big')}"

    def _digest(self, kind: str, identifier: str) -> bytes:
        return hmac.digest(self._key, f"{kind}\0{identifier}".encode(errors="surrogateescape"), hashlib.sha256)
