"""JSON schemas (2020-12) of what the service answers, and examples of it; a test holds them against each other."""

from typing import Any

from medae_service.answering import OUTPUTS
from medae_service.models import ENDPOINTS, Endpoint
from medae_service.problems import CODES, document

PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAABDElEQVR42n2T23EFMQhDFQ8FnBJcakrdElRCPgyYzc3Esx+LbB4S8PW92ch+"
    "nuexjfbee9PQkiXrHiTJcmErTZ87EraUUFx/jCSQjPOViPyx0x1I5MSMqsESlcHjScwSq4IL0RGor72pFMWIkwInAyMEkRRVDCT5QvCKALg5"
    "pUM0YSEQxnJxFKzWMau8Urul/vesk/vq46pnNCvtjFuSgiQrqpjKrcsZGUcp1i1wh5gRjmWqaw0pPno4B8dyjPi/7y3JcSi4SXAINBSn3KPv"
    "UJSa1XzgMcqnazmZXi+POVsJrf7XUOol9V+LM6D1Friub8U11X4vzt2Ez8XJ0S7No4wesmNRUNwSblcm9AMIva9KFjFMNwAAAABJRU5ErkJg"
    "gg=="
)
"""32 x 32 grey pixels."""

_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
_TASKS = list(ENDPOINTS)
_COUNT = {"type": "integer", "minimum": 0}
_SECONDS = {"type": "number", "exclusiveMinimum": 0}


def _object(required: dict[str, Any], *, closed: bool = True, **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": required | optional,
        **({"additionalProperties": False} if closed else {}),
    }


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


_MODEL = _object({"name": {"type": "string"}, "version": {"type": "string"}, "digest": _DIGEST})

SCHEMAS: dict[str, Any] = {
    "Problem": _object(
        {
            "type": {"type": "string", "pattern": "^urn:medae:problem:"},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "code": {"type": "string"},
            "instance": {"type": "string", "pattern": "^urn:uuid:", "description": "The request, as in the log"},
        },
        detail={"type": "string", "description": "What came, what is allowed, what to do; never a word of the image"},
    ),
    "Summary": _object(
        {
            "id": {"type": "string"},
            "task": {"enum": _TASKS},
            "model": _MODEL,
            "scores": {"type": "object", "additionalProperties": {"type": "number"}},
            "percentile": _or_null({"type": "number", "minimum": 0, "maximum": 100}),
            "p_value": _or_null({"type": "number", "minimum": 0, "maximum": 1}),
            "decision": {"enum": ["normal", "anomalous", None]},
            "gate": _or_null(
                _object(
                    {"verdict": {"enum": ["ok", "review", "reject"]}, "percentile": _or_null({"type": "number"})},
                    closed=False,
                    reasons={"type": "array", "items": {"type": "string"}},
                )
            ),
            "files": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "media_type": {"type": "string"},
                        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                    }
                ),
            },
            "provenance": _object(
                {
                    "package": _MODEL,
                    "calibration": _or_null({"type": "string"}),
                    "gate_calibration": _or_null({"type": "string"}),
                    "shape_calibration": _or_null({"type": "string"}),
                    "medae": {"type": "string"},
                    "backend": {"type": "string"},
                    "device": {"type": "string"},
                    "threads": _or_null(_COUNT),
                },
                closed=False,
                blended_tiles={"type": "boolean"},
            ),
        }
    ),
    "Manifest": _object(
        {
            "id": {"type": "string"},
            "model": _MODEL,
            "count": _COUNT,
            "failed": _COUNT,
            "items": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _object({"index": _COUNT, "status": {"const": 200}, "summary": _ref("Summary")}),
                        _object(
                            {"index": _COUNT, "status": {"type": "integer", "minimum": 400}, "problem": _ref("Problem")}
                        ),
                    ]
                },
            },
        }
    ),
    "Models": _object(
        {
            "models": {
                "type": "array",
                "items": _object(
                    {
                        "name": {"type": "string"},
                        "version": {"type": "string"},
                        "digest": _DIGEST,
                        "task": {"enum": _TASKS},
                        "endpoint": {"enum": [f"/v1/{endpoint}" for endpoint in ENDPOINTS.values()]},
                        "channels": {"type": "integer", "minimum": 1},
                        "dims": {"enum": [2, 3]},
                        "calibrated": {"type": "boolean"},
                        "gate": {"type": "boolean"},
                        "intended_use": {"type": "string"},
                        "limits": {"type": "string"},
                    }
                ),
            }
        }
    ),
    "Limits": _object(
        {
            "upload": _object({"bytes": _COUNT, "files": _COUNT, "seconds": _SECONDS}),
            "image": {"type": "object", "additionalProperties": _COUNT},
            "decode": _object({"seconds": _SECONDS, "bytes": _COUNT}),
            "compute": _object({"seconds": _SECONDS, "waiting": _COUNT}),
            "tiles": _object({"items": _COUNT}),
            "formats": {"type": "array", "items": {"type": "string"}},
            "outputs": {"type": "array", "items": {"enum": list(OUTPUTS)}},
            "parameters": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": {"type": "string"}},
            },
        }
    ),
    "ArrayQuestion": _object(
        {
            "pixels": {
                "type": "array",
                "description": "(rows, columns), (rows, columns, channels) or (channels, slices, rows, columns)",
            }
        },
        closed=False,
        dtype={"type": "string", "default": "uint8"},
        model=_or_null({"type": "string"}),
        threshold=_or_null({"type": "number"}),
    ),
    "ArrayAnswer": _object({"pixels": {"type": "array"}, "dtype": {"type": "string"}, "summary": _ref("Summary")}),
}

_PACKAGE = {"name": "nuclei", "version": "1.0", "digest": "sha256:" + "3f" * 32}
_ID = "0123456789abcdef0123456789abcdef"
_SCORES: dict[Endpoint, dict[str, float]] = {
    "segment": {"nucleus_voxels": 180.0},
    "restore": {},
    "score": {"l2_mean": 0.0123},
}
_KINDS = {endpoint: kind for kind, endpoint in ENDPOINTS.items()}
MODELS_EXAMPLE: dict[str, Any] = {
    "models": [
        _PACKAGE
        | {
            "task": "segmentation",
            "endpoint": "/v1/segment",
            "channels": 3,
            "dims": 2,
            "calibrated": False,
            "gate": False,
            "intended_use": "Research on stained tissue",
            "limits": "Not a medical device",
        }
    ]
}


def summary_example(endpoint: Endpoint) -> dict[str, Any]:
    scored = endpoint == "score"
    return {
        "id": _ID,
        "task": _KINDS[endpoint],
        "model": _PACKAGE,
        "scores": _SCORES[endpoint],
        "percentile": 97.5 if scored else None,
        "p_value": 0.025 if scored else None,
        "decision": "anomalous" if scored else None,
        "gate": None,
        "files": [{"name": "image_answer.png", "media_type": "image/png", "sha256": "9a" * 32}],
        "provenance": {
            "package": _PACKAGE,
            "calibration": "1" if scored else None,
            "gate_calibration": None,
            "shape_calibration": None,
            "medae": "1.0",
            "backend": "torch",
            "device": "cpu",
            "threads": 1,
        },
    }


def manifest_example(endpoint: Endpoint) -> dict[str, Any]:
    items = [
        {"index": 0, "status": 200, "summary": summary_example(endpoint)},
        {"index": 1, "status": 422, "problem": problem_example("unreadable-image")},
    ]
    return {"id": _ID, "model": _PACKAGE, "count": 2, "failed": 1, "items": items}


def problem_example(code: str) -> dict[str, Any]:
    detail = CODES[code].meaning
    return document(_ID, CODES[code].status, code, None if code == "fault" else detail)
