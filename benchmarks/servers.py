"""Real servers for benchmarks: `medae serve` and the plain one, each in processes of its own, on loopback."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

PACKAGE_VARIABLE = "MEDAE_BENCHMARK_PACKAGE"
"""What benchmarks.plain serves."""
START_SECONDS = 120.0
STOP_SECONDS = 60.0
REST = 0.05
"""Seconds of processor time in one second that are none."""


@dataclass(frozen=True)
class Server:
    """One that is ready."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def family(self) -> list[psutil.Process]:
        """Its processes, the supervisor first."""
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def memory(self) -> int:
        """Bytes of all its processes, shared pages counted once (proportional set size)."""
        total = 0
        for process in self.family():
            try:
                total += process.memory_full_info().pss
            except psutil.NoSuchProcess:
                continue  # it ended meanwhile
        return total

    def cpu(self) -> float:
        """Seconds of processor time of all its processes by now."""
        return sum(sum(process.cpu_times()[:2]) for process in self.family())


@contextmanager
def medae_server(packages: Sequence[Path], *, workers: int, settings: str = "") -> Iterator[Server]:
    """`medae serve`; `settings` is the text of its service.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "service.yaml")
        config.write_text(settings)
        port = _free_port()
        options = ["--port", str(port), "--workers", str(workers), *(["--config", str(config)] if settings else [])]
        command = [sys.executable, "-m", "medae", "serve", *map(str, packages), *options]
        with _running(command, port, "/readyz", Path(folder), {"TMPDIR": folder}) as server:
            yield server


@contextmanager
def plain_server(package: Path, *, workers: int) -> Iterator[Server]:
    """benchmarks.plain under uvicorn."""
    with tempfile.TemporaryDirectory() as folder:
        port = _free_port()
        command = [sys.executable, "-m", "uvicorn", "benchmarks.plain:app", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", str(workers), "--log-level", "warning"]
        with _running(command, port, "/livez", Path(folder), {PACKAGE_VARIABLE: str(package)}) as server:
            yield server


@contextmanager
def _running(
    command: Sequence[str], port: int, ready: str, folder: Path, variables: Mapping[str, str]
) -> Iterator[Server]:
    log = folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until(server, ready)
        _settle(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(server: Server, path: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server ended:\n{server.log.read_text()}")
        try:
            with urllib.request.urlopen(server.url + path, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"the server was not ready in {START_SECONDS:g} s:\n{server.log.read_text()}")


def _settle(server: Server) -> None:
    """Until all processes rest: one worker is ready while another still loads its models."""
    before = -1.0
    while (spent := server.cpu()) > before + REST:
        before = spent
        time.sleep(1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
