"""Who may come in. One door around everything that BentoML serves, its own pages and metrics included.

BentoML runs added middleware only after its metrics, timeout and concurrency slots, and labels its metrics with the
path that the client chose. So the door stands outside: a stranger costs nothing, and only known paths come through.
"""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medae.errors import LimitExceeded
from medae_service import metrics
from medae_service.logs import HEALTH, Journal
from medae_service.problems import Refusal, refuse
from medae_service.settings import WorkerSettings
from medae_service.tokens import Entry, Keys
from medae_service.tokens import Scope as TokenScope

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
)

NEEDED: dict[str, TokenScope | None] = {
    "/": None,  # any token: these say what the service is, and nothing about its use
    "/openapi.json": None,
    "/docs.json": None,
    "/schema.json": None,
    "/v1/segment": "segment",
    "/v1/restore": "restore",
    "/v1/denoise": "restore",
    "/v1/score": "score",
    "/v1/tiles/segment": "segment",
    "/v1/tiles/restore": "restore",
    "/v1/tiles/denoise": "restore",
    "/v1/tiles/score": "score",
    "/native/segment_bytes": "segment",
    "/native/segment_list": "segment",
    "/native/restore_bytes": "restore",
    "/native/restore_list": "restore",
    "/native/score_bytes": "score",
    "/native/score_list": "score",
    "/v1/models": "models",
    "/v1/limits": "models",
    "/metrics": "metrics",
}
"""The scope that a token needs for a route; for one that is not here: admin."""


def door(app: ASGIApp, settings: WorkerSettings, paths: Iterable[str]) -> ASGIApp:
    """`app` behind the journal, the guard and the body limit; `paths` are all that it answers."""
    known = frozenset(paths)
    return Journal(Guard(BodyLimit(app, settings.upload_bytes), settings, known), known)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(header: str) -> str | None:
    """`localhost:3000`, `[::1]:3000` -> the name without port and brackets, in lower case; None if it is neither."""
    if any(character in header for character in "/\\@?#, \t"):
        return None
    try:
        parts = urlsplit(f"//{header}")
        return parts.hostname if parts.port is None or parts.port >= 0 else None
    except ValueError:  # a port that is no number
        return None


class Guard:
    """Checks Host, Origin, token and path before any work; adds the security headers to every answer."""

    def __init__(self, app: ASGIApp, settings: WorkerSettings, known_paths: frozenset[str]) -> None:
        self.app = app
        self.known_paths = known_paths
        self.hosts = LOOPBACK_NAMES | {host.lower() for host in settings.allowed_hosts}
        self.keys = Keys(settings.token_file) if settings.token_file else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                ours = {name for name, _ in SECURITY_HEADERS}
                kept = [item for item in message["headers"] if item[0].lower() not in ours]
                message = {**message, "headers": [*kept, *SECURITY_HEADERS]}
            await send(message)

        try:
            self._check(scope, Headers(scope=scope))
        except Refusal as error:
            await refuse(scope["medae.request"], error)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    def _check(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        if path in HEALTH:  # an orchestrator asks by address and without a token; it learns nothing but yes or no
            return
        host = headers.get("host", "")
        if host_name(host) not in self.hosts:
            raise Refusal(
                400, "host-not-allowed", "this name is not one of the service's; start it with --allowed-host NAME"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "foreign-origin", "pages of other origins may not use this service")
        entry = self._entry(headers.get("authorization", ""))
        if path not in self.known_paths:
            raise Refusal(404, "no-such-page", "no such path; /openapi.json lists them all")
        if entry is not None:
            scope["medae.scopes"] = entry.scopes
            scope["medae.client"] = entry.name
            _require(entry, NEEDED.get(path, "admin"))

    def _entry(self, authorization: str) -> Entry | None:
        """Whose token came; None where none is asked for."""
        if self.keys is None:
            return None
        kind, _, token = authorization.partition(" ")
        entry = self.keys.find(token.strip())
        if entry is None or kind.lower() != "bearer":
            raise Refusal(
                401, "no-token", "send a valid token: `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )
        return entry


def _require(entry: Entry, needed: TokenScope | None) -> None:
    if needed is not None and not entry.may(needed):
        raise Refusal(
            403,
            "missing-scope",
            f"this token may not do that: it needs the scope {needed}; `medae token new NAME --scope {needed}` "
            "makes one that may",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{needed}"'},  # RFC 6750, 3.1
        )


class BodyLimit:
    """Counts a body while it streams in. BentoML has no limit of its own."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "0")
        if len(declared) > 18 or int(declared) > self.limit:  # the server has checked that it is a number
            refusal = Refusal(413, LimitExceeded.code, self._reason())
            await refuse(scope["medae.request"], refusal)(scope, receive, send)
            return
        received = 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            came = len(message.get("body", b""))
            metrics.UPLOAD_BYTES.inc(came)
            received += came
            if received > self.limit:
                raise LimitExceeded(self._reason())
            return message

        await self.app(scope, counted_receive, send)

    def _reason(self) -> str:
        return f"the request is larger than {self.limit} bytes, the limit of this service; send fewer or smaller files"
