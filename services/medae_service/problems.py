"""Errors as application/problem+json (RFC 9457): stable codes, and never a word of the request in them."""

from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from medae.errors import MedaeError

FAULT = "fault"


class Refusal(Exception):
    """A request that HTTP itself refuses; errors about images and models are in medae.errors."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers


def problem(
    request_id: str, status: int, code: str, detail: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """`instance` is the request's id, by which the log can be searched."""
    body: dict[str, Any] = {
        "type": f"urn:medae:problem:{code}",
        "title": code.replace("-", " ").capitalize(),
        "status": status,
        "code": code,
        "instance": f"urn:uuid:{request_id}",
    }
    if detail is not None:
        body["detail"] = detail
    return JSONResponse(body, status, dict(headers or {}), media_type="application/problem+json")


def refuse(request_id: str, error: Refusal) -> Response:
    """The answer to a refused request."""
    return problem(request_id, error.status, error.code, str(error), error.headers)


def fault(request_id: str) -> Response:
    """The answer to a fault of ours: no detail, since a foreign exception may quote the image."""
    return problem(request_id, 500, FAULT)


async def on_medae_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MedaeError)
    return problem(request_id_of(request), error.status, error.code, str(error))


async def on_refusal(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refuse(request_id_of(request), error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own: a method that a route does not have."""
    assert isinstance(error, HTTPException)
    code = {404: "no-such-page", 405: "method-not-allowed"}.get(error.status_code, "bad-request")
    return problem(request_id_of(request), error.status_code, code, headers=error.headers)


async def on_fault(request: Request, error: Exception) -> Response:
    return fault(request_id_of(request))


def request_id_of(request: Request) -> str:
    """Given by the journal, the outermost layer."""
    return str(request.scope["medae.request"])
