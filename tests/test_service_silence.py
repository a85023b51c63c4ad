"""A patient in every corner of good and bad requests to a real service, looked for wherever the service leaves a trace.

Looked through: its log, its metrics, the bodies and headers of its refusals, the names and contents of what it writes
(again and again while it works), its command lines, process and thread names. Not the answers: those are the patient's.
"""

import gzip
import io
import random
import socket
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from PIL import Image as Picture
from PIL.PngImagePlugin import PngInfo

from tests.service_parts import denoiser, scorer, segmenter
from tests.test_service_process import Running, start, stop

NAME = "CANARYDOE"
PATIENT = f"{NAME}^JANE"
UID = "1.2.826.0.1.3680043.8.498.66600666006660066600666"
BORN = "19010203"
TRACES = tuple(
    trace.lower().encode() for trace in (NAME, UID, BORN, "PDX-4711-X", NAME.encode("utf-16-le").decode("latin-1"))
)

TOKEN = "a-token-for-tests-0123456789"
ROUTES = ("/v1/segment", "/v1/restore", "/v1/denoise", "/v1/score", "/v1/tiles/restore", "/v1/tiles/segment")
NATIVE = ("/native/restore_bytes", "/native/segment_list", "/native/score_bytes")
NO_ROUTES = (f"/v1/{NAME}", f"/{PATIENT}/{UID}", f"/v1/restore/{NAME}", "/metrics", "/v1/models")
QUERIES = ("",) * 6 + ("?output=summary", "?output=overlay")
NO_QUERIES = (f"?model={NAME}", f"?{NAME}=1", f"?output={NAME}", f"?threshold={NAME}", f"?noise={NAME}")
ACCEPTS = ("*/*", "application/json", "application/zip", f"image/{NAME}")


# bodies


def dicom(**tags: Any) -> bytes:
    """pydicom's small CT of this patient, whose pixels spell the name too."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    dataset: Any = dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = PATIENT, "PDX-4711-X", BORN
    dataset.SeriesDescription = dataset.StudyDescription = f"of {NAME}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.1"
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = f"{UID}.2", f"{UID}.3"
    pixels = (NAME.encode() * len(dataset.PixelData))[: len(dataset.PixelData)]
    dataset.PixelData = pixels
    for name, value in tags.items():
        setattr(dataset, name, value)
    target = io.BytesIO()
    dataset.save_as(target)
    return target.getvalue()


def forged_dicom(keyword: str) -> bytes:
    """A number of the header is the name: what reads it quotes it in its error."""
    whole = dicom(**{keyword: "7654321"})
    return whole.replace(b"7654321 ", NAME[:8].encode(), 1).replace(b"7654321", NAME[:7].encode(), 1)


def nifti(damage: bool = False) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), np.eye(4))
    image.header["descrip"], image.header["db_name"], image.header["intent_name"] = PATIENT, NAME, NAME
    data = bytearray(image.to_bytes())
    if damage:
        data[40:48] = NAME.encode()[:8]
    return gzip.compress(bytes(data))


def picture(kind: str) -> bytes:
    target = io.BytesIO()
    image = Picture.fromarray(np.frombuffer((NAME * 100).encode(), np.uint8)[:900].reshape(30, 30))
    if kind == "PNG":
        text = PngInfo()
        text.add_text(NAME, PATIENT)
        image.save(target, kind, pnginfo=text)
    else:
        image.save(target, kind, **({"comment": NAME.encode()} if kind == "JPEG" else {"description": PATIENT}))
    return target.getvalue()


def zipped(*bodies: bytes) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.comment = NAME.encode()
        for number, body in enumerate(bodies):
            archive.writestr(f"../{PATIENT}/{number}.dcm" if number == 1 else f"{NAME}/{number}.dcm", body)
    return target.getvalue()


def bodies() -> list[bytes]:
    whole = dicom()
    return [
        whole,
        whole[:-900],
        whole[:700],
        dicom(WindowCenter="1", PhotometricInterpretation=NAME[:9]),
        *(forged_dicom(name) for name in ("RescaleSlope", "SliceThickness", "WindowCenter", "InstanceNumber")),
        nifti(),
        nifti(damage=True),
        *(picture(kind) for kind in ("PNG", "JPEG", "TIFF")),
        *(picture(kind)[:-300] + NAME.encode() * 20 for kind in ("PNG", "JPEG", "TIFF")),
        zipped(whole, whole),
        zipped(whole),
        zipped(NAME.encode() * 50),
        NAME.encode() * 1000,
        b"",
        b"\0" * 128 + b"DICM" + NAME.encode() * 30,
    ]


# requests


@dataclass
class Said:
    """What came back that is no answer about the image, and which statuses came."""

    texts: list[bytes] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def add(self, response: httpx.Response) -> None:
        self.statuses[response.status_code] += 1
        self.texts.append(repr(response.headers.raw).encode())
        if response.status_code != 200:
            self.texts.append(response.content)


def ask(client: httpx.Client, number: int, made: list[bytes], said: Said) -> None:
    """One request; the number decides which."""
    draw = random.Random(number)
    body, query = made[number % len(made)], draw.choice(QUERIES if draw.random() < 0.8 else NO_QUERIES)
    route = draw.choice(ROUTES if draw.random() < 0.8 else NO_ROUTES)
    headers = {
        "X-Patient": PATIENT,
        "User-Agent": NAME,
        "X-Request-ID": NAME,
        "traceparent": f"00-{NAME}",
        "Cookie": f"patient={NAME}",
        "Referer": f"http://localhost/{NAME}",
        "Accept": draw.choice(ACCEPTS),
        "Authorization": f"Bearer {NAME if number % 19 == 1 else TOKEN}",
        **({"Origin": f"http://{NAME}.example"} if number % 11 == 5 else {}),
        **({"Host": f"{NAME}.example"} if number % 13 == 7 else {}),
    }
    files = [(NAME if number % 9 == 4 else "file", (f"{PATIENT}.dcm", body, f"image/{NAME}"))] * draw.choice((1, 1, 2))
    url = quote(route, safe="/") + query
    if number % 7 == 3:
        said.add(client.request(draw.choice(("GET", "PUT", NAME)), url, headers=headers))
    elif number % 7 == 6:
        said.add(client.post(url, headers=headers, json={"image": PATIENT, "path": f"/{NAME}"}))
    elif number % 7 == 5:
        path = draw.choice(NATIVE) + query
        said.add(client.post(path, headers=headers, content=body))
        said.add(client.post(path, headers=headers, json={"pixels": [[1, NAME]], "dtype": NAME, NAME: UID}))
    elif number % 17 == 8:
        said.add(client.post(url, headers=headers, data={"file": f"http://{NAME}.example/{NAME}"}, files={"x": b""}))
    else:
        said.add(client.post(url, headers=headers, files=files))


def spooled(client: httpx.Client, said: Said) -> None:
    """Too large for memory, and slow: its file lies in the spool for a while."""
    body = b"".join(
        (
            f'--{NAME}\r\nContent-Disposition: form-data; name="file"; filename="{PATIENT}.dcm"\r\n\r\n'.encode(),
            NAME.encode() * 600_000,
            f"\r\n--{NAME}--\r\n".encode(),
        )
    )

    def pieces() -> Iterator[bytes]:
        for begin in range(0, len(body), 1 << 20):
            yield body[begin : begin + (1 << 20)]
            time.sleep(0.1)

    headers = {"Content-Type": f"multipart/form-data; boundary={NAME}", "Authorization": f"Bearer {TOKEN}"}
    said.add(client.post("/v1/restore", headers=headers, content=pieces()))


def raw(service: Running, said: Said) -> None:
    """What no HTTP library sends."""
    for text in (
        f"GET /{NAME} HTTP/9.9\r\n\r\n",
        f"{NAME}\r\n\r\n",
        f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\n{NAME}\r\nContent-Length: {NAME}\r\n\r\n",
        f"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary={NAME}\r\n"
        f"Content-Length: 900\r\n\r\n--{NAME}\r\n{NAME}",
        f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {NAME}\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(text.encode())
            connection.shutdown(socket.SHUT_WR)  # a client that is gone in the middle
            while piece := connection.recv(65536):
                said.texts.append(piece)


# traces


def processes(pid: int) -> Iterator[int]:
    """A process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in read_text(children).split():
            yield from processes(int(child))


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("latin-1")
    except OSError:  # ended meanwhile
        return ""


def titles(service: Running) -> str:
    found = []
    for pid in processes(service.process.pid):
        found += [read_text(Path(f"/proc/{pid}/cmdline"))]
        found += [read_text(path) for path in Path(f"/proc/{pid}/task").glob("*/comm")]
    return "\n".join(found)


def names(service: Running) -> str:
    return "\n".join(str(path.relative_to(service.temporary)) for path in service.temporary.rglob("*"))


@contextmanager
def watched(look: Callable[[], str]) -> Iterator[set[str]]:
    """All that `look` gave at some time while the block ran."""
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.03):
            seen.add(look())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("s")
    for package in (denoiser(), segmenter(), scorer()):
        package.save(folder / package.card.name)
    (folder / "token").write_text(TOKEN)
    running = start(folder, "denoiser", "segmenter", "scorer", "--workers", "2", "--token-file", "token")
    yield running
    stop(running)


def quiet(place: str, text: bytes | str) -> None:
    data = (text.encode("latin-1", "replace") if isinstance(text, str) else text).lower()
    for trace in TRACES:
        at = data.find(trace)
        assert at < 0, f"{place}: {data[max(0, at - 200) : at + 60]!r}"


@pytest.mark.parametrize("count", [60, pytest.param(300, marks=pytest.mark.slow)])
def test_nothing_about_a_patient_is_left_anywhere(service: Running, count: int) -> None:
    made, said = bodies(), Said()
    with (
        watched(lambda: names(service)) as all_names,
        watched(lambda: titles(service)) as all_titles,
        httpx.Client(base_url=service.url, timeout=60) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        list(pool.map(lambda number: ask(client, number, made, said), range(count)))
        spooled(client, said)
        raw(service, said)
        metrics = client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert "medae_requests_total" in metrics
    assert {200, 400, 401, 403, 404, 405, 415, 422} <= set(said.statuses)
    assert said.statuses[500] == 0 and said.statuses[200] > count / 8, said.statuses
    for text in said.texts:
        quiet("a refusal", text)
    quiet("metrics", metrics)
    quiet("log", service.log.read_bytes())
    quiet("a name", "\n".join(all_names))
    quiet("a title", "\n".join(all_titles))
    assert any("spool/" in each for each in all_names), "the spool was not seen in use"
    assert "medae" in "".join(all_titles)
    (folder,) = service.temporary.glob("medae-serve-*")
    assert [path for path in (folder / "spool").rglob("*") if path.is_file()] == []
    for path in service.temporary.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes()
            quiet("a file", path.read_bytes())
    assert service.log.read_text().count('"message": "request"') >= count


def test_the_patient_is_in_the_requests() -> None:
    """Else the silence above proves nothing."""
    made = bodies()
    holding = [body for body in made if any(trace in body.lower() for trace in TRACES)]
    assert len(holding) >= len(made) - 7  # compressed ones and the empty one do not show it
    assert NAME.encode() in dicom() and NAME.encode()[:7] in forged_dicom("RescaleSlope")


def test_a_trace_would_be_found() -> None:
    for text in (f"said {NAME.lower()} here", NAME.encode("utf-16-le"), f"{UID}.3"):
        with pytest.raises(AssertionError, match="a place"):
            quiet("a place", text)
