"""Who may come in at the HTTP door, and that nothing about a patient gets out."""

import ast
import io
import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from starlette.responses import PlainTextResponse

from medae.errors import InputError, MedaeError, OutputError, UnknownModel, UsageError
from medae.io.guard import Limits
from medae_service import decoded, security
from medae_service.app import paths
from medae_service.beside import Beside
from medae_service.description import openapi
from medae_service.logs import HEALTH
from medae_service.problems import CODES
from medae_service.security import NEEDED, door, host_name
from medae_service.settings import WorkerSettings
from medae_service.tokens import SCOPES, Scope, digest_of, new
from tests.service_parts import (
    CANARY,
    FORM,
    PNG,
    TestClient,
    client_of,
    denoiser,
    dicom_slice,
    png,
    problem,
    recorded_log,
    scorer,
    segmenter,
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(segmenter(), denoiser(), scorer()) as made:
        yield made


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    with recorded_log() as stream:
        yield stream


def routed(routes: Iterable[Any]) -> Iterator[str]:
    """The paths of routes, and of the apps mounted among them."""
    for route in routes:
        inner = getattr(route, "routes", None)
        if inner:
            yield from routed(inner)
        elif route.path:
            yield route.path


def every_path() -> list[str]:
    """All that the app, BentoML and the description have, without the probes."""
    from medae_service.service import medae_service

    served: Any = medae_service.to_asgi()
    found = set(openapi()["paths"])
    while not hasattr(served, "routes"):
        if isinstance(served, Beside):
            found |= served.paths
        served = served.theirs if isinstance(served, Beside) else served.app
    return sorted({*routed(served.routes), *found} - HEALTH)


# who may come in


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:3000", "localhost"),
        ("LOCALHOST", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:3000", "::1"),
        ("evil.example", "evil.example"),
        ("", None),
        ("localhost:x", None),
        ("evil.example/localhost", None),
        ("evil@localhost", None),
        ("localhost, evil.example", None),
        ("[::1", None),
    ],
)
def test_host_names(header: str, name: str | None) -> None:
    assert host_name(header) == name


def test_hosts_and_origins(client: TestClient) -> None:
    def models(**headers: str) -> httpx.Response:
        return client.get("/v1/models", headers=headers)

    problem(models(Host="evil.example"), 400, "host-not-allowed")
    problem(models(Host=""), 400, "host-not-allowed")
    assert models(Host="127.0.0.1:3000").status_code == 200
    assert models(Host="[::1]").status_code == 200
    assert models(Origin="http://localhost:3000").status_code == 200
    for origin in ("http://evil.example", "null", "http://localhost:8080", "http://localhost:3000.evil.example"):
        problem(models(Origin=origin), 403, "foreign-origin")
        answer = client.post("/v1/segment", files=PNG, headers={"Origin": origin})
        problem(answer, 403, "foreign-origin")
        preflight = client.options("/v1/segment", headers={"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert not any(name.startswith("access-control") for name in preflight.headers)
    with client_of(segmenter(), allowed_hosts=("Scanner.Example",)) as other:
        assert other.get("/v1/models", headers={"Host": "scanner.example:3000"}).status_code == 200


def test_every_route_but_health_needs_a_token(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-first-token-of-all\na-second-token-of-all\n")
    with client_of(segmenter(), token_file=tmp_path / "tokens") as client:
        for path in [*every_path(), "/nothing"]:
            for method in ("GET", "HEAD", "POST", "OPTIONS"):
                response = client.request(method, path)
                assert response.status_code == 401, (method, path)
                assert response.headers["www-authenticate"] == "Bearer"
                if method != "HEAD":
                    problem(response, 401, "no-token")
        for wrong in (
            "",
            "Bearer",
            "Bearer ",
            "Bearer x",
            "Basic a-first-token-of-all",
            "a-first-token-of-all",
            f"Bearer {digest_of('a-first-token-of-all')}",
            "Bearer a-first-token-of-all a-second-token-of-all",
            "Bearer a-first-tokén-of-all",
            "Bearer line-1",
        ):
            problem(client.get("/v1/models", headers={"Authorization": wrong.encode()}), 401, "no-token")
        for token in ("a-first-token-of-all", "a-second-token-of-all"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert client.get("/v1/models", headers={"Authorization": f"bearer {token}"}).status_code == 200


def test_nothing_is_read_of_a_stranger(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-first-token-of-all\n")
    read: list[int] = []

    def body() -> Iterator[bytes]:
        read.append(1)
        yield b"x"

    with client_of(segmenter(), token_file=tmp_path / "tokens") as client:
        app = client.app.app.app  # type: ignore[attr-defined]  # journal, guard, then all that works
        client.app.app.app = lambda *arguments: pytest.fail("a stranger's request came in")  # type: ignore[attr-defined]
        problem(client.post("/v1/segment", content=body()), 401, "no-token")
        client.app.app.app = app  # type: ignore[attr-defined]
    # the test client reads the body to send it; the service must not have asked for it
    assert len(read) <= 1


@pytest.mark.parametrize("scope", SCOPES)
def test_a_token_opens_the_routes_of_its_scope(tmp_path: Path, scope: Scope) -> None:
    headers = {"Authorization": f"Bearer {new(tmp_path / 'tokens', 'one', [scope])}"}
    with client_of(segmenter(), token_file=tmp_path / "tokens") as client:
        for path in every_path():
            needed = NEEDED.get(path, "admin")
            if path not in paths(client.app.app.app.app):  # type: ignore[attr-defined]
                continue  # the rest is BentoML's, which is not here: see test_service_process.py
            response = client.get(path, headers=headers)
            if needed in (None, scope) or scope == "admin":
                assert response.status_code not in (401, 403), path
            else:
                assert needed in problem(response, 403, "missing-scope")
                assert f'scope="{needed}"' in response.headers["www-authenticate"]


def test_every_route_has_its_scope() -> None:
    """One that is forgotten needs admin: nothing opens by mistake, and this test says which."""
    assert {"/metrics", "/v1/segment", "/docs.json"} < set(every_path())
    assert set(every_path()) - {"/static_content"} <= set(NEEDED)  # BentoML's own page, which no door leads to


def test_unknown_paths_and_methods(client: TestClient) -> None:
    problem(client.get(f"/v1/{CANARY}"), 404, "no-such-page")
    problem(client.get("/v1/segment/"), 404, "no-such-page")
    response = client.get("/v1/segment")
    problem(response, 405, "method-not-allowed")
    assert response.headers["allow"] == "POST"


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    answers = [client.get("/"), client.get("/none"), client.post("/v1/segment", files=PNG), client.post("/v1/score")]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert len(answer.headers.get_list("x-request-id")) == 1


def test_web_sockets_are_closed(client: TestClient) -> None:
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/segment"):
        pass


# problems


def raised_in(path: Path) -> Iterator[tuple[int, str]]:
    """Status and code of every Refusal that a file raises with both written out."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Refusal":
            status, code = node.args[:2]
            if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                yield int(status.value), str(code.value)


def test_the_table_has_every_problem() -> None:
    folder = Path(security.__file__).parent
    raised = {pair for path in folder.glob("*.py") for pair in raised_in(path)}
    assert {(401, "no-token"), (429, "busy"), (408, "upload-timeout")} <= raised
    assert raised <= {(code.status, name) for name, code in CODES.items()}


@pytest.mark.parametrize("error", [InputError, *InputError.__subclasses__(), UsageError, UnknownModel, OutputError])
def test_the_table_has_every_error_about_images_and_calls(error: type[MedaeError]) -> None:
    assert CODES[error.code].status == error.status


@pytest.mark.parametrize("status", [400, 404, 405, 413, 422, 429, 500, 502, 503, 504])
def test_what_others_say_about_an_error_is_not_passed_on(status: int) -> None:
    """BentoML and Starlette quote the request in their errors; what a program needs of them stays."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {"Allow": "GET", "Retry-After": "7", "X-Said": CANARY, "Set-Cookie": CANARY}
        await PlainTextResponse(f"cannot read {CANARY}", status, headers)(scope, receive, send)

    response = TestClient(door(app, WorkerSettings(), ["/x"]), base_url="http://localhost").get("/x")
    body = response.json()
    assert response.status_code == body["status"] == status
    assert body["code"] in CODES
    assert body["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    assert (response.headers["allow"], response.headers["retry-after"]) == ("GET", "7")
    assert int(response.headers["content-length"]) == len(response.content)
    assert CANARY not in response.text + str(response.headers)


def test_an_overload_says_when_to_try_again() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("busy", 503)(scope, receive, send)

    client = TestClient(door(app, WorkerSettings(), ["/x"]), base_url="http://localhost")
    assert int(client.get("/x").headers["retry-after"]) > 0


# limits


def test_limits_are_those_that_hold() -> None:
    limits = Limits(pixels=1000)
    with client_of(segmenter(), upload_bytes=5000, upload_files=2, limits=limits) as client:
        said = client.get("/v1/limits").json()
        assert said["upload"] == {"bytes": 5000, "files": 2, "seconds": 300}
        assert said["image"]["pixels"] == 1000
        kinds = (decoded._Raster, decoded._Nifti, decoded._Volume, decoded._Dicom)
        assert set(said["formats"]) == {
            name for one in kinds for name in get_args(one.model_fields["format"].annotation)
        }
        assert set(said["outputs"]) >= {"default", "summary"}
        assert set(said["parameters"]["segment"]) >= {"model", "output", "threshold"}
        assert "limit" in problem(client.post("/v1/segment", content=b"x" * 5001, headers=FORM), 413, "limit-exceeded")
        problem(client.post("/v1/segment", files={"file": png(40, 40)}), 413, "limit-exceeded")
        assert client.post("/v1/segment", files={"file": png(20, 20)}).status_code == 200
        three = [("file", png(20, 20))] * 3
        problem(client.post("/v1/segment", files=three), 413, "limit-exceeded")


def test_limits_tell_no_secret(tmp_path: Path) -> None:
    token = new(tmp_path / "tokens", "one", ["models"])
    with client_of(segmenter(), token_file=tmp_path / "tokens", spool=tmp_path) as client:
        said = client.get("/v1/limits", headers={"Authorization": f"Bearer {token}"}).text
    assert token not in said and str(tmp_path) not in said


# silence


def test_nothing_about_a_patient_is_said(log: io.StringIO, tmp_path: Path) -> None:
    slice_of_patient = dicom_slice(CANARY)
    bodies = [
        slice_of_patient,
        slice_of_patient[:-2000],
        slice_of_patient[:600],
        CANARY.encode() * 100,
        png() + CANARY.encode(),
        b"",
    ]
    said = ""
    with client_of(denoiser(), segmenter(), spool=tmp_path) as client:
        for body in bodies:
            for path in ("/v1/restore", "/v1/segment?output=overlay", f"/v1/segment?model={CANARY}", f"/v1/{CANARY}"):
                response = client.post(
                    path,
                    files={"file": (f"{CANARY}.dcm", body, f"image/{CANARY}")},
                    headers={"X-Patient": CANARY, "User-Agent": CANARY, "X-Request-ID": CANARY, "Referer": CANARY},
                )
                said += json.dumps(dict(response.headers))
                if response.status_code != 200:  # the answer itself is the patient's
                    said += response.content.decode("latin-1")
        client.request(CANARY, f"/{CANARY}", headers={"Origin": f"http://{CANARY}", "Host": CANARY})
        for name in ("pydicom", "nibabel", "third.party"):
            logging.getLogger(name).warning("value %s is odd", CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("bentoml").exception("failed")
    assert log.getvalue().count("\n") >= len(bodies) * 4
    assert "third.party" in log.getvalue()
    assert CANARY not in log.getvalue()
    assert CANARY not in said
    assert list(tmp_path.iterdir()) == []
