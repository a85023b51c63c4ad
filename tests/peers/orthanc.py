"""Orthanc with DICOMweb, for tests: in a network name space of its own, reached through a Unix socket.

Debian's Orthanc cannot be told which address to listen on. In a name space that has nothing but a loopback there is
nobody else to hear it, and no port of this machine is taken.

    python -m tests.peers.orthanc FOLDER     (what `running` starts inside the name space)
"""

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from uuid import uuid4

import httpx

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "/usr/share/orthanc/plugins/libOrthancDicomWeb.so"
PORT = 8042
SOCKET = "http.sock"
SECONDS = 60
"""For Orthanc to start."""
_SIOCSIFFLAGS, _UP_AND_RUNNING = 0x8914, 0x41


class Pacs:
    """An archive as DICOMweb sees it (PS3.18)."""

    def __init__(self, http: httpx.Client) -> None:
        self.http = http

    def stow(self, files: list[bytes]) -> httpx.Response:
        boundary = uuid4().hex
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = b"".join(head + data + b"\r\n" for data in files) + f"--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        return self.http.post("/dicom-web/studies", content=body, headers={"Content-Type": kind})

    def qido(self, level: str, **matching: str) -> list[dict[str, dict[str, list[str]]]]:
        answer = self.http.get(f"/dicom-web/{level}", params=matching)
        answer.raise_for_status()
        found: list[dict[str, dict[str, list[str]]]] = answer.json()
        return found

    def wado(self, study: str, series: str, instance: str) -> bytes:
        """The instance as it is stored, whatever its transfer syntax."""
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        path = f"/dicom-web/studies/{study}/series/{series}/instances/{instance}"
        answer = self.http.get(path, headers={"Accept": accept})
        answer.raise_for_status()
        head = f"Content-Type: {answer.headers['content-type']}\r\n\r\n".encode()
        message: Message = BytesParser().parsebytes(head + answer.content)
        (part,) = message.get_payload()  # type: ignore[misc]
        data: bytes = part.get_payload(decode=True)  # type: ignore[union-attr,assignment]
        return data


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Pacs]:
    """Started in `folder`, which holds all that it writes; ended on leaving."""
    command = ["unshare", "--net", "--map-root-user", sys.executable, "-m", "tests.peers.orthanc", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        _wait(folder / SOCKET, process)
        transport = httpx.HTTPTransport(uds=str(folder / SOCKET))
        with httpx.Client(transport=transport, base_url="http://orthanc", timeout=60) as http:
            yield Pacs(http)
    finally:
        process.terminate()
        process.wait(30)


def _wait(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until it answers; with a plain socket, since httpx leaks one that cannot connect."""
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            probe.connect(str(path))
            probe.sendall(b"GET /system HTTP/1.0\r\n\r\n")
            if b" 200 " in probe.recv(64):
                return
        assert process.poll() is None and time.monotonic() < deadline, "Orthanc did not start"
        time.sleep(0.1)


# inside the name space


def _raise_loopback() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _UP_AND_RUNNING))


async def _relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection of the Unix socket, passed on."""

    async def copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        target.close()

    try:
        there = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        writer.close()
        return
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer))


async def _serve(folder: Path) -> None:
    storage = folder / "storage"
    storage.mkdir()
    settings = {
        "StorageDirectory": str(storage),
        "IndexDirectory": str(storage),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "HttpPort": PORT,
        "DicomServerEnabled": False,
        "Plugins": [PLUGIN],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    orthanc = await asyncio.create_subprocess_exec("Orthanc", str(folder / "orthanc.json"))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, orthanc.terminate)
    async with await asyncio.start_unix_server(_relay, folder / SOCKET):
        await orthanc.wait()


if __name__ == "__main__":
    _raise_loopback()
    os.environ["PATH"] += ":/usr/sbin"
    asyncio.run(_serve(Path(sys.argv[1])))
