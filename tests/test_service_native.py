"""BentoML's own endpoints: BentoML's own client on a real process; arrays and lists in, the same pixels out."""

import io
import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from medae.errors import UnfitImage, UnreadableImage, UnsupportedImage
from medae.io import read_image
from medae.predictor import Predictor
from medae_service.native import SCOPES, as_image, from_list, from_npy, to_npy
from medae_service.security import NEEDED
from tests.service_parts import CANARY, denoiser, png, scorer, segmenter
from tests.test_service_process import Running, start, stop

TOKEN = "a-token-for-tests-0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("n")
    for package in (segmenter(), denoiser(), scorer(), segmenter("other")):
        package.save(folder / package.card.name)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "token").chmod(0o600)
    names = ("segmenter", "denoiser", "scorer")
    running = start(folder, *names, "--workers", "1", "--token-file", "token")
    yield running
    stop(running)


@pytest.fixture(scope="module")
def client(service: Running) -> Iterator[Any]:
    from bentoml import SyncHTTPClient

    with SyncHTTPClient(service.url, token=TOKEN) as made:
        yield made
    made._temp_dir.cleanup()  # it leaves that to the interpreter's end, and warns then


def array(seed: int = 0, shape: tuple[int, ...] = (37, 51), dtype: Any = np.uint8) -> Any:
    return (np.random.default_rng(seed).random(shape) * 200).astype(dtype)


def expected(package: Any, pixels: Any) -> Any:
    return Predictor(package, device="cpu")(as_image(pixels)).image.pixels


def test_files_are_answered_as_v1_answers_them(service: Running, client: Any) -> None:
    for task, path in (("segment", "/v1/segment"), ("restore", "/v1/denoise")):
        there = httpx.post(service.url + path, files={"file": png()}, headers=HEADERS)
        assert there.status_code == 200
        assert getattr(client, f"{task}_bytes")(png()) == there.content
    archive = zipfile.ZipFile(io.BytesIO(client.score_bytes(png())))
    assert sorted(archive.namelist()) == ["image_map.tif", "image_summary.json"]


def test_arrays_as_npy_keep_their_axes(client: Any) -> None:
    labels = from_npy(client.segment_bytes(to_npy(array())))
    assert np.array_equal(labels, expected(segmenter(), array())[0, 0]) and labels.dtype == np.uint8
    for dtype in (np.uint16, np.float32):
        clean = from_npy(client.restore_bytes(to_npy(array(dtype=dtype))))
        whole = expected(denoiser(), array(dtype=dtype))[0, 0]
        if dtype is np.uint16:
            whole = np.rint(whole).clip(0, 65535)
        assert clean.dtype == dtype and np.array_equal(clean, whole)
    volume = array(shape=(1, 4, 20, 30), dtype=np.float32)
    scored = from_npy(client.score_bytes(to_npy(volume)))
    assert scored.shape == (1, 4, 20, 30) and np.array_equal(scored, expected(scorer(), volume))


def test_the_words_of_v1_are_understood_in_the_query_of_files(service: Running) -> None:
    headers = HEADERS | {"Content-Type": "application/octet-stream"}
    told = httpx.post(f"{service.url}/native/segment_bytes?output=labels-nifti", content=png(), headers=headers)
    assert told.status_code == 200 and told.content[:2] == b"\x1f\x8b"
    wrong = httpx.post(f"{service.url}/native/segment_bytes?series=first", content=png(), headers=headers)
    assert (wrong.status_code, wrong.json()["code"]) == (400, "bad-call")


def test_lists(client: Any) -> None:
    answer = client.segment_list(pixels=array().tolist(), threshold=0.4)
    labels = Predictor(segmenter(), device="cpu")(as_image(array()), threshold=0.4).image.pixels
    assert np.array_equal(answer["pixels"], labels[0, 0]) and answer["dtype"] == "uint8"
    assert answer["summary"]["model"]["name"] == "segmenter"
    answer = client.restore_list(pixels=array().tolist(), dtype="int16", model="denoiser")
    assert answer["dtype"] == "int16" and np.shape(answer["pixels"]) == (37, 51)
    answer = client.score_list(pixels=array().tolist())
    assert answer["summary"]["scores"]["l2_mean"] > 0


def post(service: Running, path: str, **options: Any) -> tuple[int, dict[str, Any]]:
    headers = HEADERS | options.pop("headers", {})
    response = httpx.post(service.url + path, headers=headers, timeout=20, **options)
    assert response.headers["content-type"] == "application/problem+json", response.text
    assert CANARY not in response.text
    return response.status_code, response.json()


def test_refusals_are_problems(service: Running) -> None:
    raw = {"Content-Type": "application/octet-stream"}
    refused = [
        ("/native/segment_bytes", {"content": CANARY.encode(), "headers": raw}, 415, "unsupported-image"),
        ("/native/segment_bytes", {"content": b"", "headers": raw}, 422, "unreadable-image"),
        ("/native/segment_bytes", {"content": to_npy(array())[:-1], "headers": raw}, 422, "unreadable-image"),
        ("/native/segment_bytes", {"content": to_npy(array(shape=(5,))), "headers": raw}, 422, "unfit-image"),
        ("/native/segment_bytes", {"json": {"image": f"http://{CANARY}/"}}, 415, "wrong-media-type"),
        ("/native/segment_bytes", {"files": {"image": png()}}, 415, "wrong-media-type"),
        ("/native/segment_list", {"files": {"pixels": png()}}, 415, "wrong-media-type"),
        ("/native/segment_list", {"content": b"{" + CANARY.encode(), "headers": {"Content-Type": "application/json"}},
         400, "bad-request"),
        ("/native/segment_list", {"json": {}}, 400, "bad-request"),
        ("/native/segment_list", {"json": {"pixels": [[1, 2], [CANARY, 3]]}}, 422, "unreadable-image"),
        ("/native/segment_list", {"json": {"pixels": [[1, 2], [3]]}}, 422, "unreadable-image"),
        ("/native/segment_list", {"json": {"pixels": [[1, 256]]}}, 422, "unreadable-image"),
        ("/native/segment_list", {"json": {"pixels": [[1]], "dtype": "object"}}, 415, "unsupported-image"),
        ("/native/segment_list", {"json": {"pixels": array().tolist(), "model": CANARY}}, 404, "unknown-model"),
        ("/native/segment_list", {"json": {"pixels": array().tolist(), "threshold": 7}}, 400, "bad-call"),
        ("/native/segment_list", {"content": b" " * (33 << 20), "headers": {"Content-Type": "application/json"}},
         413, "limit-exceeded"),
    ]  # fmt: skip
    for path, options, status, code in refused:
        answered, body = post(service, path, **options)
        assert (answered, body["code"]) == (status, code), (path, body)
    pickle = {"Content-Type": "application/vnd.bentoml+pickle"}
    assert post(service, "/native/segment_bytes", content=b"x", headers=pickle)[0] == 415
    assert CANARY not in service.log.read_text()


def test_a_chunked_body_is_counted(service: Running) -> None:
    def body() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * (1 << 20)

    status, told = post(service, "/native/segment_list", content=body(), headers={"Content-Type": "application/json"})
    assert (status, told["code"]) == (413, "limit-exceeded")


def test_they_are_behind_the_door(service: Running) -> None:
    for path in SCOPES:
        assert httpx.post(service.url + path, content=b"x").status_code == 401
        assert (
            httpx.post(service.url + path, content=b"x", headers=HEADERS | {"Host": "evil.example"}).status_code == 400
        )
        assert httpx.get(service.url + path, headers=HEADERS).status_code == 405
    assert httpx.get(f"{service.url}/schema.json").status_code == 401
    schema = httpx.get(f"{service.url}/schema.json", headers=HEADERS).json()
    assert {route["route"] for route in schema["routes"]} == set(SCOPES)
    assert '"file"' not in json.dumps(schema), "no field that BentoML would fetch from a URL or name a file after"


def test_each_path_needs_its_scope() -> None:
    assert {path: NEEDED[path] for path in SCOPES} == SCOPES


# arrays


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b"\x93NUMPY",
        to_npy(array())[:-1],
        to_npy(array()) + b"x",
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000), }\n") + b"x",
        header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 2), }\n") + b"xx",
        header("{'descr': '|u1', 'fortran_order': False}\n"),
        header("__import__('os')\n"),
        header("(" * 3000),
        header(" " * 9000),
    ],
)
def test_a_forged_array_is_refused_by_its_header(data: bytes) -> None:
    with pytest.raises(UnreadableImage):
        from_npy(data)


def test_arrays_of_anything_but_numbers_are_refused() -> None:
    for dtype in (object, "U3", [("a", int)], "M8[s]", complex):
        target = io.BytesIO()
        np.save(target, np.zeros((2, 2), dtype))
        with pytest.raises(UnsupportedImage):
            from_npy(target.getvalue())


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", "|u1", "|b1"])
def test_npy_there_and_back(order: Any, dtype: str) -> None:
    pixels = np.asarray(array(shape=(5, 6, 3), dtype=dtype), order=order)
    assert np.array_equal(from_npy(to_npy(pixels)), pixels)
    assert from_npy(to_npy(pixels)).dtype.isnative


def test_lists_become_what_they_say_or_nothing() -> None:
    assert from_list([[0, 1], [1, 0]], "bool").dtype == bool
    assert from_list([[0.5]], "float32").dtype == np.float32
    for pixels, dtype in (([[0.5]], "uint8"), ([[-1]], "uint16"), ([[2**70]], "float32"), ([[None]], "float32")):
        with pytest.raises(UnreadableImage):
            from_list(pixels, dtype)
    with pytest.raises(UnfitImage):
        as_image(np.zeros(3))


def test_a_file_and_an_array_of_the_same_pixels_agree() -> None:
    image = read_image(png())
    assert np.array_equal(as_image(image.pixels[0, 0]).pixels, image.pixels)


def test_service_data_paths_do_not_meet_the_disk(service: Running) -> None:
    (folder,) = service.temporary.glob("medae-serve-*")
    assert [path for path in Path(folder / "spool").rglob("*") if path.is_file()] == []
