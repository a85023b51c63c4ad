"""Many images in one request: order, a status each, and the same files as one by one."""

import asyncio
import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from medae.errors import UnfitImage
from medae_service.app import create_app, paths
from medae_service.models import Models
from medae_service.security import door
from medae_service.settings import WorkerSettings
from tests.service_parts import (
    CANARY,
    PNG,
    TestClient,
    client_of,
    denoiser,
    png,
    problem,
    recorded_log,
    scorer,
    segmenter,
    served,
)
from tests.test_service_engine import Scripted, client_on, denoiser_on

JSON = {"Accept": "application/json"}


@pytest.fixture(scope="module")
def client() -> Any:
    with client_of(segmenter(), denoiser(), scorer()) as made:
        yield made


def files(*bodies: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("file", (f"{CANARY}.png", body, "image/png")) for body in bodies]


def opened(response: httpx.Response) -> tuple[dict[str, Any], zipfile.ZipFile]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/zip"
    archive = zipfile.ZipFile(io.BytesIO(response.content))
    assert archive.testzip() is None
    return json.loads(archive.read("manifest.json")), archive


PATHS = ["segment", "restore", "denoise", "score"]


@pytest.mark.parametrize("path", PATHS)
def test_tiles_are_answered_as_one_by_one(client: TestClient, path: str) -> None:
    bodies = [png(20 + seed, 30, seed) for seed in range(9)]
    manifest, archive = opened(client.post(f"/v1/tiles/{path}", files=files(*bodies)))
    assert (manifest["count"], manifest["failed"]) == (9, 0)
    names = ["manifest.json"]
    for index, (body, item) in enumerate(zip(bodies, manifest["items"], strict=True)):
        alone = client.post(f"/v1/{path}", files=files(body), headers={"Accept": "application/zip"})
        expected = zipfile.ZipFile(io.BytesIO(alone.content))
        assert (item["index"], item["status"]) == (index, 200)
        for file in item["summary"]["files"]:
            data = archive.read(file["name"])
            assert file["name"].startswith(f"{index:06d}_")
            assert data == expected.read(file["name"].replace(f"{index:06d}", "image"))
            assert file["sha256"] == hashlib.sha256(data).hexdigest()
            names.append(file["name"])
        facts = json.loads(expected.read("image_summary.json"))
        assert {key: item["summary"][key] for key in ("scores", "model", "task")} == {
            key: facts[key] for key in ("scores", "model", "task")
        }
    assert sorted(archive.namelist()) == sorted(names)


def test_one_poisoned_of_32_fails_alone(client: TestClient) -> None:
    bodies = [png(24, 24, seed) for seed in range(32)]
    clean = [item["summary"]["files"] for item in client.post("/v1/tiles/segment", files=files(*bodies), headers=JSON)
             .json()["items"]]  # fmt: skip
    bodies[17] = bodies[17][:40]
    response = client.post("/v1/tiles/segment", files=files(*bodies), headers=JSON)
    manifest = response.json()
    assert [item["status"] for item in manifest["items"]] == [200] * 17 + [422] + [200] * 14
    assert (manifest["count"], manifest["failed"]) == (32, 1)
    bad = manifest["items"][17]["problem"]
    assert (bad["code"], bad["status"]) == ("unreadable-image", 422)
    assert bad["instance"] == f"urn:uuid:{response.headers['x-request-id']}"
    for index, item in enumerate(manifest["items"]):
        if index != 17:
            assert item["summary"]["files"] == clean[index]
    assert CANARY not in response.text


def test_a_zip_of_tiles_is_taken_apart(client: TestClient) -> None:
    target, bodies = io.BytesIO(), [png(24, 24, seed) for seed in range(3)]
    with zipfile.ZipFile(target, "w") as archive:
        for index, body in enumerate(bodies):
            archive.writestr(f"{CANARY}/{index}.png", body)
    zipped, _ = opened(client.post("/v1/tiles/restore", files=files(target.getvalue())))
    plain, _ = opened(client.post("/v1/tiles/restore", files=files(*bodies)))
    assert [item["summary"]["files"] for item in zipped["items"]] == [
        item["summary"]["files"] for item in plain["items"]
    ]


def test_forms_and_outputs(client: TestClient) -> None:
    bodies = files(png(24, 24, 1), png(24, 24, 2))
    response = client.post("/v1/tiles/score?output=summary", files=bodies)
    manifest, archive = opened(response)
    assert archive.namelist() == ["manifest.json"]
    assert manifest["id"] == response.headers["x-request-id"]
    assert manifest["model"]["name"] == "scorer"
    assert response.headers["x-medae-model"] == f"scorer@{scorer().digest}"
    assert response.headers["x-medae-gate"] == "none"
    assert response.headers["content-disposition"] == 'attachment; filename="answers.zip"'
    listed = client.post("/v1/tiles/score", files=bodies, headers=JSON).json()
    assert [item["summary"]["scores"] for item in listed["items"]] == [
        item["summary"]["scores"] for item in manifest["items"]
    ]


def test_what_is_wrong_with_the_whole_request(client: TestClient) -> None:
    problem(client.post("/v1/tiles/segment?colour=red", files=PNG), 400, "bad-call")
    problem(client.post("/v1/tiles/restore?output=probabilities", files=PNG), 400, "bad-call")
    problem(client.post("/v1/tiles/segment?model=none-such", files=PNG), 404, "unknown-model")
    problem(client.post("/v1/tiles/segment", content=b"x"), 415, "not-multipart")
    with client_of(segmenter(), request_items=2) as small:
        assert "at most 2 images" in problem(
            small.post("/v1/tiles/segment", files=files(png(), png(), png())), 413, "limit-exceeded"
        )


def test_a_fault_with_one_item_is_one_500_and_says_nothing(client: TestClient) -> None:
    real = served(segmenter())

    class Faulty:
        def __call__(self, image: Any, **options: Any) -> Any:
            if image.geometry.shape[1] == 25:
                raise ValueError(CANARY)
            if image.geometry.shape[1] == 26:
                raise UnfitImage("send another")
            return real(image, **options)

    with recorded_log() as log, client_of(segmenter(), predictor=Faulty()) as broken:
        bodies = files(*(png(rows, 24) for rows in (24, 25, 26, 27)))
        manifest, archive = opened(broken.post("/v1/tiles/segment", files=bodies))
    assert [item["status"] for item in manifest["items"]] == [200, 500, 422, 200]
    assert manifest["items"][1]["problem"]["code"] == "fault" and "detail" not in manifest["items"][1]["problem"]
    assert manifest["items"][2]["problem"]["detail"] == "send another"
    assert sorted(archive.namelist()) == ["000000_labels.png", "000003_labels.png", "manifest.json"]
    assert CANARY not in log.getvalue() + json.dumps(manifest)
    assert '"error": "ValueError"' in log.getvalue()


def test_a_large_zip_is_spooled_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medae_service.items.IN_MEMORY", 100)
    with client_of(denoiser(), spool=tmp_path) as client:
        manifest, _ = opened(client.post("/v1/tiles/restore", files=files(*(png(seed=n) for n in range(4)))))
    assert manifest["count"] == 4 and list(tmp_path.iterdir()) == []


def test_another_request_comes_between_the_tiles_of_one() -> None:
    backend = Scripted()
    app, engine = denoiser_on(backend, computing=4)

    async def scenario() -> None:
        async with client_on(app) as client:
            backend.hold()
            many = asyncio.create_task(client.post("/v1/tiles/restore", files=files(*[png()] * 30)))
            await asyncio.to_thread(backend.wait_begun)
            single = asyncio.create_task(client.post("/v1/restore", files=PNG))
            while engine._depth < 2:  # another of the thirty, and the single one
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.05)
            assert engine._depth == 2, "the thirty take half of the places"
            backend.free.set()
            assert (await single).status_code == 200
            assert not many.done(), "one picture does not wait for thirty"
            assert (await many).status_code == 200

    asyncio.run(asyncio.wait_for(scenario(), 60))
    assert backend.most == 1


def test_items_that_are_not_done_in_time_say_so_and_the_others_are_answered() -> None:
    backend = Scripted()
    app, _ = denoiser_on(backend, compute_seconds=0.5, computing=2)

    def fault(tiles: Any) -> None:
        if len(backend.ran) == 4:
            backend.hold()
            backend.free.wait(1.0)
            backend.free.set()

    backend.fault = fault

    async def scenario() -> httpx.Response:
        async with client_on(app) as client:
            return await client.post("/v1/tiles/restore", files=files(*[png()] * 9))

    manifest, archive = opened(asyncio.run(asyncio.wait_for(scenario(), 60)))
    assert [item["status"] for item in manifest["items"]] == [200] * 3 + [503] * 6
    assert {item["problem"]["code"] for item in manifest["items"][3:]} == {"compute-timeout"}
    assert len(archive.namelist()) == 4
    assert len(backend.ran) == 4, "the late ones never ran"


def test_mixed_kinds_and_slices_are_items_of_their_own() -> None:
    from pydicom.data import get_testdata_files

    slices = [Path(name).read_bytes() for name in sorted(get_testdata_files("dicomdirtests/98892001/CT5N/*"))[:2]]
    models = Models()
    models.add(denoiser(), served(denoiser()))
    chosen = WorkerSettings()
    app = create_app(chosen, models)

    async def scenario() -> httpx.Response:
        async with client_on(door(app, chosen, paths(app))) as client:
            return await client.post("/v1/tiles/restore", files=files(slices[0], png(), slices[1]))

    manifest, _ = opened(asyncio.run(scenario()))
    assert [item["summary"]["files"][0]["media_type"] for item in manifest["items"]] == [
        "application/dicom",
        "image/png",
        "application/dicom",
    ]
