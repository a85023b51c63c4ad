"""The HTTP door: what it answers, what it refuses, and that it keeps silent about patients."""

import asyncio
import hashlib
import io
import json
import logging
import threading
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Picture

from medae.calibration import Calibration
from medae.errors import MedaeError, UnfitImage
from medae.package import ModelPackage
from medae.predictor import Predictor
from medae_service.answering import wanted_form
from medae_service.app import DeviceQueue, create_app, paths
from medae_service.logs import JsonLines
from medae_service.models import Models
from medae_service.problems import Refusal
from medae_service.security import door, host_name
from medae_service.settings import WorkerSettings
from tests.service_parts import denoiser, dicom_slice, png, scorer, segmenter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it asks for httpx's successor, which is not in the lock
    from starlette.testclient import TestClient

CANARY = "CANARYDOE"
PNG = {"file": ("x.png", png(), "image/png")}


class Broken:
    """Stands for a predictor; fails as it is told to."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, image: Any, **options: Any) -> Any:
        raise self.error


def client_of(*packages: ModelPackage, predictor: Any = None, raise_errors: bool = True, **settings: Any) -> TestClient:
    """The app behind its door, as a worker runs it, without BentoML."""
    chosen = WorkerSettings(**settings)
    models = Models()
    for package in packages:
        models.add(package, predictor or Predictor(package, device="cpu"))
    app = create_app(chosen, models)
    return TestClient(
        door(app, chosen, paths(app)), base_url="http://localhost:3000", raise_server_exceptions=raise_errors
    )


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(segmenter(), denoiser(), scorer()) as made:
        yield made


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What the service would log, as a worker formats it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    level = logging.getLogger("medae_service").level
    root.addHandler(handler)
    logging.getLogger("medae_service").setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    logging.getLogger("medae_service").setLevel(level)


def problem(response: httpx.Response, status: int, code: str) -> str:
    """Checks a refusal; returns its detail."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:medae:problem:{code}"
    assert body["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    return str(body.get("detail", ""))


# answers


def test_segment_answers_with_labels_in_the_inputs_format(client: TestClient) -> None:
    response = client.post("/v1/segment", files=PNG)
    assert response.status_code == 200
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == 'attachment; filename="image_labels.png"'
    assert response.headers["x-medae-model"] == f"segmenter@{segmenter().digest}"
    assert response.headers["x-medae-gate"] == "none"
    assert Picture.open(io.BytesIO(response.content)).size == (51, 37)


def test_service_equals_library(client: TestClient) -> None:
    from medae.answers import answer_files
    from medae.io import read_image

    for path, package in [("segment", segmenter()), ("restore", denoiser()), ("denoise", denoiser())]:
        image = read_image(png())
        files = answer_files(Predictor(package, device="cpu")(image), package, stem="image", original=image)
        assert client.post(f"/v1/{path}", files=PNG).content == files[0].data


def test_score_answers_with_everything_in_a_zip(client: TestClient) -> None:
    response = client.post("/v1/score", files=PNG)
    assert response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert sorted(archive.namelist()) == ["image_map.tif", "image_summary.json"]
    facts = json.loads(archive.read("image_summary.json"))
    assert facts["task"] == "anomaly" and facts["scores"]["l2_mean"] > 0
    assert facts["id"] == response.headers["x-request-id"]
    (listed,) = facts["files"]
    assert listed["name"] == "image_map.tif"
    assert listed["sha256"] == hashlib.sha256(archive.read("image_map.tif")).hexdigest()


def test_the_form_follows_accept(client: TestClient) -> None:
    facts = client.post("/v1/restore", files=PNG, headers={"Accept": "application/json"}).json()
    assert facts["model"]["name"] == "denoiser" and facts["files"][0]["name"] == "image_restored.png"
    assert client.post("/v1/restore?output=summary", files=PNG).json()["files"] == []
    everything = client.post("/v1/restore", files=PNG, headers={"Accept": "application/zip"})
    assert sorted(zipfile.ZipFile(io.BytesIO(everything.content)).namelist()) == [
        "image_restored.png",
        "image_summary.json",
    ]


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "file"),
        ("application/json", "json"),
        ("application/json, */*", "file"),
        ("application/json, */*;q=0.5", "json"),
        ("application/zip", "zip"),
        ("application/zip;q=0.2, application/json;q=0.9", "json"),
        ("image/png", "file"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "file"),
        ("application/json;q=nonsense", "file"),
        ("", "file"),
    ],
)
def test_accept(accept: str, form: str) -> None:
    assert wanted_form(accept) == form


def test_the_slices_of_a_series_come_as_repeated_files(client: TestClient) -> None:
    from pydicom.data import get_testdata_files

    series = [Path(name).read_bytes() for name in sorted(get_testdata_files("dicomdirtests/98892001/CT5N/*"))]
    assert len(series) > 1
    files = [("file", ("slice", data, "application/dicom")) for data in reversed(series)]
    response = client.post("/v1/restore", files=files)
    assert response.status_code == 200, response.text
    names = zipfile.ZipFile(io.BytesIO(response.content)).namelist()
    assert len(names) == len(series) + 1
    assert "image_restored/0001.dcm" in names


def test_threshold_is_the_callers(client: TestClient) -> None:
    def labelled(threshold: float) -> int:
        body = client.post(f"/v1/segment?threshold={threshold}", files=PNG, headers={"Accept": "application/json"})
        return int(body.json()["scores"]["nucleus_voxels"])

    assert labelled(0.001) == 37 * 51
    assert labelled(0.999) == 0
    assert "no calibration" in problem(client.post("/v1/score?threshold=0.1", files=PNG), 400, "bad-call")


def test_a_calibrated_model_decides() -> None:
    package = scorer()
    reference = Calibration.from_scores(np.linspace(0, 1, 50).tolist(), score="l2_mean", package_digest=package.digest)
    with client_of(package.calibrated(reference)) as client:
        facts = client.post("/v1/score?threshold=0.1&output=summary", files=PNG).json()
    assert facts["decision"] in ("normal", "anomalous")
    assert 0 <= facts["percentile"] <= 100


# pages


def test_models_are_listed(client: TestClient) -> None:
    models = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
    assert models["scorer"]["endpoint"] == "/v1/score"
    assert models["denoiser"]["digest"] == denoiser().digest


def test_openapi_names_every_route_and_parameter(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path in paths(client.app.app.app.app):  # type: ignore[attr-defined]  # journal, guard, limit, app
        assert path == "/" or path in document["paths"]
    for path, operations in document["paths"].items():
        for parameter in operations.get("post", {}).get("parameters", []):
            value = {"model": "none-such", "output": "none-such", "threshold": "none-such"}[parameter["name"]]
            response = client.post(path, params={parameter["name"]: value}, files=PNG)
            assert response.status_code in (400, 404) and "unknown or repeated" not in response.text


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for path in paths(client.app.app.app.app):  # type: ignore[attr-defined]
        assert path in page.text
    for part in ("<script", "<style", "<link", "<img", "//cdn", "https://"):
        assert part not in page.text


# refusals: one problem each, and nothing of the request in it


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
    assert "model, output" in problem(client.post("/v1/restore?threshold=0.5"), 400, "bad-call")
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
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert "URLs are not read" in problem(client.post("/v1/segment", content=body, headers=form), 422, "not-a-file")


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
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    problem(client.post("/v1/segment", content=body, headers=form), status, code)


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

    form = {"Content-Type": "multipart/form-data; boundary=b"}
    with client_of(segmenter(), upload_bytes=1 << 20, spool=tmp_path) as client:
        problem(client.post("/v1/segment", content=chunks(), headers=form), 413, "limit-exceeded")
        declared = form | {"Content-Length": str(1 << 40)}
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


# waiting


def test_one_runs_some_wait_and_more_are_sent_away() -> None:
    running, most = 0, 0
    release = threading.Event()

    def work() -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        release.wait(10)
        running -= 1
        return 1

    async def scenario() -> tuple[list[int], Refusal]:
        queue = DeviceQueue(waiting=3)
        tasks = [asyncio.create_task(queue.run(work)) for _ in range(4)]
        await asyncio.sleep(0.05)
        with pytest.raises(Refusal) as refused:
            await queue.run(work)
        tasks[3].cancel()  # one that waits gives up: its place is free again
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(queue.run(work)))
        release.set()
        done = await asyncio.gather(*tasks[:3], tasks[4])
        await queue.run(work)
        return done, refused.value

    done, refused = asyncio.run(scenario())
    assert done == [1, 1, 1, 1] and most == 1
    assert refused.status == 429 and refused.headers is not None and int(refused.headers["Retry-After"]) >= 1


def test_an_abandoned_request_holds_its_place_until_its_thread_is_done() -> None:
    order: list[str] = []
    begun = threading.Event()

    def long() -> None:
        begun.set()
        threading.Event().wait(0.3)
        order.append("first ended")

    async def scenario() -> None:
        queue = DeviceQueue(waiting=3)
        abandoned = asyncio.create_task(queue.run(long))
        await asyncio.to_thread(begun.wait)
        abandoned.cancel()
        await queue.run(lambda: order.append("second ran"))

    asyncio.run(scenario())
    assert order == ["first ended", "second ran"]


def test_the_service_answers_while_a_model_runs() -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow:
        def __call__(self, image: Any, **options: Any) -> Any:
            begun.set()
            release.wait(10)
            raise UnfitImage("done")

    chosen = WorkerSettings(waiting=0)
    models = Models()
    models.add(segmenter(), Slow())
    app = create_app(chosen, models)

    async def scenario() -> tuple[int, int, int]:
        transport = httpx.ASGITransport(door(app, chosen, paths(app)))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            slow = asyncio.create_task(client.post("/v1/segment", files=PNG))
            await asyncio.to_thread(begun.wait)
            page = await client.get("/v1/models")
            busy = await client.post("/v1/segment", files=PNG)
            assert "retry-after" in busy.headers
            release.set()
            return page.status_code, busy.status_code, (await slow).status_code

    assert asyncio.run(scenario()) == (200, 429, 422)


def test_a_slow_upload_is_ended(tmp_path: Path) -> None:
    chosen = WorkerSettings(upload_seconds=0.1, spool=tmp_path)
    models = Models()
    models.add(segmenter(), Broken(UnfitImage("not reached")))
    app = create_app(chosen, models)

    async def body() -> Any:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        await asyncio.sleep(5)
        yield b"never"

    async def scenario() -> httpx.Response:
        transport = httpx.ASGITransport(door(app, chosen, paths(app)))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            form = {"Content-Type": "multipart/form-data; boundary=b"}
            return await client.post("/v1/segment", content=body(), headers=form)

    problem(asyncio.run(scenario()), 408, "upload-timeout")


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
