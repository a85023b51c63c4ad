"""What the HTTP door refuses: one problem each, and nothing of the request in it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medae.errors import MedaeError, UnfitImage
from tests.service_parts import (
    CANARY,
    FORM,
    PNG,
    Broken,
    TestClient,
    client_of,
    denoiser,
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


def test_model_choice() -> None:
    with client_of(segmenter("one"), segmenter("two"), denoiser()) as client:
        detail = problem(client.post("/v1/segment", files=PNG), 400, "bad-call")
        assert "one, two" in detail
        assert client.post("/v1/segment?model=two", files=PNG).headers["x-medae-model"].startswith("two@")
        detail = problem(client.post(f"/v1/segment?model={CANARY}", files=PNG), 404, "unknown-model")
        assert "one, two" in detail and CANARY not in detail
        assert "restore" in problem(client.post("/v1/segment?model=denoiser", files=PNG), 400, "bad-call")
        problem(client.post("/v1/score", files=PNG), 404, "unknown-model")


@pytest.mark.parametrize(
    ("query", "named"),
    [
        ("colour=red", "model, output, threshold"),
        ("model=segmenter&model=segmenter", "model, output, threshold"),
        ("output=everything", "default, probabilities"),
        ("threshold=high", "between 0 and 1"),
        ("threshold=nan", "between 0 and 1"),
        ("threshold=1", "between 0 and 1"),
    ],
)
def test_bad_queries_say_what_is_allowed(client: TestClient, query: str, named: str) -> None:
    assert named in problem(client.post(f"/v1/segment?{query}", files=PNG), 400, "bad-call")


def test_parameters_of_other_tasks_are_refused_before_the_upload(client: TestClient) -> None:
    assert "model, output, noise" in problem(client.post("/v1/restore?threshold=0.5"), 400, "bad-call")
    assert "leave `noise` out" in problem(client.post("/v1/restore?noise=25"), 400, "bad-call")
    assert "above 0" in problem(client.post("/v1/restore?noise=inf"), 400, "bad-call")
    problem(client.post("/v1/restore?output=probabilities"), 400, "bad-call")


@pytest.mark.parametrize("data", [b"", b"hello", png()[:60], b"\x89PNG\r\n\x1a\n" + bytes(40)])
def test_bad_images_are_the_callers(client: TestClient, data: bytes) -> None:
    response = client.post("/v1/segment", files={"file": ("x.png", data, "image/png")})
    assert response.status_code in (415, 422)
    assert response.json()["code"] in ("unreadable-image", "unsupported-image")


def test_an_image_beyond_the_limits(client: TestClient) -> None:
    with client_of(segmenter(), limits={"pixels": 100}) as small:
        problem(small.post("/v1/segment", files=PNG), 413, "limit-exceeded")


@pytest.mark.parametrize(
    ("kind", "content"),
    [("image/png", png()), ("application/json", b"{}"), ("multipart/form-data", b""), ("", png())],
)
def test_other_bodies_than_forms(client: TestClient, kind: str, content: bytes) -> None:
    detail = problem(client.post("/v1/segment", content=content, headers={"Content-Type": kind}), 415, "not-multipart")
    assert "file" in detail


def test_text_where_a_file_is_expected_is_never_followed(client: TestClient) -> None:
    body = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nhttp://127.0.0.1:9/x.png\r\n--b--\r\n'
    assert "URLs are not read" in problem(client.post("/v1/segment", content=body, headers=FORM), 422, "not-a-file")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad-multipart"),
        (b"rubbish", 400, "bad-multipart"),
        (b"--b--\r\n", 422, "no-file"),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nhalf', 400, "bad-multipart"),
        (
            b'--b\r\nContent-Disposition: form-data; name="mask"; filename="x"\r\n\r\nx\r\n--b--\r\n',
            422,
            "unknown-field",
        ),
        (b"--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b--\r\n", 422, "unknown-field"),
        (b"--b\r\n" + b"X-A: 1\r\n" * 50 + b"\r\nx\r\n--b--\r\n", 400, "bad-multipart"),
    ],
)
def test_bad_forms(client: TestClient, body: bytes, status: int, code: str) -> None:
    problem(client.post("/v1/segment", content=body, headers=FORM), status, code)


def test_too_many_files() -> None:
    with client_of(segmenter(), upload_files=2) as client:
        files = [("file", ("x", b"x", "image/png"))] * 3
        problem(client.post("/v1/segment", files=files), 413, "limit-exceeded")


def test_a_body_is_limited_by_its_header_and_by_count(tmp_path: Path) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        for _ in range(1000):
            sent += 1
            yield bytes(1 << 16)

    with client_of(segmenter(), upload_bytes=1 << 20, spool=tmp_path) as client:
        problem(client.post("/v1/segment", content=chunks(), headers=FORM), 413, "limit-exceeded")
        declared = FORM | {"Content-Length": str(1 << 40)}
        problem(client.post("/v1/segment", content=b"", headers=declared), 413, "limit-exceeded")
    assert list(tmp_path.iterdir()) == []


def test_large_files_are_spooled_privately_and_removed(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    class Looks:
        def __call__(self, image: Any, **options: Any) -> Any:
            seen.extend((path.name, path.stat().st_mode & 0o777) for path in tmp_path.rglob("*"))
            raise UnfitImage("seen")

    picture = png(2400, 2000)
    assert len(picture) > 1 << 22
    with client_of(segmenter(), predictor=Looks(), spool=tmp_path) as client:
        response = client.post("/v1/segment", files={"file": (f"{CANARY}.png", picture, "image/png")})
    problem(response, 422, "unfit-image")
    assert len(seen) == 2 and {mode & 0o077 for _, mode in seen[:1]} == {0}
    assert not any(CANARY in name or name.endswith(".png") for name, _ in seen)
    assert list(tmp_path.iterdir()) == []


def test_every_error_of_medae_has_its_status_and_its_words() -> None:
    def leaves(kind: type[MedaeError]) -> Iterator[type[MedaeError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from leaves(child)

    for kind in leaves(MedaeError):
        with client_of(segmenter(), predictor=Broken(kind("what to do"))) as client:
            assert problem(client.post("/v1/segment", files=PNG), kind.status, kind.code) == "what to do"


def test_a_fault_says_and_logs_nothing_but_its_type(log: io.StringIO) -> None:
    with client_of(segmenter(), predictor=Broken(ValueError(CANARY)), raise_errors=False) as client:
        response = client.post("/v1/segment", files=PNG)
    assert problem(response, 500, "fault") == ""
    assert CANARY not in response.text + log.getvalue()
    faults = [json.loads(line) for line in log.getvalue().splitlines() if '"fault"' in line]
    assert [(entry["error"], entry["request"]) for entry in faults] == [
        ("ValueError", response.headers["x-request-id"])
    ]
