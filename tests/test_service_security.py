"""Who may come in at the HTTP door, and that nothing about a patient gets out."""

import hashlib
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from medae_service.app import paths
from medae_service.security import host_name
from tests.service_parts import (
    CANARY,
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


def test_a_token_opens_every_route() -> None:
    hashes = tuple(hashlib.sha256(token.encode()).hexdigest() for token in ("first-token", "second-token"))
    with client_of(segmenter(), token_sha256=hashes) as client:
        for path in [*paths(client.app.app.app.app), "/metrics", "/docs.json", "/nothing"]:  # type: ignore[attr-defined]
            for method in ("GET", "POST", "OPTIONS"):
                response = client.request(method, path)
                problem(response, 401, "no-token")
                assert response.headers["www-authenticate"] == "Bearer"
        for wrong in (
            "Bearer",
            "Bearer x",
            "Basic first-token",
            "first-token",
            f"Bearer {hashes[0]}",
            "Bearer first-tokén",
        ):
            problem(client.get("/v1/models", headers={"Authorization": wrong.encode()}), 401, "no-token")
        for token in ("first-token", "second-token"):
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200
            assert client.get("/v1/models", headers={"Authorization": f"bearer {token}"}).status_code == 200


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
        logging.getLogger("pydicom").warning("value %s is odd", CANARY)
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("bentoml").exception("failed")
    assert log.getvalue().count("\n") >= len(bodies) * 4
    assert CANARY not in log.getvalue()
    assert CANARY not in said
    assert list(tmp_path.iterdir()) == []
