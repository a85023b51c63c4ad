"""The HTTP door: what it answers, and in which form."""

import asyncio
import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image as Picture

from medae.calibration import Calibration
from medae.errors import UnfitImage
from medae.predictor import Predictor
from medae_service.answering import wanted_form
from medae_service.app import create_app, paths
from medae_service.models import Models
from medae_service.security import door
from medae_service.settings import WorkerSettings
from tests.batch_parts import write_series
from tests.service_parts import (
    PNG,
    Broken,
    TestClient,
    client_of,
    denoiser,
    png,
    problem,
    scorer,
    segmenter,
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(segmenter(), denoiser(), scorer()) as made:
        yield made


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


def test_one_of_several_series_is_chosen_and_made_even(client: TestClient, tmp_path: Path) -> None:
    paths = [*write_series(tmp_path / "a", [0, 5], "1.2.3.1"), *write_series(tmp_path / "b", [0, 5, 15], "1.2.3.2")]
    files = [("file", path.read_bytes()) for path in paths]

    def names(query: str) -> list[str]:
        response = client.post(f"/v1/restore?{query}", files=files, headers={"Accept": "application/zip"})
        assert response.status_code == 200, response.text
        return zipfile.ZipFile(io.BytesIO(response.content)).namelist()

    assert "[2]" in problem(client.post("/v1/restore", files=files), 422, "bad-series")
    problem(client.post("/v1/restore?series=3", files=files), 422, "bad-series")
    problem(client.post("/v1/restore?series=2", files=files), 422, "bad-series")  # uneven
    for chosen in ("1", "1.2.3.1"):
        assert names(f"series={chosen}") == [f"image_restored/000{n}.dcm" for n in (1, 2)] + ["image_summary.json"]
    assert names("series=2&regular_grid=true") == ["image_restored.nii.gz", "image_summary.json"]
    for query in ("series=first", "series=0", "regular_grid=1"):
        problem(client.post(f"/v1/restore?{query}", files=files), 400, "bad-call")


def test_threshold_is_the_callers(client: TestClient) -> None:
    def labelled(threshold: float) -> int:
        body = client.post(f"/v1/segment?threshold={threshold}", files=PNG, headers={"Accept": "application/json"})
        return int(body.json()["scores"]["nucleus_voxels"])

    assert labelled(0.001) == 37 * 51
    assert labelled(0.999) == 0
    assert "no calibration" in problem(client.post("/v1/score?threshold=0.1", files=PNG), 400, "bad-call")


def test_a_calibrated_model_decides() -> None:
    package = scorer()
    reference = Calibration.from_scores({"l2_mean": np.linspace(0, 1, 500).tolist()}, package_digest=package.digest)
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
            value = "-1" if parameter["schema"]["type"] == "number" else "none-such"
            response = client.post(path, params={parameter["name"]: value}, files=PNG)
            assert response.status_code in (400, 404) and "unknown or repeated" not in response.text


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for path in paths(client.app.app.app.app):  # type: ignore[attr-defined]
        assert path in page.text
    for part in ("<script", "<style", "<link", "<img", "//cdn", "https://"):
        assert part not in page.text


# waiting


def test_the_service_answers_while_a_model_runs() -> None:
    begun, release = threading.Event(), threading.Event()

    class Slow:
        def __call__(self, image: Any, **options: Any) -> Any:
            begun.set()
            release.wait(10)
            raise UnfitImage("done")

    chosen = WorkerSettings(computing=1, waiting=0)
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
