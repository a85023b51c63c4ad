"""Small files that declare or unpack to gigabytes: each refused in under a second of work and 200 MB of memory.

Through the whole app, its decoders included; the next request is answered as if nothing had come.
"""

import gzip
import io
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from medae_service import decoder
from medae_service.app import create_app, paths
from medae_service.decoding import Decoders
from medae_service.engine import Engine
from medae_service.models import Models
from medae_service.security import door
from medae_service.settings import WorkerSettings
from tests.service_parts import PNG, TestClient, denoiser, png, served

SECONDS = 1.0
MEMORY = 200 << 20


def png_of(rows: int, columns: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def nifti_of(*lengths: int) -> bytes:
    import nibabel

    header = nibabel.Nifti1Header()
    header.set_data_dtype("u1")
    header.set_data_shape(lengths)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    return bytes(header.binaryblock) + bytes(4)


def tiff_of(rows: int, columns: int) -> bytes:
    tags = [(256, 4, columns), (257, 4, rows), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 200), (277, 3, 1)]
    tags += [(278, 4, rows), (279, 4, 40)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    body = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return body.ljust(200, b"\0") + zlib.compress(bytes(1 << 14)).ljust(82, b"\0")


def deflated_dicom(size: int) -> bytes:
    """A sound file of the deflated transfer syntax, with `size` zeros in one element."""
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax
    packer = zlib.compressobj(9, wbits=-15)
    body = packer.compress(struct.pack("<HH2sHI", 9, 0x10, b"OB", 0, size)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 26)) + packer.flush(zlib.Z_FULL_FLUSH)  # stands for itself
    body += piece * (size >> 26) + packer.flush()
    return bytes(128) + b"DICM" + struct.pack("<HH2sHI", 2, 0, b"UL", 4, len(meta)) + meta + body


def dicom_of(rows: int, columns: int) -> bytes:
    """A header that declares more pixels than come, and frames of them."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    dataset: Any = dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns = rows, columns
    target = io.BytesIO()
    dataset.save_as(target)
    return target.getvalue()


def zip_of(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return target.getvalue()


def zip_bomb(size: int) -> bytes:
    """One file of `size` zeros."""
    target = io.BytesIO()
    with (
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open("a", "w", force_zip64=True) as member,
    ):
        for _ in range(size >> 20):
            member.write(bytes(1 << 20))
    return target.getvalue()


def understated(archive: bytes) -> bytes:
    """The same zip, saying that its file unpacks to 1000 bytes."""
    data = bytearray(archive)
    at = data.index(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    return bytes(data)


def overlapping(size: int, times: int) -> bytes:
    """Many entries that share one file's data (Fifield, "A better zip bomb", 2019)."""
    whole = zip_bomb(size)
    at, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    entry = whole[at:end]
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, times, times, len(entry) * times, at, 0)
    return whole[:at] + entry * times + tail


BOMBS = {
    "deflated DICOM": lambda: deflated_dicom(1 << 30),
    "DICOM, forged size": lambda: dicom_of(60000, 60000),
    "DICOM, forged size in a zip": lambda: zip_of(("a", dicom_of(60000, 60000))),
    "NIfTI, forged size": lambda: gzip.compress(nifti_of(20000, 20000, 20000)),
    "NIfTI, forged size, not packed": lambda: nifti_of(20000, 20000, 20000),
    "NIfTI, a gigabyte of zeros": lambda: (
        gzip.compress(nifti_of(1024, 1024, 1024)) + gzip.compress(bytes(1 << 26)) * 16
    ),
    "TIFF, forged size": lambda: tiff_of(60000, 60000),
    "TIFF, forged size within the limits": lambda: tiff_of(16000, 16000),
    "PNG of 50000 x 50000": lambda: png_of(50000, 50000, zlib.compress(bytes(1 << 20))),
    "PNG, forged size within the limits": lambda: png_of(16000, 16000, zlib.compress(bytes(1 << 10))),
    "zip in a zip": lambda: zip_of(("a", zip_bomb(64 << 20))),
    "zip that leads out": lambda: zip_of(("../../x", png())),
    "zip bomb": lambda: zip_bomb(320 << 20),
    "zip bomb within the limits": lambda: zip_bomb(128 << 20),
    "zip bomb that understates its size": lambda: understated(zip_bomb(128 << 20)),
    "zip bomb of shared data": lambda: overlapping(16 << 20, 1000),
    "zip with a long table of contents": lambda: overlapping(1 << 20, 65000),
}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    settings = WorkerSettings(decoders=1, upload_bytes=256 << 20, spool=tmp_path_factory.mktemp("spool"))
    models, decoders = Models(), Decoders(settings)
    models.add(denoiser(), served(denoiser(), Engine()))
    app = create_app(settings, models, decoders.read)
    with TestClient(door(app, settings, paths(app)), base_url="http://localhost:3000") as made:
        assert made.post("/v1/restore", files=PNG).status_code == 200
        yield made
    decoders.close()


class Costs:
    """Processor time, and the growth of memory at its peak, of this process and its decoder together."""

    def __enter__(self) -> "Costs":
        here = psutil.Process()
        self.processes = [here, *(child for child in here.children() if decoder.__name__ in child.cmdline())]
        assert len(self.processes) == 2
        self.begin, self.seconds = self._memory(), -self._seconds()
        self.most = self.begin
        self.end = threading.Event()
        self.watch = threading.Thread(target=self._watch)
        self.watch.start()
        return self

    def _memory(self) -> int:
        return sum(process.memory_info().rss for process in self.processes if process.is_running())

    def _seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self.processes)

    def _watch(self) -> None:
        while not self.end.wait(0.002):
            self.most = max(self.most, self._memory())

    def __exit__(self, *problem: object) -> None:
        self.end.set()
        self.watch.join()
        self.seconds += self._seconds()  # the decoder is the same: none of these kills it
        self.growth = self.most - self.begin


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_costs_nothing(client: TestClient, name: str, tmp_path: Path) -> None:
    data = BOMBS[name]()
    begin = time.monotonic()
    with Costs() as costs:
        response = client.post("/v1/restore", files={"file": ("x", data, "image/png")})
    wall = time.monotonic() - begin
    print(
        f"{name}: {len(data)} bytes, {response.status_code} {response.json()['code']}, "
        f"{costs.seconds:.2f} s of work, {wall:.2f} s, {costs.growth >> 20} MB"
    )
    assert 400 <= response.status_code < 500
    assert response.json()["code"] in ("limit-exceeded", "unreadable-image", "unsupported-image")
    assert costs.seconds < SECONDS
    assert costs.growth < MEMORY
    assert client.post("/v1/restore", files=PNG).status_code == 200
