"""Uploads: streamed, counted, spooled in private, unpacked with care, and gone at the end, however it comes."""

import asyncio
import http.client
import io
import os
import re
import select
import socket
import stat
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medae.errors import MedaeError
from medae.io.archive import Bounds, unpack
from medae_service import uploads
from medae_service.problems import Refusal, on_medae_error, on_refusal
from medae_service.security import door
from medae_service.settings import WorkerSettings
from medae_service.uploads import IN_MEMORY, Uploaded, uploaded_files
from tests.dicom_made import sample
from tests.service_parts import CANARY, TestClient, png, problem

BOUNDARY = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n'
END = b"\r\n--b--\r\n"


def content(file: Uploaded) -> bytes:
    return file if isinstance(file, bytes) else file.read_bytes()


def app_of(settings: WorkerSettings, look: Callable[[Path], Any] = lambda spool: None) -> Any:
    """Takes uploads, as the service does, and says what came; `look` sees the spool meanwhile."""

    async def upload(request: Request) -> Response:
        takes_mask = "mask" in request.query_params
        async with uploaded_files(request, settings, takes_mask=takes_mask) as parts:
            assert settings.spool is not None
            look(settings.spool)
            said = {
                name: [content(file).hex()[:200] for file in files]
                for name, files in (("files", parts.files), ("mask", parts.mask))
            }
        return JSONResponse(said)

    handlers: Any = {MedaeError: on_medae_error, Refusal: on_refusal}
    return door(
        Starlette(routes=[Route("/upload", upload, methods=["POST"])], exception_handlers=handlers),
        settings,
        ["/upload"],
    )


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o700)
    yield folder
    assert list(folder.iterdir()) == []  # whatever the test did


def client_of(spool: Path, look: Callable[[Path], Any] = lambda spool: None, **settings: Any) -> TestClient:
    return TestClient(app_of(WorkerSettings(spool=spool, **settings), look), base_url="http://localhost:3000")


def sent(client: TestClient, *files: bytes, field: str = "file", query: str = "") -> Any:
    return client.post(f"/upload{query}", files=[(field, ("x", file, "image/png")) for file in files])


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


# files and masks


def test_files_come_in_order_and_a_mask_only_where_it_is_taken(spool: Path) -> None:
    client = client_of(spool)
    assert sent(client, b"one", b"two").json() == {"files": [b"one".hex(), b"two".hex()], "mask": []}
    body = PART % b"mask" + b"m\r\n" + PART % b"file" + b"f" + END
    assert client.post("/upload?mask", content=body, headers=BOUNDARY).json() == {"files": ["66"], "mask": ["6d"]}
    assert "`file`" in problem(client.post("/upload", content=body, headers=BOUNDARY), 422, "unknown-field")
    only = client.post("/upload?mask", content=PART % b"mask" + b"m" + END, headers=BOUNDARY)
    problem(only, 422, "no-file")


def test_the_limit_of_files_counts_both_fields(spool: Path) -> None:
    body = PART % b"mask" + b"m\r\n" + PART % b"file" + b"f\r\n" + PART % b"file" + b"f" + END
    problem(
        client_of(spool, upload_files=2).post("/upload?mask", content=body, headers=BOUNDARY), 413, "limit-exceeded"
    )
    assert client_of(spool, upload_files=3).post("/upload?mask", content=body, headers=BOUNDARY).status_code == 200


def test_the_spool_is_private_and_its_names_are_ours(spool: Path) -> None:
    seen: list[tuple[str, int]] = []

    def look(folder: Path) -> None:
        seen.extend((path.name, stat.S_IMODE(path.stat().st_mode)) for path in sorted(folder.rglob("*")))

    large = bytes(IN_MEMORY + 1)
    files = [("file", (f"../{CANARY}.png", data, "image/png")) for data in (b"small", large, large)]
    assert client_of(spool, look).post("/upload", files=files).status_code == 200
    (folder, mode), *stored = seen
    assert mode == 0o700 and re.fullmatch(r"upload-\w{8}", folder)
    assert [name for name, _ in stored] == ["000001", "000002"]


def test_no_more_than_a_little_of_many_small_files_is_held(spool: Path) -> None:
    held: list[int] = []

    def look(folder: Path) -> None:
        held.append(sum(path.stat().st_size for path in folder.rglob("0*")))

    assert sent(client_of(spool, look), *[bytes(100_000)] * 20).status_code == 200
    assert 2_000_000 - IN_MEMORY <= held[0] < 2_000_000


# zips


def test_a_zip_is_its_files(spool: Path) -> None:
    names: list[str] = []
    files = [b"first" * 100, b"second", b"third" * 1000]
    archive = zipped(
        ("series/", b""),
        ("series/b.dcm", files[0]),
        (f"series/{CANARY}^Jane/a.dcm", files[1]),
        ("__MACOSX/series/._b.dcm", b"resource"),
        (".DS_Store", b"hidden"),
        ("series/Thumbs/.thumb", b"hidden"),
        ("c", files[2]),
    )
    client = client_of(spool, lambda folder: names.extend(path.name for path in folder.rglob("*")))
    for name in ("x.zip", "x.dcm", "x"):  # the content tells, never the name
        response = client.post("/upload", files={"file": (name, archive, "image/png")})
        assert response.json()["files"] == [file.hex()[:200] for file in files]
    assert not any(CANARY in name or ".dcm" in name for name in names)
    stored = zipped(("a", files[0]), method=zipfile.ZIP_STORED)
    assert sent(client, stored).json()["files"] == [files[0].hex()[:200]]


def test_large_zips_too_and_zips_of_masks(spool: Path) -> None:
    noise = os.urandom(2 * IN_MEMORY)
    assert sent(client_of(spool), zipped(("a", noise), ("b", b"b"))).json()["files"] == [noise.hex()[:200], "62"]
    body = PART % b"mask" + zipped(("m", b"mask")) + b"\r\n" + PART % b"file" + b"f" + END
    response = client_of(spool).post("/upload?mask", content=body, headers=BOUNDARY)
    assert response.json() == {"files": ["66"], "mask": [b"mask".hex()]}


def test_the_directory_of_a_dicom_medium_is_left_out(spool: Path) -> None:
    directory = sample("DICOMDIR").read_bytes()
    archive = zipped(("DICOMDIR", directory), ("IMAGES/1", b"slice"), ("IMAGES/2", directory))
    assert sent(client_of(spool), archive).json()["files"] == [b"slice".hex()]


def test_a_dicom_file_whose_preamble_looks_like_a_zip_is_no_zip(spool: Path) -> None:
    data = b"PK\3\4" + bytes(124) + b"DICM rest"
    assert sent(client_of(spool), data).json()["files"] == [data.hex()[:200]]


def test_a_zip_beside_other_files_stays_as_it_is(spool: Path) -> None:
    archive = zipped(("a", b"a"))
    assert sent(client_of(spool), archive, b"other").json()["files"] == [archive.hex()[:200], b"other".hex()]


def mode(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (kind | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "..", "a/..", "/etc/passwd", "\\\\host\\share", "..\\x", "a\\..\\x", "C:\\x", "c:x", "../d/"],
)
def test_paths_that_lead_out_are_refused(spool: Path, name: str) -> None:
    detail = problem(sent(client_of(spool), zipped(("good", b"good"), (name, b"bad"))), 415, "unsupported-image")
    assert name not in detail
    assert not (spool.parent / "x").exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(spool: Path, kind: int) -> None:
    problem(sent(client_of(spool), zipped((mode("link", kind), b"/etc/passwd"))), 415, "unsupported-image")


def test_names_that_only_look_odd_are_fine(spool: Path) -> None:
    archive = zipped(
        ("a..b", b"1"), ("...", b"hidden"), ("ä/ö", b"2"), ("x" * 300, b"3"), (mode("f", stat.S_IFREG), b"4")
    )
    assert sent(client_of(spool), archive).json()["files"] == ["31", "32", "33", "34"]


def encrypted() -> bytes:
    data = bytearray(zipped(("a", b"secret"), method=zipfile.ZIP_STORED))
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def declared(archive: bytes, size: int) -> bytes:
    """The same with another unpacked size of its first file, in both headers."""
    data = bytearray(archive)
    at = data.index(b"PK\1\2")
    data[22:26] = data[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(data)


@pytest.mark.parametrize(
    ("archive", "status", "code"),
    [
        (zipped(), 422, "no-file"),
        (zipped(("folder/", b""), (".hidden", b"x")), 422, "no-file"),
        (zipped(("inner.png", zipped(("a", b"a")))), 415, "unsupported-image"),
        (zipped(("inner.png", zipped())), 415, "unsupported-image"),
        (encrypted(), 415, "unsupported-image"),
        (zipped(("a", b"a"), method=zipfile.ZIP_BZIP2), 415, "unsupported-image"),
        (zipped(("a", b"a"), method=zipfile.ZIP_LZMA), 415, "unsupported-image"),
        (zipped(("a", b"a" * 1000))[:-10], 422, "unreadable-image"),
        (zipped(("a", b"a" * 1000))[:40], 422, "unreadable-image"),
        (b"PK\3\4", 422, "unreadable-image"),
        (b"PK\5\6" + b"\xff" * 18, 422, "unreadable-image"),
        (declared(zipped(("a", b"a" * 1000)), 999), 422, "unreadable-image"),
        (declared(zipped(("a", b"a" * 1000)), 1001), 422, "unreadable-image"),
        (declared(zipped(("a", b"a" * 1000)), 0), 422, "unreadable-image"),
        (declared(zipped(("a", b"a" * 1000)), (1 << 32) - 2), 413, "limit-exceeded"),
    ],
)
def test_other_zips_are_refused(spool: Path, archive: bytes, status: int, code: str) -> None:
    problem(sent(client_of(spool), archive), status, code)


def test_every_flipped_byte_of_a_zip_is_refused_or_read(spool: Path) -> None:
    whole = zipped(("a", b"first" * 5), ("b", bytes(range(60))))
    client = client_of(spool)
    for at in range(4, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        response = sent(client, bytes(damaged))
        assert response.status_code in (200, 413, 415, 422), (at, response.text)


def test_a_zip_may_hold_what_a_request_may(spool: Path) -> None:
    client = client_of(spool, upload_files=3, upload_bytes=100_000)
    assert sent(client, zipped(*[(str(index), b"x") for index in range(3)])).status_code == 200
    many = zipped(*[(str(index), b"x") for index in range(4)])
    assert "4 files" in problem(sent(client, many), 413, "limit-exceeded")
    assert sent(client, zipped(("a", bytes(100_000)))).status_code == 200
    assert "100001 bytes" in problem(sent(client, zipped(("a", bytes(100_001)))), 413, "limit-exceeded")


def test_an_endless_table_of_contents_is_not_read(spool: Path) -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for index in range(30_000):
            archive.writestr(str(index), b"")
    begin = time.process_time()
    problem(sent(client_of(spool, upload_files=10), target.getvalue()), 413, "limit-exceeded")
    assert time.process_time() - begin < 1


def test_unpacking_stops_when_it_is_unwanted(tmp_path: Path) -> None:
    archive = zipped(*[(str(index), bytes(1000)) for index in range(100)])
    asked = 0

    def is_unwanted() -> bool:
        nonlocal asked
        asked += 1
        return asked > 10

    unpack(archive, tmp_path, Bounds(files=1000, bytes=1 << 20, freely=1 << 20), is_unwanted)
    assert len(list(tmp_path.iterdir())) < 10


def test_a_full_disk_is_no_fault(spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(uploads, "unpack", full)
    problem(sent(client_of(spool), zipped(("a", b"a"))), 507, "no-space")
    monkeypatch.setattr(uploads.tempfile, "mkdtemp", full)
    problem(sent(client_of(spool), bytes(2 * IN_MEMORY)), 507, "no-space")
    problem(sent(client_of(spool), zipped(("a", b"a"))), 507, "no-space")


# over the wire


@contextmanager
def served(spool: Path, look: Callable[[Path], Any] = lambda spool: None, **settings: Any) -> Iterator[int]:
    """The app behind a real server on a port of its own."""
    app = app_of(WorkerSettings(spool=spool, **settings), look)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        until(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def until(holds: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def request_head(*headers: str) -> bytes:
    lines = ["POST /upload HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


class Peak:
    """Growth of this process's memory while the block runs."""

    def __enter__(self) -> "Peak":
        self.process = psutil.Process()
        self.begin = self.most = self.process.memory_info().rss
        self.end = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.end.wait(0.005):
            self.most = max(self.most, self.process.memory_info().rss)

    def __exit__(self, *problem: object) -> None:
        self.end.set()
        self.thread.join()
        self.growth = self.most - self.begin


def send_until_answered(port: int, head: bytes, chunks: Iterator[bytes]) -> tuple[bytes, int]:
    """The answer, and how many bytes were sent before it came."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head)
        count = 0
        for chunk in chunks:
            if select.select([connection], [], [], 0)[0]:
                break
            connection.sendall(chunk)
            count += len(chunk)
        return _whole_answer(connection), count


def _whole_answer(connection: socket.socket) -> bytes:
    """Head and body come in two pieces as often as in one."""
    answer = b""
    while not answer.rstrip().endswith(b"}"):
        piece = connection.recv(1 << 16)
        if not piece:
            break
        answer += piece
    return answer


@pytest.mark.parametrize("declares", [True, False])
def test_a_gigabyte_is_refused_before_memory_grows(spool: Path, declares: bool) -> None:
    piece = bytes(1 << 16)

    def body() -> Iterator[bytes]:
        for data in (PART % b"file", *[piece] * (1 << 14), END):
            yield data if declares else b"%x\r\n%s\r\n" % (len(data), data)

    length = len(PART % b"file") + (1 << 30) + len(END)
    head = request_head(f"Content-Length: {length}" if declares else "Transfer-Encoding: chunked")
    with served(spool, upload_bytes=100 << 20) as port, Peak() as peak:
        answer, count = send_until_answered(port, head, body())
    assert answer.startswith(b"HTTP/1.1 413") and b"limit-exceeded" in answer
    assert count < (16 << 20 if declares else 128 << 20)
    assert peak.growth < 64 << 20


def test_a_declared_gigabyte_is_answered_before_it_comes(spool: Path) -> None:
    with served(spool, upload_bytes=100 << 20) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.putrequest("POST", "/upload")
        for name, value in {**BOUNDARY, "Content-Length": str(1 << 30)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        assert response.status == 413 and b"limit-exceeded" in response.read()
        connection.close()


def test_64_slow_uploads_hold_neither_memory_nor_threads(spool: Path) -> None:
    piece, pieces = bytes(1 << 20), 4
    stored = 64 * (pieces << 20) - (64 << 17)  # some is still on its way

    with served(spool) as port, ExitStack() as stack:
        quick = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)))
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(64)]
        threads = threading.active_count()
        with Peak() as peak:
            for connection in slow:
                connection.sendall(request_head(f"Content-Length: {1 << 29}") + PART % b"file")
            for _ in range(pieces):
                for connection in slow:
                    connection.sendall(piece)
            until(lambda: sum(path.stat().st_size for path in spool.rglob("0*")) >= stored)
            assert threading.active_count() <= threads + 1  # the one that looks at the memory
            quick.request("POST", "/upload", PART % b"file" + b"quick" + END, BOUNDARY)
            assert quick.getresponse().status == 200
        assert peak.growth < 96 << 20  # of 256 MB that came
        for connection in slow:
            connection.close()
        until(lambda: not list(spool.iterdir()))


@pytest.mark.parametrize("body", [PART % b"file" + bytes(3 * IN_MEMORY), PART % b"file" + b"little"])
def test_a_client_that_goes_leaves_nothing(spool: Path, body: bytes) -> None:
    with served(spool) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request_head(f"Content-Length: {1 << 29}") + body)
            if len(body) > IN_MEMORY:
                until(lambda: list(spool.rglob("0*")))
        until(lambda: not list(spool.iterdir()))


def test_a_fault_in_the_middle_leaves_nothing(spool: Path) -> None:
    def look(folder: Path) -> None:
        assert list(folder.rglob("0*"))
        raise RuntimeError(CANARY)

    with served(spool, look) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/upload", PART % b"file" + bytes(2 * IN_MEMORY) + END, BOUNDARY)
        response = connection.getresponse()
        assert response.status == 500 and CANARY.encode() not in response.read()
        connection.close()


def test_a_picture_over_the_wire(spool: Path) -> None:
    with served(spool) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("POST", "/upload", PART % b"file" + png() + END, BOUNDARY)
        assert png().hex()[:200].encode() in connection.getresponse().read()
        connection.close()
