"""/openapi.json and the page at /: what the service answers, from the same tables that the routes use.

The examples in the document are run one by one in tests, and what is answered is held against its schemas.
"""

from collections.abc import Iterable
from functools import cache
from html import escape
from typing import Any

import medae
from medae.io.dicom_options import DicomAnswers
from medae.predictor import USUAL
from medae_service import schemas
from medae_service.answering import DICOM, JSON, OUTPUTS, PARAMETERS, ZIP
from medae_service.models import Endpoint
from medae_service.problems import CODES, PROBLEM_TYPE
from medae_service.security import NEEDED
from medae_service.uploads import FIELD

ABOUT = "Segments, restores and scores medical images: DICOM, NIfTI, MetaImage, NRRD, PNG, JPEG, TIFF."
SUMMARIES: dict[str, tuple[Endpoint, str]] = {
    "/v1/segment": ("segment", "Labels for every voxel, in the input's own format and place"),
    "/v1/restore": ("restore", "The image without its noise, in the input's own format and place"),
    "/v1/denoise": ("restore", "The same as /v1/restore, by its common name"),
    "/v1/score": ("score", "How unlike the model's normal images this one is, and where"),
}
TILES: dict[str, tuple[Endpoint, str]] = {
    path.replace("/v1/", "/v1/tiles/"): (endpoint, f"Many images in one request, each on its own: {text}")
    for path, (endpoint, text) in SUMMARIES.items()
}
PAGES = {
    "/v1/models": "The models served here",
    "/v1/limits": "What may be sent, and how much of it",
    "/openapi.json": "This service as OpenAPI",
    "/livez": "Alive",
    "/readyz": "Ready to answer",
    "/metrics": "Metrics for Prometheus",
}
BENTOML = {"/docs.json": "BentoML's description of the native endpoints", "/schema.json": "What BentoML's clients read"}
HEALTH = ("/livez", "/readyz", "/healthz")

AT_THE_DOOR = ("host-not-allowed", "no-token", "foreign-origin", "missing-scope", "fault", "not-ready")
"""What any request may hear."""
ABOUT_FILES = tuple(
    name
    for name in CODES
    if name not in (*AT_THE_DOOR, "no-such-page", "method-not-allowed", "wrong-media-type", "bad-request")
)
ABOUT_ONE_ITEM = frozenset({"unreadable-image", "unsupported-image", "unfit-image", "bad-geometry", "bad-series"})

IMAGES = ("image/png", "image/tiff", "application/gzip", "application/dicom")
"""Of answers: PNG, TIFF, NIfTI (.nii.gz), DICOM."""
NAMES: dict[Endpoint, str] = {"segment": "nuclei", "restore": "denoiser", "score": "normal-tissue"}
"""Of models, in examples."""


def _rate(description: str, usual: float) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "default": usual, "description": description}


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    """A field of settings as a parameter."""
    kept = {name: value for name, value in about.items() if name != "title"}
    return kept | {"description": about["description"].replace("\n", " ")}


_PARAMETERS: dict[str, dict[str, Any]] = {
    "model": {"type": "string", "description": "A name from /v1/models; needed where several fit"},
    "output": {"type": "string", "enum": list(OUTPUTS), "default": "default", "description": "What to answer with"},
    "threshold": {
        "type": "number",
        "exclusiveMinimum": 0,
        "exclusiveMaximum": 1,
        "description": "segment: a probability; score: a target false-positive rate",
    },
    "noise": {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "The noise's standard deviation, for models that ask for it (/v1/models)",
    },
    "gate_review": _rate("False alarms of the model's gate that are accepted before `review`", USUAL.review),
    "gate_reject": _rate("The same before `reject`; not above gate_review", USUAL.reject),
    "series": {
        "type": "string",
        "maxLength": 64,
        "pattern": r"^([1-9][0-9]{0,8}|[0-9]+(\.[0-9]+)+)$",
        "description": "Of several DICOM series the number of one, in the list of a refusal, or its SeriesInstanceUID",
    },
    "regular_grid": {
        "type": "boolean",
        "default": False,
        "description": "Make unevenly spaced DICOM slices even (else refused), those of a tilted gantry upright, with "
        "a NIfTI answer",
    },
    **{f"{DICOM}{name}": _plain(about) for name, about in DicomAnswers.model_json_schema()["properties"].items()},
}
_EXAMPLES: dict[Endpoint, dict[str, list[Any]]] = {
    "segment": {
        "output": ["default", "probabilities", "labels-nifti", "summary", "overlay"],
        "threshold": [0.5],
        "dicom_seg": ["labelmap"],
        "dicom_report": [True],
    },
    "restore": {"output": ["default", "summary", "overlay"], "regular_grid": [True], "dicom_compress": ["jpeg-ls"]},
    "score": {"output": ["default", "summary", "overlay"], "threshold": [0.05], "dicom_empty_frames": [True]},
}


@cache
def openapi() -> dict[str, Any]:
    """The service as an OpenAPI 3.1 document."""
    paths: dict[str, Any] = {path: {"post": _ask(path, *about)} for path, about in SUMMARIES.items()}
    paths |= {path: {"post": _ask_each(path, *about)} for path, about in TILES.items()}
    paths |= {
        "/v1/models": {"get": _get("/v1/models", PAGES["/v1/models"], "Models", schemas.MODELS_EXAMPLE)},
        "/v1/limits": {"get": _get("/v1/limits", PAGES["/v1/limits"], "Limits")},
        "/": {"get": _text("/", "This service for people", "text/html")},
        "/openapi.json": {"get": _get("/openapi.json", PAGES["/openapi.json"])},
        "/metrics": {"get": _text("/metrics", PAGES["/metrics"], "text/plain")},
    }
    paths |= {path: {"get": _health(PAGES.get(path, "Ready to answer, by its other name"))} for path in HEALTH}
    paths |= {path: {"get": _get(path, text)} for path, text in BENTOML.items()}
    paths |= {path: {"post": _native(path)} for path in NEEDED if path.startswith("/native/")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "medae",
            "version": medae.__version__,
            "description": f"{ABOUT} Errors are RFC 9457 problems with a stable `code`. Nothing that is sent is kept.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this service"}],
        "paths": paths,
        "components": {
            "schemas": schemas.SCHEMAS,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `medae token new`; the list beside it names the scope that it needs. "
                    "A service without a token file, on this machine only, asks for none.",
                }
            },
        },
    }


def _ask(path: str, endpoint: Endpoint, text: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    done = {
        "description": "The answer in the input's own format; several files as a zip with the summary. "
        "`Accept: application/json` asks for the summary, `Accept: application/zip` for everything",
        "headers": _model_headers(),
        "content": {
            **{kind: binary for kind in IMAGES},
            ZIP: binary,
            JSON: {"schema": _ref("Summary"), "examples": {"summary": {"value": schemas.summary_example(endpoint)}}},
        },
    }
    return {
        "operationId": path.removeprefix("/v1/"),
        "summary": text,
        "parameters": _parameters(endpoint),
        "requestBody": _form("One image, the slices of one DICOM series, or a zip of them; recognised by content"),
        "responses": {"200": done, **_problems(AT_THE_DOOR, ABOUT_FILES)},
        "security": _security(path),
        "x-codeSamples": _curl(path, endpoint, "image"),
    }


def _ask_each(path: str, endpoint: Endpoint, text: str) -> dict[str, Any]:
    done = {
        "description": "A zip of all files, named by the item's number, and manifest.json; with "
        "`Accept: application/json` the manifest alone. Each item has a status of its own",
        "headers": _model_headers(),
        "content": {
            ZIP: {"schema": {"type": "string", "format": "binary"}},
            JSON: {"schema": _ref("Manifest"), "examples": {"two": {"value": schemas.manifest_example(endpoint)}}},
        },
    }
    codes = [code for code in ABOUT_FILES if code not in ABOUT_ONE_ITEM]
    return {
        "operationId": path.removeprefix("/v1/").replace("/", "_"),
        "summary": text,
        "parameters": _parameters(endpoint),
        "requestBody": _form("Images, one a file, or a zip of them; answered in this order"),
        "responses": {"200": done, **_problems(AT_THE_DOOR, codes)},
        "security": _security(path),
        "x-codeSamples": _curl(path, endpoint, "tiles"),
    }


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    examples = {"model": [NAMES[endpoint]], **_EXAMPLES[endpoint]}
    return [
        {
            "name": name,
            "in": "query",
            # several values in one, with commas
            **({"style": "form", "explode": False} if _PARAMETERS[name]["type"] == "array" else {}),
            "description": _PARAMETERS[name]["description"],
            "schema": {key: value for key, value in _PARAMETERS[name].items() if key != "description"},
            **({"examples": {str(one): {"value": one} for one in examples[name]}} if name in examples else {}),
        }
        for name in PARAMETERS[endpoint]
    ]


def _form(text: str) -> dict[str, Any]:
    form = {
        "type": "object",
        "required": [FIELD],
        "properties": {
            FIELD: {
                "type": "array",
                "minItems": 1,
                "items": {"type": "string", "format": "binary"},
                "description": f"{text}. Texts and URLs are refused",
            }
        },
        "additionalProperties": False,
    }
    example = {"summary": "A grey PNG, its content as a data URI", "value": {FIELD: [schemas.PICTURE]}}
    return {"required": True, "content": {"multipart/form-data": {"schema": form, "examples": {"picture": example}}}}


def _curl(path: str, endpoint: Endpoint, what: str) -> list[dict[str, str]]:
    """Commands as people type them."""
    url = f"http://localhost:3000{path}"
    files = f"-F {FIELD}=@image.png" if what == "image" else f"-F {FIELD}=@a.png -F {FIELD}=@b.png"
    secret = '-H "Authorization: Bearer $TOKEN"'
    lines = [
        f"curl {files} {url} -o answer",
        f"curl {files} -H 'Accept: application/json' '{url}?model={NAMES[endpoint]}'",
        f"curl {files} {secret} -H 'Accept: application/zip' '{url}?output=overlay' -o answer.zip",
    ]
    return [{"lang": "Shell", "label": f"curl {number}", "source": line} for number, line in enumerate(lines, 1)]


def _model_headers() -> dict[str, Any]:
    return {
        "X-Medae-Model": {"description": "name@digest", "required": True, "schema": {"type": "string"}},
        "X-Medae-Gate": {
            "description": "How far the image was from what the model knows; of several the worst",
            "required": True,
            "schema": {"enum": ["ok", "review", "reject", "none"]},
        },
        "X-Request-Id": {"description": "As in the service's log", "schema": {"type": "string"}},
    }


def _get(path: str, text: str, schema: str | None = None, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _ref(schema) if schema else {"type": "object"}}
    if example is not None:
        content["examples"] = {"example": {"value": example}}
    return _page(path, text, {JSON: content})


def _text(path: str, text: str, media_type: str) -> dict[str, Any]:
    return _page(path, text, {media_type: {"schema": {"type": "string"}}})


def _page(path: str, text: str, content: dict[str, Any]) -> dict[str, Any]:
    responses = {"200": {"description": text, "content": content}, **_problems(AT_THE_DOOR)}
    return {"operationId": _name(path), "summary": text, "responses": responses, "security": _security(path)}


def _health(text: str) -> dict[str, Any]:
    """An orchestrator asks without a token, and reads nothing but the status."""
    return {"summary": text, "responses": {"200": {"description": text}, **_problems(["not-ready"])}, "security": []}


def _native(path: str) -> dict[str, Any]:
    task, kind = path.rpartition("/")[2].split("_")
    is_list = kind == "list"
    asked, answered = ("ArrayQuestion", "ArrayAnswer") if is_list else (None, None)
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    own = (
        {JSON: {"schema": _ref(answered)}} if answered else {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    )
    codes = ["bad-request", "bad-call", "unknown-model", "wrong-media-type", *ABOUT_FILES]
    return {
        "operationId": _name(path),
        "summary": f"For bentoml.SyncHTTPClient: {task} an array, as {'nested lists' if is_list else '.npy'}"
        + ("" if is_list else ", or a file"),
        "requestBody": {"required": True, "content": {JSON: {"schema": _ref(asked)}} if asked else binary},
        "responses": {"200": {"description": "The answer, in the form of the question", "content": own},
                      **_problems(AT_THE_DOOR, codes)},
        "security": _security(path),
    }  # fmt: skip


def _problems(*groups: Iterable[str]) -> dict[str, Any]:
    """The refusals with these codes, by status."""
    wanted = {code for group in groups for code in group}
    found: dict[str, Any] = {}
    for status in sorted({CODES[code].status for code in wanted}):
        codes = [code for code in CODES if code in wanted and CODES[code].status == status]
        found[str(status)] = {
            "description": "; ".join(f"`{code}`: {CODES[code].meaning}" for code in codes),
            "content": {
                PROBLEM_TYPE: {
                    "schema": {
                        "allOf": [
                            _ref("Problem"),
                            {"properties": {"status": {"const": status}, "code": {"enum": codes}}},
                        ]
                    },
                    "examples": {code: {"value": schemas.problem_example(code)} for code in codes},
                }
            },
        }
    return found


def _security(path: str) -> list[dict[str, list[str]]]:
    scope = NEEDED.get(path, "admin")
    return [{"token": [scope] if scope else []}, {}]


def _name(path: str) -> str:
    return path.strip("/").removesuffix(".json").removeprefix("v1/").replace("/", "_") or "page"


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def page() -> str:
    """A plain page: no scripts, no styles, nothing from elsewhere."""
    posts = "".join(
        f"<dt><code>POST {path}</code><dd>{escape(text)}" for path, (_, text) in (SUMMARIES | TILES).items()
    )
    gets = "".join(
        f'<dt><a href="{path}"><code>GET {path}</code></a><dd>{escape(text)}' for path, text in PAGES.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>medae</title>'
        f"<h1>medae {escape(medae.__version__)}</h1>"
        f"<p>{ABOUT}</p>"
        f"<dl>{posts}{gets}</dl>"
        f"<p>Send an image as a file: <code>curl -F {FIELD}=@image.png -O -J http://HOST:PORT/v1/segment</code></p>"
        '<p><a href="/openapi.json">Every parameter, answer and error</a>; <code>medae --help</code> on the command '
        "line; the folder <code>docs</code> of the source.</p></html>"
    )
