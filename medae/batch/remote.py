"""Cases behind URLs (s3, gs, https and whatever else fsspec opens): only where the caller has allowed their beginning.

Nothing is allowed by default: a list of cases is data, and must not decide with which servers this machine talks.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from medae.batch.files import Url, counts_as_image
from medae.errors import LimitExceeded, UnreadableImage, UsageError
from medae.io.guard import Limits

SCHEMES = ("s3", "gs", "gcs", "abfs", "az", "https", "http", "memory")
"""What can be allowed; file systems of this machine are given as paths."""

_PIECE = 1 << 20
_SECONDS = 60
_WILD = "*?["


def list_url(address: str, allow: Sequence[str]) -> list[Url]:
    """The images that a URL names: a file, a pattern, or all in a folder that ends with a slash, in order.

    Raises UsageError for a URL that is not allowed or names nothing, and where its server does not answer.
    """
    require_allowed(address, allow)
    if not address.endswith("/") and not any(sign in address for sign in _WILD):
        return [Url(address)]
    scheme = urlsplit(address).scheme
    if scheme in ("http", "https"):
        raise UsageError("web servers do not list folders; give the URLs of files, or a list of cases")
    system = _file_system(scheme)
    try:
        found = system.find(address) if address.endswith("/") else system.glob(address)
    except Exception as error:  # of any library that fsspec calls
        raise UsageError(f"a URL among the inputs cannot be listed ({type(error).__name__})") from None
    urls = [Url(system.unstrip_protocol(name)) for name in sorted(found) if counts_as_image(name)]
    for url in urls:
        require_allowed(url.address, allow)
    if not urls:
        raise UsageError("a URL among the inputs names no image")
    return urls


def read_url(address: str, limits: Limits, allow: Sequence[str]) -> bytes:
    """Raises UnreadableImage for a URL that is not allowed or does not answer, LimitExceeded for too many bytes."""
    try:
        require_allowed(address, allow)
    except UsageError as error:  # of a list's row: one bad row fails alone
        raise UnreadableImage(str(error)) from None
    data = bytearray()
    try:
        with _file_system(urlsplit(address).scheme).open(address, "rb", **_how(address)) as stream:
            while piece := stream.read(_PIECE):
                data += piece
                limits.admit_bytes(len(data))
    except (LimitExceeded, UsageError):
        raise
    except Exception as error:  # of any library that fsspec calls; its words may hold the address
        raise UnreadableImage(
            f"the URL cannot be read ({type(error).__name__}); check that it is there and may be read"
        ) from None
    return bytes(data)


def require_allowed(address: str, allow: Sequence[str]) -> None:
    """Raises UsageError for a URL that begins with none of `allow`: same scheme and server, and below its path."""
    if not any(_is_below(address, beginning) for beginning in allow):
        raise UsageError(
            "a URL among the inputs is not allowed; allow its beginning with --allow, such as --allow s3://bucket/study/"
            f" ({len(allow)} are allowed)"
        )


def _is_below(address: str, beginning: str) -> bool:
    given, allowed = _split(address), _split(beginning)
    if given.scheme not in SCHEMES or given.username or given.password or "\\" in address:
        return False
    path = unquote(given.path)
    if ".." in path.split("/") or "::" in address:  # fsspec's chains would open something else
        return False
    # a beginning without a slash at its end is a file or a whole path segment: s3://bucket/study is not s3://bucket/study2
    base = unquote(allowed.path)
    inside = path == base or path.startswith(base if base.endswith("/") or not base else base + "/")
    return (given.scheme, given.netloc.lower()) == (allowed.scheme, allowed.netloc.lower()) and inside


def _split(address: str) -> SplitResult:
    parts = urlsplit(address)
    # a memory has no servers: memory://study and memory:///study are one
    return (
        parts._replace(netloc="", path=f"/{parts.netloc}{parts.path}")
        if parts.scheme == "memory" and parts.netloc
        else parts
    )


@lru_cache
def _file_system(scheme: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(scheme, **_options(scheme))
    except ImportError:
        raise UsageError(f"{scheme}:// needs one more package: pip install fsspec[{scheme}]") from None


def _options(scheme: str) -> Mapping[str, Any]:
    if scheme not in ("http", "https"):
        return {}
    return {"client_kwargs": {"timeout": _timeout()}}


def _timeout() -> Any:
    from aiohttp import ClientTimeout

    return ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)


def _how(address: str) -> Mapping[str, Any]:
    """A redirection would lead to a server that nobody allowed."""
    return {"block_size": 0, "allow_redirects": False} if urlsplit(address).scheme in ("http", "https") else {}
