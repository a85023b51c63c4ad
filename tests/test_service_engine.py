"""The engine: whose tile runs when, what a failure touches, and when a request stops using the device."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Picture

from medae.errors import UnfitImage, UsageError
from medae.image import Image
from medae.io import read_image
from medae.package import ModelPackage
from medae.predictor import Prediction, Predictor
from medae.tiles import ReceptiveField
from medae_service.admission import Admission
from medae_service.app import create_app, paths
from medae_service.engine import Abandoned, Engine, Network, SharedBackend, Ticket
from medae_service.models import Models, Served, Shelf, Stored, require_memory, weights_bytes
from medae_service.problems import Refusal
from medae_service.security import door
from medae_service.settings import WorkerSettings
from tests.service_parts import PNG, denoiser, named, png, problem, scorer, segmenter, served

SECONDS = 10.0
"""In which whatever a test waits for happens."""


class Scripted:
    """A back end that stands still when it is told to, writes down what ran, and doubles what it gets."""

    name, device, threads = "scripted", "cpu", 1

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch
        self.ran: list[list[float]] = []
        """The first value of each tile of each pass; canaries begin with 0."""
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Semaphore(0)
        self.at_once = 0
        self.most = 0
        self.fault: Callable[[NDArray[Any]], None] = lambda tiles: None

    def run(self, tiles: NDArray[Any]) -> NDArray[Any]:
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            self.ran.append([float(tile.flat[0]) for tile in tiles])
            self.begun.release()
            assert self.free.wait(SECONDS)
            self.fault(tiles)
            return tiles * 2
        finally:
            self.at_once -= 1

    def network(self) -> Network:
        return Network(self, np.zeros((1, 1, 2, 2), np.float32))

    def hold(self) -> None:
        self.free.clear()

    def wait_begun(self) -> None:
        assert self.begun.acquire(timeout=SECONDS)


def tile(value: float, side: int = 2) -> NDArray[np.float32]:
    return np.full((1, side, side), value, np.float32)


def occupy(engine: Engine, backend: Scripted, network: Network) -> Future[Any]:
    """Keeps the device busy with one tile of nobody's, valued -1, until `backend.free` is set."""
    backend.hold()
    made = engine.submit(Ticket(), network, tile(-1))
    backend.wait_begun()
    return made.output


def test_requests_take_turns_tile_by_tile() -> None:
    engine, backend = Engine(), Scripted()
    network = backend.network()
    first = occupy(engine, backend, network)
    volume, picture, other = Ticket(), Ticket(), Ticket()
    brought = [engine.submit(volume, network, tile(100 + n)) for n in range(5)]
    brought += [engine.submit(picture, network, tile(200)), engine.submit(other, network, tile(300))]
    brought += [engine.submit(other, network, tile(301))]
    backend.free.set()
    for one in brought:
        one.output.result(SECONDS)
    assert first.result(SECONDS).flat[0] == -2
    assert backend.ran == [[-1], [100], [200], [300], [101], [301], [102], [103], [104]]
    assert backend.most == 1


def test_one_picture_does_not_wait_for_a_volume() -> None:
    """Two Predictors on their own threads: the picture's only tile comes after at most two of the volume's."""
    engine, backend = Engine(), Scripted()
    network = backend.network()
    volume, picture = (SharedBackend(engine, network, Ticket()) for _ in range(2))

    def predict_volume() -> None:
        for n in range(100, 120):
            volume.run(tile(n)[None])

    with ThreadPoolExecutor(2) as threads:
        backend.hold()
        long = threads.submit(predict_volume)
        backend.wait_begun()
        short = threads.submit(picture.run, tile(200)[None])
        wait_for(lambda: engine._depth == 1)
        backend.free.set()
        assert short.result(SECONDS).flat[0] == 400
        long.result(SECONDS)
    assert [200.0] in backend.ran[:3]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def test_a_batch_holds_one_model_and_one_shape_of_several_requests() -> None:
    engine, backend, other = Engine(), Scripted(batch=4), Scripted(batch=4)
    network, second = backend.network(), other.network()
    occupy(engine, backend, network)
    a, b, c = Ticket(), Ticket(), Ticket()
    brought = [engine.submit(a, network, tile(100 + n)) for n in range(4)]
    brought += [engine.submit(b, network, tile(200)), engine.submit(c, second, tile(300))]
    brought += [engine.submit(b, network, tile(201, side=4))]
    backend.free.set()
    for one, expected in zip(brought, [200, 202, 204, 206, 400, 600, 402], strict=True):
        assert one.output.result(SECONDS).flat[0] == expected
    assert backend.ran[1] == [100, 200, 101, 102], "filled in turns"
    assert sorted(backend.ran[2:]) == [[103], [201]] and other.ran == [[300]]


def test_a_batch_waits_a_moment_for_a_request_that_computes() -> None:
    engine, backend = Engine(batch_seconds=SECONDS), Scripted(batch=2)
    network = backend.network()
    with engine.at_work(), engine.at_work():
        one = engine.submit(Ticket(), network, tile(1))
        two = engine.submit(Ticket(), network, tile(2))
        assert one.output.result(SECONDS).flat[0] == 2 and two.output.result(SECONDS).flat[0] == 4
    assert backend.ran == [[1, 2]]
    begin = time.monotonic()
    engine.submit(Ticket(), network, tile(3)).output.result(SECONDS)
    assert time.monotonic() - begin < SECONDS / 2, "alone, it waits for nobody"


def test_a_bad_tile_fails_alone() -> None:
    engine, backend = Engine(), Scripted(batch=4)
    network = backend.network()

    def fault(tiles: NDArray[Any]) -> None:
        if (tiles == 13).any():
            raise FloatingPointError

    backend.fault = fault
    occupy(engine, backend, network)
    brought = [engine.submit(Ticket(), network, tile(value)) for value in (11, 12, 13, 14)]
    backend.free.set()
    for one, expected in zip(brought, (22, 24, None, 28), strict=True):
        if expected is None:
            with pytest.raises(FloatingPointError):
                one.output.result(SECONDS)
        else:
            assert one.output.result(SECONDS).flat[0] == expected
    assert not engine.broken and asyncio.run(engine.ready())


def test_after_a_bad_tile_the_others_of_its_pass_are_not_run() -> None:
    engine, backend = Engine(), Scripted()
    network, raised = backend.network(), threading.Event()

    def fault(tiles: NDArray[Any]) -> None:
        if (tiles == 1).any():
            raise FloatingPointError
        if (tiles == 2).any():  # running already when the first is known to be bad
            assert raised.wait(SECONDS)

    backend.fault = fault
    with pytest.raises(FloatingPointError):
        SharedBackend(engine, network, Ticket()).run(np.stack([tile(n) for n in range(1, 7)]))
    raised.set()
    assert engine.test(network)
    assert [ran for ran in backend.ran if ran != [0]] in ([[1]], [[1], [2]])


def test_a_broken_device_is_latched() -> None:
    engine, backend = Engine(), Scripted()
    network = backend.network()
    assert engine.test(network) and asyncio.run(engine.ready())

    def fault(tiles: NDArray[Any]) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    backend.fault = fault
    occupy(engine, backend, network)
    brought = [engine.submit(Ticket(), network, tile(value)) for value in (1, 2)]
    backend.free.set()
    for one in brought:
        with pytest.raises(Refusal) as refused:
            one.output.result(SECONDS)
        assert (refused.value.status, refused.value.code) == (503, "device-fault")
    backend.fault = lambda tiles: None
    assert engine.broken and not asyncio.run(engine.ready()), "for ever"
    with pytest.raises(Refusal, match="has failed"):
        engine.submit(Ticket(), network, tile(1))


def test_numbers_that_are_none_break_the_device() -> None:
    engine, backend = Engine(), Scripted()
    network = Network(backend, np.full((1, 1, 2, 2), np.nan, np.float32))
    assert not engine.test(network)
    assert engine.broken


def test_ready_does_not_wait_for_a_long_tile_but_tests_next() -> None:
    engine, backend = Engine(), Scripted()
    network = backend.network()
    first = occupy(engine, backend, network)
    later = engine.submit(Ticket(), network, tile(5))
    begin = time.monotonic()
    assert asyncio.run(engine.ready())
    assert time.monotonic() - begin < 1
    backend.free.set()
    later.output.result(SECONDS), first.result(SECONDS)
    assert backend.ran == [[-1], [0], [5]], "the test comes before whoever waits"


def test_a_tile_that_never_ends_is_not_ready() -> None:
    engine, backend = Engine(stuck_seconds=0.01), Scripted()
    first = occupy(engine, backend, backend.network())
    time.sleep(0.02)
    assert not asyncio.run(engine.ready())
    backend.free.set()
    first.result(SECONDS)
    assert asyncio.run(engine.ready()), "slow is not broken"


def test_an_abandoned_request_stops_within_a_tile() -> None:
    engine, backend = Engine(), Scripted()
    network, ticket = backend.network(), Ticket()
    backend.hold()
    shared = SharedBackend(engine, network, ticket)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(shared.run, np.stack([tile(n) for n in range(1, 9)]))
        backend.wait_begun()
        ticket.give_up()
        backend.free.set()
        with pytest.raises(Abandoned):
            work.result(SECONDS)
    engine.test(network)
    assert backend.ran == [[1], [0]]
    with pytest.raises(Abandoned):
        shared.run(tile(9)[None])


def test_a_request_whose_time_is_over_stops_within_a_tile() -> None:
    engine, backend = Engine(), Scripted()
    shared = SharedBackend(engine, backend.network(), Ticket(0.02))
    backend.hold()
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(shared.run, np.stack([tile(n) for n in range(1, 9)]))
        backend.wait_begun()
        time.sleep(0.03)
        backend.free.set()
        with pytest.raises(Refusal) as refused:
            work.result(SECONDS)
    assert (refused.value.status, refused.value.code) == (503, "compute-timeout")
    assert backend.ran == [[1]]


def test_tiles_beyond_the_queues_bound_wait_with_their_request() -> None:
    engine, backend = Engine(waiting_tiles=2), Scripted()
    network = backend.network()
    occupy(engine, backend, network)
    with ThreadPoolExecutor(1) as threads:
        work = threads.submit(SharedBackend(engine, network, Ticket()).run, np.stack([tile(n) for n in range(1, 7)]))
        wait_for(lambda: engine._depth == 2)
        late = Ticket()
        late.give_up()
        with pytest.raises(Abandoned):
            engine.submit(late, network, tile(9))
        backend.free.set()
        assert work.result(SECONDS)[:, 0, 0, 0].tolist() == [2, 4, 6, 8, 10, 12]


# several models


def two_stored(backends: list[str]) -> tuple[Stored, Stored]:
    def stored(package: ModelPackage) -> Stored:
        def open_scripted(opened: ModelPackage, device: str) -> Any:
            backends.append(opened.card.name)
            return Scripted()

        return Stored(package.digest, 60, lambda: package, "cpu", open_scripted)

    return stored(denoiser("one")), stored(denoiser("two"))


def test_what_was_asked_least_lately_is_put_away() -> None:
    opened: list[str] = []
    one, two = two_stored(opened)
    shelf = Shelf(100)
    for stored in (one, one, two, one):
        with shelf.use(stored, Ticket()):
            assert shelf.loaded(stored)
    assert opened == ["one", "two", "one"] and not shelf.loaded(two)
    roomy = Shelf()
    for stored in (one, two, one):
        with roomy.use(stored, Ticket()):
            pass
    assert opened[3:] == ["one", "two"]


def test_the_latest_asked_stays() -> None:
    one, two = two_stored([])
    three = replace(one, digest=segmenter().digest, load=segmenter)
    shelf = Shelf(130)
    for stored in (one, two, one, three):
        with shelf.use(stored, Ticket()):
            pass
    assert (shelf.loaded(one), shelf.loaded(two), shelf.loaded(three)) == (True, False, True)


def test_weights_in_use_stay_and_nobody_overtakes_who_waits() -> None:
    opened: list[str] = []
    one, two = two_stored(opened)
    shelf, order = Shelf(100), list[str]()

    def ask(stored: Stored, name: str) -> None:
        with shelf.use(stored, Ticket()):
            order.append(name)

    with ThreadPoolExecutor(2) as threads:
        with shelf.use(one, Ticket()):
            waits = threads.submit(ask, two, "two")
            wait_for(lambda: len(shelf._line) == 1)
            behind = threads.submit(ask, one, "one again")
            wait_for(lambda: len(shelf._line) == 2)
            assert opened == ["one"] and not waits.done()
            with pytest.raises(Refusal, match="not ready in the time"), shelf.use(two, Ticket(0.01)):
                pass
        waits.result(SECONDS), behind.result(SECONDS)
    assert order == ["two", "one again"] and opened == ["one", "two", "one"]


def test_models_within_a_budget_answer_as_ever() -> None:
    packages = [denoiser("one"), segmenter("two"), scorer("three")]
    shelf, engine = Shelf(max(map(weights_bytes, packages))), Engine()
    image = read_image(png())
    for package in packages * 2:
        answer, alone = served(package, engine, shelf)(image), Predictor(package, device="cpu")(image)
        assert np.array_equal(answer.image.pixels, alone.image.pixels)
        assert answer.provenance == alone.provenance and answer.scores == alone.scores
    with pytest.raises(UsageError, match="model_memory_bytes"):
        require_memory(packages, 10)
    require_memory(packages, None)


def test_a_package_that_was_replaced_is_not_served() -> None:
    package, other = denoiser(), segmenter()
    stored = Stored(package.digest, 1, lambda: other, "cpu")
    with pytest.raises(Refusal, match="restarted"):
        stored.network()


def test_the_canary_fits_every_network() -> None:
    for package in (denoiser(), segmenter(), scorer()):
        engine = Engine()
        served(package, engine).warm_up()
        assert not engine.broken and asyncio.run(engine.ready())
    field = ReceptiveField(dims=3, stride=24, radius=5)
    card = replace(denoiser()).card.model_copy(update={"receptive_field": field, "channels_in": 2})
    assert Network.of(Scripted(), card).canary.shape == (1, 2, 48, 48, 48)


# the whole way of a request


@dataclass
class Serving:
    """The app with one real denoiser whose back end is scripted, and a client."""

    client: httpx.AsyncClient
    backend: Scripted
    engine: Engine
    app: Any


def denoiser_on(backend: Any, **settings: Any) -> tuple[Any, Engine]:
    package, engine, models = denoiser(), Engine(), Models()
    stored = Stored(package.digest, 1, lambda: package, "cpu", lambda opened, device: backend)
    models.add(package, Served(package, stored, engine, Shelf()))
    chosen = WorkerSettings(**settings)
    app = create_app(chosen, models)
    return door(app, chosen, paths(app)), engine


def client_on(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", timeout=SECONDS)


def test_overload_gives_only_answers_and_429() -> None:
    backend = Scripted()
    app, engine = denoiser_on(backend, computing=2, waiting=3)

    async def scenario() -> tuple[list[httpx.Response], httpx.Response]:
        async with client_on(app) as client:
            backend.hold()
            asked = [asyncio.create_task(client.post("/v1/restore", files=PNG)) for _ in range(50)]
            while sum(task.done() for task in asked) < 45:
                await asyncio.sleep(0.005)
            backend.free.set()
            return await asyncio.gather(*asked), await client.post("/v1/restore", files=PNG)

    answers, after = asyncio.run(asyncio.wait_for(scenario(), 60))
    assert sorted(answer.status_code for answer in answers) == [200] * 5 + [429] * 45
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
    assert after.status_code == 200 and engine._depth == 0


def test_a_client_who_leaves_frees_its_place_and_the_device() -> None:
    backend = Scripted()
    app, _ = denoiser_on(backend, computing=1, waiting=1)

    async def scenario() -> list[int]:
        async with client_on(app) as client:
            backend.hold()
            computing = asyncio.create_task(leave_when(app, left := asyncio.Event()))
            await asyncio.to_thread(backend.wait_begun)
            waiting = asyncio.create_task(leave_when(app, left))
            await asyncio.sleep(0.05)
            full = await client.post("/v1/restore", files=PNG)
            left.set()
            statuses = [full.status_code, await computing, await waiting]
            asked = [asyncio.create_task(client.post("/v1/restore", files=PNG))]
            await asyncio.sleep(0.05)
            backend.free.set()
            return statuses + [answer.status_code for answer in await asyncio.gather(*asked)]

    # 499: for the log alone; the request that was computing keeps its place until its tile is done, then it is free
    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == [429, 499, 499, 200]
    assert len(backend.ran) == 2, "the one that waited never ran"


@pytest.mark.usefixtures("tiled")
def test_a_client_who_leaves_stops_the_work() -> None:
    backend = Scripted()
    app, engine = denoiser_on(backend, computing=1, waiting=0)

    async def scenario() -> int:
        backend.hold()
        left = asyncio.Event()
        computing = asyncio.create_task(leave_when(app, left, {"file": large_png()}))
        await asyncio.to_thread(backend.wait_begun)
        left.set()
        status = await computing
        backend.free.set()
        async with client_on(app) as client:
            while (await client.post("/v1/restore", files={"file": large_png()})).status_code == 429:
                await asyncio.sleep(0.005)
        return status

    assert asyncio.run(asyncio.wait_for(scenario(), 60)) == 499
    whole = len(backend.ran) - 1
    assert whole > 3 and engine._depth == 0
    backend.ran.clear()

    async def undisturbed() -> None:
        async with client_on(app) as client:
            await client.post("/v1/restore", files={"file": large_png()})

    asyncio.run(undisturbed())
    assert len(backend.ran) == whole, "of the first request one tile ran"


async def leave_when(app: Any, left: asyncio.Event, files: Any = PNG) -> int:
    """Posts a picture and leaves; the status that was sent."""
    request = httpx.Request("POST", "http://localhost/v1/restore", files=files)
    body, status = request.read(), 0
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = [(name.lower(), value) for name, value in request.headers.raw]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
             "path": "/v1/restore", "raw_path": b"/v1/restore", "query_string": b"", "root_path": "",
             "headers": headers, "client": ("127.0.0.1", 1), "server": ("localhost", 80)}  # fmt: skip
    await app(scope, receive, send)
    return status


def test_our_deadline_is_said_by_us() -> None:
    backend = Scripted()
    app, _ = denoiser_on(backend, compute_seconds=1, computing=1)

    async def scenario() -> list[httpx.Response]:
        async with client_on(app) as client:
            backend.hold()
            late = await asyncio.gather(*(client.post("/v1/restore", files=PNG) for _ in range(2)))
            backend.free.set()
            await asyncio.sleep(0.05)
            return [*late, await client.post("/v1/restore", files=PNG)]

    *late, after = asyncio.run(asyncio.wait_for(scenario(), 60))
    for answer in late:
        assert "in the time" in problem(answer, 503, "compute-timeout")
        assert "retry-after" in answer.headers
    assert after.status_code == 200
    assert len(backend.ran) == 2, "the one that waited never ran"


def test_a_broken_device_answers_503() -> None:
    backend = Scripted()
    app, engine = denoiser_on(backend)

    def fault(tiles: NDArray[Any]) -> None:
        raise RuntimeError("device-side assert")

    backend.fault = fault

    async def scenario() -> list[httpx.Response]:
        async with client_on(app) as client:
            return [await client.post("/v1/restore", files=PNG) for _ in range(2)]

    for answer in asyncio.run(scenario()):
        problem(answer, 503, "device-fault")
    assert engine.broken


def large_png() -> bytes:
    """Many tiles for the toy below."""
    return png(150, 170, seed=3)


@pytest.fixture
def tiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tiles small enough that a picture has many."""
    monkeypatch.setattr("medae.tiles.TILE_VOXELS", {2: 40 * 40, 3: 16**3})
    from medae.tiles import plan_tiles

    plan_tiles.cache_clear()
    yield
    plan_tiles.cache_clear()


@pytest.mark.usefixtures("tiled")
@pytest.mark.parametrize("package", [denoiser(), segmenter(), scorer()], ids=lambda package: package.card.name)
def test_the_same_pixels_alone_and_under_load(package: ModelPackage) -> None:
    engine, shelf = Engine(), Shelf()
    model = served(package, engine, shelf)
    other = served(named(package, "other"), engine, shelf)
    images = [read_image(data) for data in (png(), large_png(), png(80, 41, seed=5))]
    alone = [Predictor(package, device="cpu")(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        work = [threads.submit(model, image) for image in images * 4]
        noise = [threads.submit(other, images[1]) for _ in range(4)]
        for expected, answer in zip(alone * 4, (future.result(60) for future in work), strict=True):
            assert np.array_equal(answer.image.pixels, expected.image.pixels)
            assert answer.scores == expected.scores and answer.provenance == expected.provenance
        for future in noise:
            assert np.array_equal(future.result(60).image.pixels, alone[1].image.pixels)


def test_http_answers_the_same_bytes_under_load() -> None:
    package, models = segmenter(), Models()
    models.add(package, served(package))
    chosen = WorkerSettings(computing=3, waiting=64)
    app = create_app(chosen, models)
    bodies = [png(seed=seed, rows=40 + seed) for seed in range(4)]

    async def scenario() -> list[bytes]:
        async with client_on(door(app, chosen, paths(app))) as client:
            alone = [(await client.post("/v1/segment", files={"file": body})).content for body in bodies]
            asked = [client.post("/v1/segment", files={"file": body}) for body in bodies * 4]
            together = [answer.content for answer in await asyncio.gather(*asked)]
            assert together == alone * 4
            return alone

    for body, made in zip(bodies, asyncio.run(scenario()), strict=True):
        expected = Predictor(package, device="cpu")(read_image(body)).image.pixels[0, 0]
        assert np.array_equal(np.asarray(Picture.open(BytesIO(made))), expected)


# admission


class _Stays:
    """Stands for a Starlette request whose client waits for its answer."""

    async def receive(self) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}


def test_an_abandoned_thread_holds_its_place_until_it_is_done() -> None:
    begun, release = threading.Event(), threading.Event()

    async def scenario() -> list[str]:
        admission = Admission(computing=1, waiting=0, seconds=SECONDS)
        said = []

        async def long(ticket: Ticket) -> None:
            async with admission.slot(ticket):
                await admission.in_thread(lambda: (begun.set(), release.wait(SECONDS)))

        async def short(ticket: Ticket) -> str:
            async with admission.slot(ticket):
                return await admission.in_thread(lambda: "second ran")

        request: Any = _Stays()
        abandoned = asyncio.create_task(admission.run(request, long))
        await asyncio.to_thread(begun.wait, SECONDS)
        abandoned.cancel()
        await asyncio.wait({abandoned})
        try:
            await admission.run(request, short)
        except Refusal as error:
            said.append(error.code)
        release.set()
        while admission._places:
            await asyncio.sleep(0.001)
        return [*said, await admission.run(request, short)]

    assert asyncio.run(scenario()) == ["busy", "second ran"]


def test_small_images_take_turns_and_large_ones_neither_wait_nor_hold_them_up() -> None:
    async def scenario() -> None:
        admission, inside, leave = Admission(computing=8, waiting=8, seconds=SECONDS, small=2), [], asyncio.Event()

        async def stay(name: str, *, small: bool, turns_out_large: bool = False) -> None:
            async with admission.slot(Ticket(), small=small) as turn:
                if turns_out_large:
                    await turn.aclose()
                inside.append(name)
                await leave.wait()

        async def now(*tasks: Coroutine[Any, Any, None]) -> list[asyncio.Task[None]]:
            started = [asyncio.create_task(task) for task in tasks]
            for _ in range(10):
                await asyncio.sleep(0)
            return started

        tasks = await now(*(stay("small", small=True, turns_out_large=True) for _ in range(2)))
        tasks += await now(*(stay("small", small=True) for _ in range(4)))
        assert len(inside) == 4  # two that were large after all, and two
        tasks += await now(*(stay("large", small=False) for _ in range(3)))
        assert inside[4:] == ["large"] * 3
        leave.set()
        await asyncio.gather(*tasks)
        assert sorted(inside) == ["large"] * 3 + ["small"] * 6

    asyncio.run(scenario())


def test_a_prediction_is_served_without_a_ticket() -> None:
    """As BentoML's native endpoints call it: from a thread of theirs."""
    answer: Prediction = served(denoiser())(read_image(png()))
    assert isinstance(answer.image, Image)
    with pytest.raises(UnfitImage):
        served(segmenter())(Image.from_picture(np.zeros((1, 9), np.uint8)))
