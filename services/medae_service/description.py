"""/openapi.json and the page at /: what the service answers, from the same tables that the routes use."""

from html import escape
from typing import Any

import medae
from medae_service.answering import OUTPUTS, PARAMETERS
from medae_service.models import Endpoint
from medae_service.uploads import FIELD

ABOUT = "Segments, restores and scores medical images: DICOM, NIfTI, PNG, JPEG, TIFF."
SUMMARIES: dict[str, tuple[Endpoint, str]] = {
    "/v1/segment": ("segment", "Labels for every voxel, in the input's own format and place"),
    "/v1/restore": ("restore", "The image without its noise, in the input's own format and place"),
    "/v1/denoise": ("restore", "The same as /v1/restore, by its common name"),
    "/v1/score": ("score", "How unlike the model's normal images this one is, and where"),
    "/v1/tiles/segment": ("segment", "Labels for each of many images, each with its own status"),
    "/v1/tiles/restore": ("restore", "Each of many images without its noise, each with its own status"),
    "/v1/tiles/denoise": ("restore", "The same as /v1/tiles/restore, by its common name"),
    "/v1/tiles/score": ("score", "The score of each of many images, each with its own status"),
}
PAGES = {
    "/v1/models": "The models served here",
    "/v1/limits": "What may be sent, and how much of it",
    "/openapi.json": "This service as OpenAPI",
    "/livez": "Alive",
    "/readyz": "Ready to answer",
    "/metrics": "Metrics for Prometheus",
}
PROBLEMS = {
    400: "the query or the form is wrong, or this Host is not allowed",
    401: "no valid token",
    403: "a page of another origin",
    404: "no such model",
    408: "the body came too slowly",
    413: "larger than the limits allow",
    415: "not multipart, or a kind of image that is not read",
    422: "not a file, or an image that is damaged or does not fit the model",
    429: "too many requests are waiting",
    500: "a fault of the service",
    507: "no space for the upload",
}

_TYPES: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "a name from /v1/models; needed where several fit"},
    "output": {"type": "string", "enum": list(OUTPUTS), "default": "default"},
    "threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "segment: a probability; score: a target false-positive rate",
    },
    "noise": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "the noise's standard deviation, for a model that is to be told it",
    },
}


def openapi() -> dict[str, Any]:
    """The service as an OpenAPI 3.1 document."""
    paths: dict[str, Any] = {path: {"post": _ask(*about)} for path, about in SUMMARIES.items()}
    paths |= {
        path: {"get": {"summary": text, "responses": {"200": {"description": text}}}} for path, text in PAGES.items()
    }
    problem = {
        "type": "object",
        "required": ["type", "title", "status", "code", "instance"],
        "properties": {name: {"type": "string"} for name in ("type", "title", "code", "instance", "detail")}
        | {"status": {"type": "integer"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "medae",
            "version": medae.__version__,
            "description": "Segment, restore and score medical images",
        },
        "paths": paths,
        "components": {
            "schemas": {"Problem": problem},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _ask(endpoint: Endpoint, text: str) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {
            FIELD: {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "one image, or the slices of one series; recognised by content",
            }
        },
        "additionalProperties": False,
    }
    binary = {"schema": {"type": "string", "format": "binary"}}
    done = {
        "description": "the answer; several files as a zip; Accept: application/json for the summary",
        "headers": {
            "X-Medae-Model": {"schema": {"type": "string"}, "description": "name@digest"},
            "X-Medae-Gate": {"schema": {"enum": ["ok", "review", "reject", "none"]}},
        },
        "content": {
            **{kind: binary for kind in ("image/png", "image/tiff", "application/dicom", "application/gzip")},
            "application/zip": binary,
            "application/json": {"schema": {"type": "object"}},
        },
    }
    problems = {
        str(status): {
            "description": reason,
            "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, reason in PROBLEMS.items()
    }
    return {
        "summary": text,
        "parameters": [{"name": name, "in": "query", "schema": _TYPES[name]} for name in PARAMETERS[endpoint]],
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}},
        "responses": {"200": done, **problems},
    }


def page() -> str:
    """A plain page: no scripts, no styles, nothing from elsewhere."""
    posts = "".join(f"<dt><code>POST {path}</code><dd>{escape(text)}" for path, (_, text) in SUMMARIES.items())
    gets = "".join(
        f'<dt><a href="{path}"><code>GET {path}</code></a><dd>{escape(text)}' for path, text in PAGES.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>medae</title>'
        f"<h1>medae {escape(medae.__version__)}</h1>"
        f"<p>{ABOUT}</p>"
        f"<dl>{posts}{gets}</dl>"
        f"<p>Send an image as a file: <code>curl -F {FIELD}=@image.png -O -J http://HOST:PORT/v1/segment</code></p></html>"
    )
