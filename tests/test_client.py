"""medae.Client and medae.AsyncClient against the service: in this process, and over a real socket."""

import asyncio
import io
import itertools
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

import medae
from medae import AsyncClient, Client, errors
from medae.client import patience as patience_module
from medae.client.answer import Reply, answer_of, error_of
from medae.client.form import Form, parts_of
from medae.client.patience import Patience
from medae.errors import MedaeError
from medae.image import Geometry, Image
from medae.io import encode_image, read_image
from medae.predictor import Predictor
from medae.verdict import GateLimits
from tests.conftest import tilted_affine
from tests.dicom_made import as_files, ct_series
from tests.service_parts import CANARY, client_of, denoiser, dicom_slice, png, scorer, segmenter

TOKEN = "a-token-for-tests-0123456789"


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """An ASGI app on a free port of this machine."""
    config = uvicorn.Config(app, port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(client_of(segmenter(), denoiser(), scorer()).app) as address:
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as made:
        yield made


class Faulty:
    """Stands before an app; gives the planned refusals first. None: the connection breaks."""

    def __init__(self, app: Any, *plan: tuple[int, dict[str, str]] | None) -> None:
        self.app = app
        self.plan = list(plan)
        self.seen: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if not self.plan:
            return await self.app(scope, receive, send)
        step = self.plan.pop(0)
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        self.seen.append(body + message.get("body", b""))
        if step is None:  # the answer breaks off in the middle
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            raise ConnectionResetError
        status, headers = step
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


# the same pixels as Python gives


def expected(package: Any, source: Any) -> Image:
    return Predictor(package, device="cpu")(read_image(source)).image


def test_the_limits_of_gates_are_asked_for_where_there_can_be_gates() -> None:
    asked: list[tuple[str, dict[str, str]]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append((request.url.path, dict(request.url.params)))
        return httpx.Response(418)

    limits = GateLimits(review=0.2, reject=0.05)
    with Client("http://nowhere.test", gate=limits, retries=0, transport=httpx.MockTransport(answer)) as client:
        for ask in (client.segment, client.restore, client.score, lambda image: client.tiles([image], "restore")):
            with pytest.raises(MedaeError):
                ask(png())
        with pytest.raises(MedaeError):
            client.models()
    rates = {"gate_review": "0.2", "gate_reject": "0.05"}
    paths = ["/v1/segment", "/v1/restore", "/v1/score", "/v1/tiles/restore", "/v1/models"]
    assert asked == list(zip(paths, [rates, rates, {}, rates, {}], strict=True))


def test_segment_of_bytes_and_path(client: Client, tmp_path: Path) -> None:
    path = tmp_path / f"{CANARY}.png"
    path.write_bytes(png())
    for source in (png(), path, str(path), [path], bytearray(png())):
        answer = client.segment(source)
        assert np.array_equal(answer.image.pixels, expected(segmenter(), png()).pixels)
        assert [file.name for file in answer.files] == ["image_labels.png"]
        assert answer.model == f"segmenter@{segmenter().digest}" and answer.gate == "none"
        assert answer.scores["nucleus_voxels"] == answer.image.pixels.sum()
        assert 0 < answer.seconds < 60
        assert answer.image is answer.image, "read once"


def test_parameters_reach_the_service(client: Client) -> None:
    assert client.segment(png(), threshold=0.001).scores["nucleus_voxels"] == 37 * 51
    assert client.segment(png(), threshold=0.999).scores["nucleus_voxels"] == 0
    soft = client.segment(png(), output="probabilities")
    assert soft.files[0].name == "image_probabilities.tif" and soft.image.pixels.dtype == np.float32
    told = client.score(png(), output="summary")
    assert told.files == () and told.scores["l2_mean"] > 0
    with pytest.raises(errors.UsageError, match="only its summary"):
        _ = told.image
    with pytest.raises(errors.UnknownModel) as unknown:
        client.segment(png(), model="none-such")
    assert unknown.value.code == "unknown-model" and unknown.value.status == 404


def test_restore_denoise_and_score(client: Client) -> None:
    clean = expected(denoiser(), png())
    for ask in (client.restore, client.denoise):
        assert np.array_equal(ask(png()).image.pixels, np.rint(clean.pixels).clip(0, 255).astype(np.uint8))
    answer = client.score(png())
    assert np.array_equal(answer.image.pixels, expected(scorer(), png()).pixels)
    assert answer.summary["task"] == "anomaly"


@pytest.mark.parametrize("unit", ["px", "mm"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64, bool])
@pytest.mark.parametrize("slices", [1, 5])
def test_an_image_is_sent_without_loss(client: Client, unit: str, dtype: Any, slices: int) -> None:
    shape = (slices, 21, 34)
    geometry = Geometry(shape, tilted_affine()) if unit == "mm" else Geometry.picture(*shape[1:], slices=slices)
    pixels = (np.random.default_rng(0).random((1, *shape)) * 100).astype(dtype)
    image = Image(pixels, geometry)
    back = read_image(encode_image(image))
    assert np.array_equal(back.pixels, image.pixels) and (back.pixels.dtype == image.pixels.dtype or dtype is bool)
    back.geometry.require_same_grid(geometry)
    answer = client.score(image)
    whole = Predictor(scorer(), device="cpu")(Image(pixels.astype(np.uint8) if dtype is bool else pixels, geometry))
    assert np.allclose(answer.image.pixels, whole.image.pixels, atol=1e-6)
    answer.image.geometry.require_same_grid(geometry)


def test_a_folder_is_a_series_and_its_names_stay_here(tmp_path: Path) -> None:
    from pydicom.data import get_testdata_files

    folder = tmp_path / CANARY
    (folder / "more").mkdir(parents=True)
    (folder / ".hidden").write_bytes(b"no slice")
    names = sorted(get_testdata_files("dicomdirtests/98892001/CT5N/*"))
    for number, name in enumerate(names):
        (folder / ("more" if number % 2 else ".") / f"{CANARY}{number}.dcm").write_bytes(Path(name).read_bytes())
    app = Faulty(client_of(denoiser()).app, (503, {}))
    with listening(app) as url, Client(url, retries=1) as client:
        answer = client.restore(folder)
    assert CANARY.encode() not in app.seen[0] and app.seen[0].count(b'filename="image"') == len(names)
    assert len(answer.files) == len(names)
    assert np.array_equal(answer.image.pixels, np.rint(expected(denoiser(), folder).pixels))
    written = answer.save(tmp_path / "out", stem="case-7")
    assert {path.parent.name for path in written} == {"case-7_restored"}


def test_one_series_of_several_on_a_regular_grid(client: Client, url: str) -> None:
    pixels = np.arange(5 * 37 * 51, dtype=np.int16).reshape(5, 37, 51)
    uneven = ct_series(pixels, change=lambda dataset, index: setattr(dataset, "SeriesInstanceUID", "1.2.3.1"))
    other = ct_series(pixels[:2], change=lambda dataset, index: setattr(dataset, "SeriesInstanceUID", "1.2.3.2"))
    files = as_files([*uneven[:2], *uneven[3:], *other])
    with pytest.raises(errors.SeriesError, match="not one series but 2"):
        client.restore(files)
    with pytest.raises(errors.SeriesError, match="a gap"):
        client.restore(files, series=1)
    even = client.restore(files, series="1.2.3.1", regular_grid=True)
    assert even.image.geometry.shape == (5, 37, 51)
    (told,) = client.many([files], "restore", series=2, progress=False)
    assert told.answer is not None and len(told.answer.files) == 2

    async def asked() -> Any:
        async with AsyncClient(url) as asking:
            return await asking.restore(files, series=1, regular_grid=True)

    assert np.array_equal(asyncio.run(asked()).image.pixels, even.image.pixels)


def test_dicom_seg_is_kept_as_a_file(client: Client, tmp_path: Path) -> None:
    answer = client.segment(dicom_slice("X"))
    (path,) = answer.save(tmp_path)
    assert path.name == "image_seg.dcm" and path.read_bytes() == answer.files[0].data
    with pytest.raises(errors.UnsupportedImage):
        _ = answer.image
    labels = client.segment(dicom_slice("X"), output="labels-nifti").image
    assert labels.pixels.shape == (1, 1, 128, 128)


def test_models_and_limits(client: Client) -> None:
    assert [model["name"] for model in client.models()] == ["segmenter", "denoiser", "scorer"]
    assert client.limits()


# errors


@pytest.mark.parametrize(
    ("source", "kind", "code"),
    [
        (b"", errors.UnreadableImage, "unreadable-image"),
        (b"no image at all", errors.UnsupportedImage, "unsupported-image"),
        (png()[:-40], errors.UnreadableImage, "unreadable-image"),
        ([png(), png()], errors.SeriesError, "bad-series"),
        ([], errors.SeriesError, "bad-series"),
        ("/no/such/file.png", errors.UnreadableImage, "unreadable-image"),
    ],
)
def test_a_bad_image_is_the_error_that_python_raises(client: Client, source: Any, kind: Any, code: str) -> None:
    with pytest.raises(kind) as remote:
        client.segment(source)
    assert remote.value.code == code and type(remote.value) is kind
    with pytest.raises(kind):
        read_image(source)


def test_a_token_is_needed_and_sent(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(TOKEN + "\n")
    app = client_of(segmenter(), token_file=tmp_path / "tokens").app
    with listening(app) as url:
        with Client(url, TOKEN) as client:
            assert client.segment(png()).files
        for token in (None, "wrong"):
            with Client(url, token) as client, pytest.raises(errors.AccessDenied) as denied:
                client.segment(png())
            assert denied.value.status == 401 and denied.value.exit_code == 2


@pytest.mark.parametrize("address", ["localhost:3000", "ftp://localhost", "", "http//x"])
def test_an_address_is_http(address: str) -> None:
    with pytest.raises(errors.UsageError, match="http://localhost:3000"):
        Client(address)


def test_nobody_there_and_somebody_else_there(pauses: list[float]) -> None:
    with (
        Client("http://127.0.0.1:9", retries=2) as client,
        pytest.raises(errors.ServiceError, match="cannot be reached"),
    ):
        client.segment(png())
    assert len(pauses) == 2

    async def other(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": int(scope["path"][-3:]), "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    transport = httpx.ASGITransport(other)

    async def ask(status: int) -> None:
        async with AsyncClient(f"http://h/{status}", transport=transport, retries=0) as client:
            client._http.base_url = httpx.URL("http://h")
            await client._get(f"/{status}")

    for status in (200, 301, 404, 500):
        with pytest.raises(errors.ServiceError):
            asyncio.run(ask(status))


def test_every_code_of_ours_comes_back_as_its_error() -> None:
    def kinds(kind: type[errors.MedaeError]) -> Iterator[type[errors.MedaeError]]:
        if kind.__module__ == "medae.errors":  # a reader has kinds of its own of some of them
            yield kind
        for child in kind.__subclasses__():
            yield from kinds(child)

    for kind in kinds(errors.InputError):
        error = error_of(kind.status, {"code": kind.code, "detail": "why"})
        assert type(error) is kind and str(error) == "why"
    odd = error_of(422, {"code": "decode-limit", "detail": "why"})
    assert type(odd) is errors.InputError and odd.code == "decode-limit" and errors.InputError.code == "bad-input"
    fault = error_of(500, {"code": "fault", "title": "Fault", "instance": "urn:uuid:abc"})
    assert type(fault) is errors.ServiceError and "request abc" in str(fault)
    assert type(error_of(507, {"code": "bad-output"})) is errors.ServiceError, "the service's disk, not the caller's"


def test_a_damaged_answer_is_not_taken() -> None:
    from zipfile import ZipFile

    def zipped(**files: str) -> bytes:
        target = io.BytesIO()
        with ZipFile(target, "w") as archive:
            for name, text in files.items():
                archive.writestr(name.replace("__", "."), text)
        return target.getvalue()

    listed = '{"files": [{"name": "a.png", "media_type": "image/png", "sha256": "00"}]}'
    for body in (
        b"PK nothing",
        zipped(a__png="x"),
        zipped(image_summary__json="[]"),
        zipped(image_summary__json=listed),
        zipped(a__png="x", image_summary__json=listed),
    ):
        with pytest.raises(errors.ServiceError):
            answer_of(Reply(200, {"content-type": "application/zip"}, io.BytesIO(body)), 0.0)


# asking again


def test_busy_and_broken_are_asked_again_with_the_whole_body(pauses: list[float]) -> None:
    app = Faulty(client_of(segmenter()).app, (429, {"Retry-After": "7"}), (503, {}), None, (429, {}))
    with listening(app) as url, Client(url) as client:
        answer = client.segment(png())
    assert answer.files and len(app.seen) == 4
    assert all(png() in body for body in app.seen)
    assert len(pauses) == 4 and 7 <= pauses[0] <= 7.5
    assert all(0.25 * 2**attempt <= pauses[attempt] <= 0.5 * 2**attempt for attempt in (1, 2, 3))


def test_it_gives_up_after_so_many_attempts(pauses: list[float]) -> None:
    app = Faulty(client_of(segmenter()).app, *[(429, {})] * 9)
    with listening(app) as url, Client(url, retries=3) as client, pytest.raises(errors.ServiceError) as busy:
        client.segment(png())
    assert busy.value.status == 429 and len(pauses) == 3 and len(app.seen) == 4


def test_what_is_refused_for_good_is_not_asked_again(pauses: list[float]) -> None:
    app = Faulty(client_of(segmenter()).app, (500, {}))
    with listening(app) as url, Client(url) as client:
        with pytest.raises(errors.ServiceError):
            client.segment(png())
        with pytest.raises(errors.UnsupportedImage):
            client.segment(b"no image")
    assert pauses == []


def test_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Patience(uniform=lambda low, high: high)
    assert [late.pause_after_answer(attempt, 503, {}) for attempt in range(6)] == [0.5, 1, 2, 4, 8, None]
    early = Patience(uniform=lambda low, high: low)
    assert early.pause_after_answer(0, 429, {"retry-after": "3"}) == 3
    assert early.pause_after_answer(0, 429, {"retry-after": "121"}) is None
    assert early.pause_after_answer(0, 429, {"retry-after": "soon"}) == 0.25
    assert early.pause_after_answer(0, 422, {"retry-after": "3"}) is None
    monkeypatch.setattr(patience_module.time, "time", lambda: 784111777.0 - 5)
    assert early.pause_after_answer(0, 503, {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}) == 5
    assert late.pause_after_error(0, httpx.ConnectError("")) == 0.5
    assert late.pause_after_error(0, httpx.ReadTimeout("")) is None
    assert late.pause_after_error(0, httpx.LocalProtocolError("")) is None


# many


def test_many_keep_their_order_and_one_that_fails_fails_alone(client: Client) -> None:
    sources = [png(20 + number, 30, seed=number) for number in range(9)]
    sources[4] = b"no image"
    outcomes = list(client.many(iter(sources), concurrency=3, progress=False))
    assert [outcome.number for outcome in outcomes] == list(range(9))
    for number, outcome in enumerate(outcomes):
        if number == 4:
            assert isinstance(outcome.error, errors.UnsupportedImage)
            with pytest.raises(errors.UnsupportedImage):
                outcome.get()
        else:
            assert outcome.get().image.geometry.shape == (1, 20 + number, 30)


def test_many_stop_where_the_call_is_wrong(client: Client) -> None:
    with pytest.raises(errors.UnknownModel):
        list(client.many([png()] * 3, model="none-such", progress=False))


def test_many_look_only_a_little_ahead(client: Client) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield png(8, 8)

    outcomes = client.many(endless(), concurrency=2, progress=False)
    assert next(outcomes).answer is not None
    outcomes.close()  # type: ignore[attr-defined]  # it is a generator
    assert taken <= 6


def test_many_show_a_bar_on_a_terminal_only(
    client: Client, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    list(client.many([png(8, 8)]))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    list(client.many([png(8, 8), b"no image"]))
    shown = capsys.readouterr().err
    assert "2/2" in shown and "1 failed" in shown


# tiles


def test_tiles_each_with_its_own_outcome(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "tile.png"
    path.write_bytes(png(seed=1))
    sources = [png(), path, b"no image", read_image(png(seed=2))]
    outcomes = client.tiles(sources, threshold=0.4)
    assert [outcome.number for outcome in outcomes] == [0, 1, 2, 3]
    assert isinstance(outcomes[2].error, errors.UnsupportedImage)
    for number in (0, 1, 3):
        alone = client.segment(sources[number], threshold=0.4)
        answer = outcomes[number].get()
        assert answer.files[0].data == alone.files[0].data and answer.scores == alone.scores
        assert answer.model == alone.model and answer.gate == "none"
    (written,) = outcomes[3].get().save(tmp_path, stem="last")
    assert written.name == "last_labels.tif"
    with pytest.raises(errors.UsageError, match="one file"):
        client.tiles([[png(), png()]])
    with pytest.raises(errors.UnknownModel):
        client.tiles([png()], model="none-such")


# asyncio


def in_process(app: Any, **options: Any) -> AsyncClient:
    return AsyncClient("http://localhost", transport=httpx.ASGITransport(app), **options)


def test_the_asynchronous_client_gives_the_same(url: str) -> None:
    async def scenario() -> None:
        async with AsyncClient(url) as client:
            labels, clean, scored = await asyncio.gather(
                client.segment(png()), client.denoise(png()), client.score(png())
            )
            assert np.array_equal(labels.image.pixels, expected(segmenter(), png()).pixels)
            assert clean.files[0].name == "image_restored.png" and scored.scores["l2_mean"] > 0
            assert len(await client.models()) == 3 and await client.limits()
            tiles = await client.tiles([png(), b"no image"], "denoise")
            assert tiles[0].get().files[0].data == clean.files[0].data and tiles[1].error is not None
            sources = [png(20 + number, 30, seed=number) for number in range(5)] + [b"no image"]
            outcomes = [outcome async for outcome in client.many(sources, concurrency=2, progress=False)]
            assert [outcome.number for outcome in outcomes] == list(range(6))
            assert [outcome.error is None for outcome in outcomes] == [True] * 5 + [False]
            with pytest.raises(errors.UnknownModel):
                [outcome async for outcome in client.many(sources, model="none-such", progress=False)]

    asyncio.run(scenario())


async def ready(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": b'{"scores": {}, "files": []}'})


def test_the_asynchronous_client_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    app = Faulty(ready, (429, {"Retry-After": "2"}), (503, {}))

    async def scenario() -> Any:
        async with in_process(app) as client:
            return await client.segment(png())

    # the name in the client's own module: servers of other tests wait in asyncio at the same time
    monkeypatch.setattr("medae.client.calls.sleep_async", sleep)
    assert asyncio.run(scenario()).summary == {"scores": {}, "files": []}
    assert len(waited) == 2 and waited[0] >= 2 and all(png() in body for body in app.seen)


def test_whoever_is_cancelled_at_any_moment_leaves_no_file_open(monkeypatch: pytest.MonkeyPatch) -> None:
    spools: list[SpooledTemporaryFile[bytes]] = []

    def recorded(limit: int) -> SpooledTemporaryFile[bytes]:
        spools.append(SpooledTemporaryFile(limit))  # noqa: SIM115 (closed by the client, or the test fails)
        return spools[-1]

    async def in_turn(call: Any, *args: Any) -> Any:  # what threads would do, at moments that can be told
        await asyncio.sleep(0)
        return call(*args)

    async def stopped_after(steps: int) -> bool:
        async with in_process(Faulty(ready)) as client:
            task = asyncio.create_task(client.segment(png()))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            return task.cancelled()

    monkeypatch.setattr("medae.client.answer.SpooledTemporaryFile", recorded)
    monkeypatch.setattr("medae.client.calls.asyncio.to_thread", in_turn)
    steps = itertools.count()
    while asyncio.run(stopped_after(next(steps))):
        assert all(spool.closed for spool in spools), "left open by one that was cancelled"
    assert all(spool.closed for spool in spools) and len(spools) > 1, "none was cancelled once its reply had begun"


# large bodies


def test_a_large_file_is_streamed_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(256 << 20)
    received = 0

    async def counts(scope: Any, receive: Any, send: Any) -> None:
        nonlocal received
        while (message := await receive())["type"] == "http.request":
            received += len(message["body"])
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with listening(counts) as url, Client(url) as client:
        tracemalloc.start()
        client.segment(path)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert 256 << 20 < received < (256 << 20) + 1000
    assert most < 32 << 20


@pytest.mark.parametrize("change", [-5, 5])
def test_a_file_that_changes_meanwhile(tmp_path: Path, change: int) -> None:
    path = tmp_path / "growing"
    path.write_bytes(png())
    form = Form(parts_of(path))
    for _ in range(2):  # it can be sent again
        assert len(b"".join(form.pieces())) == int(form.headers["Content-Length"])
    path.write_bytes((png() + bytes(5))[: len(png()) + change])
    with pytest.raises(errors.UnreadableImage, match="changed"):
        list(form.pieces())


def test_a_too_large_file_is_refused_before_it_is_sent() -> None:
    with listening(client_of(segmenter(), upload_bytes=1 << 20).app) as url, Client(url) as client:
        with pytest.raises(errors.LimitExceeded) as refused:
            client.segment(os.urandom(64 << 20))
        assert refused.value.status == 413


def test_the_client_needs_no_torch() -> None:
    code = "import sys; from medae import Client; Client('http://h'); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "monai", "bentoml", "starlette", "nibabel", "pydicom"} & set(loaded)
    assert {"Client", "AsyncClient"} <= set(medae.__all__)
