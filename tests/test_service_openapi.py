"""/openapi.json: valid, complete, true. Its examples and its curl lines are run one by one; schemathesis tries more."""

import base64
import io
import itertools
import json
import re
import shlex
import zipfile
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from medae.calibration import Calibration
from medae_service.answering import PARAMETERS
from medae_service.app import create_app, paths
from medae_service.description import HEALTH, NAMES, openapi
from medae_service.models import Models
from medae_service.native import SCOPES as NATIVE
from medae_service.problems import CODES, PROBLEM_TYPE
from medae_service.security import NEEDED, door
from medae_service.settings import WorkerSettings
from tests.service_parts import TestClient, client_of, denoiser, png, scorer, segmenter

DOCUMENT = openapi()
OPERATIONS = [
    (path, method, operation) for path, item in DOCUMENT["paths"].items() for method, operation in item.items()
]
IN_PROCESS = paths(create_app(WorkerSettings(), Models()))
ASKING = [(path, operation) for path, method, operation in OPERATIONS if method == "post" and path.startswith("/v1/")]
RESOURCE = Resource.from_contents({"$id": "", **DOCUMENT}, default_specification=DRAFT202012)
REGISTRY = Registry().with_resource("", RESOURCE)


def service() -> TestClient:
    anomaly = scorer(NAMES["score"])
    reference = Calibration.from_scores({"l2_mean": np.linspace(0, 1, 500).tolist()}, package_digest=anomaly.digest)
    return client_of(segmenter(NAMES["segment"]), denoiser(NAMES["restore"]), anomaly.calibrated(reference))


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with service() as made:
        yield made


def require_valid(value: Any, schema: dict[str, Any]) -> None:
    """By JSON schema 2020-12, references into the document included."""
    Draft202012Validator(schema, registry=REGISTRY, _resolver=REGISTRY.resolver_with_root(RESOURCE)).validate(value)


def require_documented(response: httpx.Response, operation: dict[str, Any]) -> None:
    """The status, its media type, its headers and its JSON are in the document."""
    assert str(response.status_code) in operation["responses"], response.text
    answer = operation["responses"][str(response.status_code)]
    kind = response.headers["content-type"].partition(";")[0]
    assert kind in answer["content"], (response.status_code, kind)
    if kind.endswith("json"):
        require_valid(response.json(), answer["content"][kind]["schema"])
    for name, header in answer.get("headers", {}).items():
        if header.get("required"):
            require_valid(response.headers[name], header["schema"])


def picture(uri: str) -> bytes:
    return base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)


# the document itself


def test_it_is_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator

    assert DOCUMENT["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(DOCUMENT).iter_errors()] == []
    assert json.loads(json.dumps(DOCUMENT, allow_nan=False)) == DOCUMENT


def test_every_route_is_in_it_and_no_other() -> None:
    bentoml = {*HEALTH, "/metrics", "/docs.json", "/schema.json"}
    assert set(DOCUMENT["paths"]) == {*IN_PROCESS, *bentoml, *NATIVE}
    names = [operation["operationId"] for *_, operation in OPERATIONS if "operationId" in operation]
    assert len(names) == len(set(names))


def test_every_parameter_and_scope_is_in_it() -> None:
    for path, operation in ASKING:
        endpoint = {"denoise": "restore"}.get(path.rpartition("/")[2], path.rpartition("/")[2])
        assert [one["name"] for one in operation["parameters"]] == list(PARAMETERS[endpoint])  # type: ignore[index]
    for path, _, operation in OPERATIONS:
        scope = NEEDED.get(path, "admin")
        wanted = [] if path in HEALTH else [{"token": [scope] if scope else []}, {}]
        assert operation["security"] == wanted, path


def test_every_code_is_in_it_somewhere() -> None:
    answers = [answer for *_, operation in OPERATIONS for answer in operation["responses"].values()]
    problems = [
        answer["content"][PROBLEM_TYPE]["schema"] for answer in answers if PROBLEM_TYPE in answer.get("content", {})
    ]
    said = {code for schema in problems for code in schema["allOf"][1]["properties"]["code"]["enum"]}
    # a path or a method that there is not has no place in a list of paths and methods
    assert set(CODES) - said <= {"no-such-page", "method-not-allowed"}


def test_every_example_fits_its_schema() -> None:
    seen = 0
    for *_, operation in OPERATIONS:
        for parameter in operation.get("parameters", []):
            for example in parameter.get("examples", {}).values():
                require_valid(example["value"], parameter["schema"])
                seen += 1
        for answer in operation["responses"].values():
            for content in answer.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    require_valid(example["value"], content["schema"])
                    seen += 1
    assert seen > 100


# the document against the service


def asked() -> Iterator[Any]:
    for path, operation in ASKING:
        yield pytest.param(path, operation, {}, id=path)
        for parameter in operation["parameters"]:
            for example in parameter.get("examples", {}).values():
                query = {parameter["name"]: example["value"]}
                yield pytest.param(path, operation, query, id=f"{path}-{parameter['name']}-{example['value']}")


@pytest.mark.parametrize(("path", "operation", "query"), list(asked()))
def test_its_examples_are_answered(
    client: TestClient, path: str, operation: dict[str, Any], query: dict[str, Any]
) -> None:
    (example,) = operation["requestBody"]["content"]["multipart/form-data"]["examples"].values()
    files = [(field, ("x", picture(uri))) for field, uris in example["value"].items() for uri in uris]
    for accept in ("*/*", "application/json", "application/zip"):
        response = client.post(path, params=query, files=files, headers={"Accept": accept})
        assert response.status_code == 200, response.text
        require_documented(response, operation)
        kind = response.headers["content-type"]
        if accept == "application/json":
            assert kind == accept
            (item,) = response.json().get("items", [None])
            assert item is None or item["status"] == 200, item
        if kind == "application/zip":
            names = zipfile.ZipFile(io.BytesIO(response.content)).namelist()
            assert "manifest.json" in names or "image_summary.json" in names


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        pytest.param(sample["source"], operation, id=sample["source"])
        for _, operation in ASKING
        for sample in operation["x-codeSamples"]
    ],
)
def test_its_curl_lines_are_answered(client: TestClient, line: str, operation: dict[str, Any]) -> None:
    program, *words = shlex.split(line)
    assert program == "curl"
    files, headers, url = [], {}, ""
    while words:
        word = words.pop(0)
        if word == "-F":
            field, _, name = words.pop(0).partition("=@")
            files.append((field, (name, png())))
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-o":
            words.pop(0)
        else:
            url = word
    response = client.post(url, files=files, headers=headers)
    assert response.status_code == 200, response.text
    require_documented(response, operation)


@pytest.mark.parametrize("path", [path for path, method, _ in OPERATIONS if method == "get" and path in IN_PROCESS])
def test_its_pages_are_answered(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    require_documented(response, DOCUMENT["paths"][path]["get"])


@pytest.mark.parametrize("data", [b"", b"no image", png()[:-30], png(1, 1)])
def test_refusals_are_as_it_says(client: TestClient, data: bytes) -> None:
    for path, operation in ASKING:
        require_documented(client.post(path, files={"file": data}), operation)
        require_documented(client.post(path, files={"other": data}), operation)
        require_documented(client.post(path, data={"file": "http://evil.example"}), operation)
        require_documented(client.post(path, content=data), operation)
        for query in ({"model": "none"}, {"output": "x"}, {"threshold": "nan"}, {"noise": "-1"}, {"x": "1"}):
            require_documented(client.post(path, params=query, files={"file": data}), operation)
        require_documented(client.post(path, files={"file": data}, headers={"Host": "evil.example"}), operation)
        require_documented(
            client.post(path, files={"file": data}, headers={"Origin": "http://evil.example"}), operation
        )


def test_the_page_names_every_endpoint_and_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/").text
    for path, _ in ASKING:
        assert path in page
    links = set(re.findall(r'href="([^"]*)"', page))
    assert "/openapi.json" in links and all(link.startswith("/") and link in DOCUMENT["paths"] for link in links)
    assert not re.search(r"<(script|style|link|img|iframe)|//[a-z]+\.|https?://(?!HOST)", page)


# schemathesis


def test_schemathesis_finds_no_fault_and_nothing_undocumented() -> None:
    tried(examples=8)


@pytest.mark.slow
def test_schemathesis_at_length() -> None:
    tried(examples=150)


def tried(examples: int) -> None:
    """Each operation with made-up queries, headers and bodies, good and bad: no 5xx, nothing that is not documented."""
    import hypothesis
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_headers_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
              response_schema_conformance]  # fmt: skip
    inner = service()
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.app = inner.app
    answered = 0
    operations = [found.ok() for found in schema.include(path=IN_PROCESS).get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    for operation, mode in itertools.product(operations, modes):
        if mode is GenerationMode.NEGATIVE and not operation.definition.raw.get("parameters"):
            continue  # nothing in it that could be wrong

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        def try_one(case: Any) -> None:
            nonlocal answered
            response = case.call(base_url="http://localhost:3000")
            case.validate_response(response, checks=checks)
            answered += 1

        try_one()
    assert answered > len(ASKING) * min(examples, 3)


def test_the_door_of_the_document_is_the_services() -> None:
    settings = WorkerSettings()
    app = create_app(settings, Models())
    with TestClient(door(app, settings, paths(app)), base_url="http://localhost") as made:
        assert made.get("/openapi.json").json() == DOCUMENT
