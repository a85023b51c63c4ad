"""Errors as application/problem+json (RFC 9457): stable codes, and never a word of the request in them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medae.errors import MedaeError

FAULT = "fault"
PROBLEM_TYPE = "application/problem+json"
KEPT_HEADERS = frozenset({b"allow", b"retry-after", b"www-authenticate"})
"""Of an error answer that is not ours; the rest of it can quote the request."""

RETRY_SECONDS = "5"
"""Of an overload that nobody measured; about what it takes to replace a worker."""


class Code(NamedTuple):
    """What a problem's code means: for /openapi.json, the documentation and whoever reads a log."""

    status: int
    meaning: str


CODES: dict[str, Code] = {
    "bad-call": Code(400, "a parameter of the query is unknown, repeated or out of its range"),
    "bad-multipart": Code(400, "the multipart body is malformed"),
    "bad-request": Code(400, "the request is malformed"),
    "host-not-allowed": Code(400, "the Host header is none of the service's names"),
    "no-token": Code(401, "no valid bearer token came"),
    "foreign-origin": Code(403, "a page of another origin asks"),
    "missing-scope": Code(403, "the token lacks the scope that this route needs"),
    "no-such-page": Code(404, "no such path"),
    "unknown-model": Code(404, "no model of that name, or none for this task, is served"),
    "method-not-allowed": Code(405, "the path does not take this method; Allow says which it takes"),
    "upload-timeout": Code(408, "the body came too slowly"),
    "limit-exceeded": Code(413, "larger than /v1/limits allows"),
    "not-multipart": Code(415, "the body is not multipart/form-data"),
    "wrong-media-type": Code(415, "the body is of a kind that this endpoint does not take"),
    "unsupported-image": Code(415, "a kind of image, or of content, that is not read"),
    "bad-input": Code(422, "something is wrong with the image"),
    "bad-geometry": Code(422, "the image has no valid place in space, or two grids that differ"),
    "bad-series": Code(422, "the files do not form one series"),
    "decode-limit": Code(422, "the image could not be decoded within the limits of time and memory"),
    "no-file": Code(422, "no file came"),
    "not-a-file": Code(422, "a field that holds files holds text; URLs are not followed"),
    "unfit-image": Code(422, "a sound image that this model cannot take"),
    "unknown-field": Code(422, "the form has a field that is not known"),
    "unreadable-image": Code(422, "empty, truncated or damaged"),
    "busy": Code(429, "too many requests are waiting; Retry-After says when to try again"),
    FAULT: Code(500, "a fault of the service; its log has the instance"),
    "not-ready": Code(503, "no worker can answer now; Retry-After says when to try again"),
    "compute-timeout": Code(503, "the answer was not ready in the time that one request is given"),
    "device-fault": Code(503, "the device of this worker failed; another may answer"),
    "request-timeout": Code(504, "upload and answer together took too long"),
    "bad-output": Code(507, "the answer cannot be written in the format of the image"),
    "no-space": Code(507, "the upload cannot be stored now"),
}
"""Every problem that a client can get. A code never changes its meaning; a test holds the source to this table."""

_FOREIGN = {
    404: "no-such-page",
    405: "method-not-allowed",
    413: "limit-exceeded",
    429: "busy",
    503: "not-ready",
    504: "request-timeout",
}


class Refusal(Exception):
    """A request that HTTP itself refuses; errors about images and models are in medae.errors."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers


def document(request_id: str, status: int, code: str, detail: str | None = None) -> dict[str, Any]:
    """A problem, JSON-ready. `instance` is the request's id, by which the log can be searched."""
    body: dict[str, Any] = {
        "type": f"urn:medae:problem:{code}",
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "code": code,
        "instance": f"urn:uuid:{request_id}",
    }
    return body if detail is None else body | {"detail": detail}


def problem(
    request_id: str, status: int, code: str, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem as the answer to a whole request."""
    body = document(request_id, status, code, detail)
    return JSONResponse(body, status, dict(headers or {}), media_type=PROBLEM_TYPE)


def refuse(request_id: str, error: Refusal) -> Response:
    """The answer to a refused request."""
    return problem(request_id, error.status, error.code, str(error), error.headers)


def fault(request_id: str) -> Response:
    """The answer to a fault of ours: no detail, since a foreign exception may quote the image."""
    return problem(request_id, 500, FAULT)


def foreign(request_id: str, status: int, headers: Iterable[tuple[bytes, bytes]] = ()) -> Response:
    """In the place of an error answer that BentoML or another library wrote: what it said can quote the request."""
    kept = {name.decode(): value.decode() for name, value in headers if name.lower() in KEPT_HEADERS}
    if status in (429, 503):
        kept.setdefault("retry-after", RETRY_SECONDS)
    return problem(request_id, status, _FOREIGN.get(status, FAULT if status >= 500 else "bad-request"), headers=kept)


async def on_medae_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MedaeError)
    return problem(request_id_of(request), error.status, error.code, str(error))


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refuse(request_id_of(request), error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: a method that a route does not have."""
    assert isinstance(error, HTTPException)
    code = _FOREIGN.get(error.status_code, "bad-request")
    return problem(request_id_of(request), error.status_code, code, headers=error.headers)


async def on_fault(request: Request, error: Exception) -> Response:
    return fault(request_id_of(request))


def request_id_of(request: Request) -> str:
    """Given by the journal, the outermost layer."""
    return str(request.scope["medae.request"])
