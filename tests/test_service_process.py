"""One real `medae serve`: BentoML, its workers, its own pages, its logs, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image as Picture

from medae.errors import PackageError, UnknownModel, UsageError
from medae.settings import Settings
from medae_service.launch import _runtime_folder, resolve, serve
from medae_service.security import is_loopback
from medae_service.settings import ServiceSettings
from medae_service.tokens import new, revoke
from tests.service_parts import CANARY, denoiser, dicom_slice, png, segmenter

TOKEN = "a-token-for-tests-0123456789"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Running:
    """A service, its address, its log and its private temporary folder."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    temporary: Path

    def children(self) -> list[int]:
        names = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(name) for name in names]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(folder: Path, *arguments: str) -> Running:
    temporary, log, port = folder / "t", folder / "log.txt", free_port()
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "HOME": str(folder)}
    command = [sys.executable, "-m", "medae", "serve", *arguments, "--port", str(port)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
        )
    running = Running(process, f"http://127.0.0.1:{port}", log, temporary)
    wait_for(lambda: alive(running), 60)
    return running


def alive(running: Running) -> bool:
    assert running.process.poll() is None, running.log.read_text()
    try:
        return httpx.get(f"{running.url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def stop(running: Running) -> None:
    """For the end of a test that failed: only what it started."""
    if running.process.poll() is None:
        running.process.kill()
    running.process.wait()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("s")
    denoiser().save(folder / "denoiser")
    segmenter().save(folder / "segmenter")
    token_file = folder / "token"
    token_file.write_text(f"# for tests\n{TOKEN}\n")
    token_file.chmod(0o600)
    running = start(folder, "denoiser", "segmenter", "--workers", "2", "--token-file", "token")
    yield running
    stop(running)


def test_it_answers_as_the_library_does(service: Running) -> None:
    from medae.answers import answer_files
    from medae.io import read_image
    from medae.predictor import Predictor

    package, image = denoiser(), read_image(png())
    expected = answer_files(Predictor(package, device="cpu")(image), package, stem="image", original=image)
    for _ in range(4):
        response = httpx.post(f"{service.url}/v1/denoise", files={"file": png()}, headers=HEADERS)
        assert response.status_code == 200, response.text
        assert response.content == expected[0].data


def test_bentomls_pages_answer_and_need_the_token(service: Running) -> None:
    for path in ("/livez", "/readyz"):
        assert httpx.get(service.url + path).status_code == 200
    for path in ("/metrics", "/docs.json", "/schema.json", "/v1/models", "/"):
        assert httpx.get(service.url + path).status_code == 401
        response = httpx.get(service.url + path, headers=HEADERS)
        assert response.status_code == 200
        assert response.headers["x-content-type-options"] == "nosniff"
    assert "bentoml_service_request_total" in httpx.get(f"{service.url}/metrics", headers=HEADERS).text
    assert httpx.get(f"{service.url}/readyz", headers={"Host": "evil.example"}).status_code == 200
    assert httpx.get(f"{service.url}/", headers=HEADERS | {"Host": "evil.example"}).status_code == 400


def test_a_revoked_token_is_refused_by_every_worker_at_once(service: Running) -> None:
    tokens = service.temporary.parent / "token"

    def statuses(token: str) -> set[int]:
        headers = {"Authorization": f"Bearer {token}"}  # a new connection each: whichever worker takes it
        return {httpx.get(f"{service.url}/v1/limits", headers=headers).status_code for _ in range(8)}

    token = new(tokens, "scanner", ["models"])
    assert statuses(token) == {200}
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{service.url}/metrics", headers=headers).status_code == 403
    assert httpx.post(f"{service.url}/v1/denoise", files={"file": png()}, headers=headers).status_code == 403
    revoke(tokens, "scanner")
    assert statuses(token) == {401}
    assert statuses(TOKEN) == {200}


def test_a_large_body_is_refused_before_it_is_sent(service: Running) -> None:
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=10) as connection:
        head = f"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        connection.sendall(
            f"{head}Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {1 << 40}\r\n\r\n".encode()
        )
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_nothing_about_a_patient_is_left(service: Running) -> None:
    whole = dicom_slice(CANARY)
    said = ""
    for body in (whole, whole[:-900], whole[:500], CANARY.encode(), png()):
        files = {"file": (f"{CANARY}.dcm", body, "application/dicom")}
        for path in ("/v1/denoise", "/v1/segment", f"/v1/segment?{CANARY}=1", f"/v1/{CANARY}"):
            response = httpx.post(service.url + path, files=files, headers=HEADERS | {"X-Patient": CANARY})
            said += str(response.headers) + ("" if response.status_code == 200 else response.text)
    said += httpx.get(f"{service.url}/metrics", headers=HEADERS).text
    names = [str(path.relative_to(service.temporary)) for path in service.temporary.rglob("*")]
    assert CANARY not in said + " ".join(names) + service.log.read_text()
    requests = [json.loads(line) for line in service.log.read_text().splitlines() if '"message": "request"' in line]
    assert {entry["path"] for entry in requests} >= {"/v1/denoise", "/v1/segment", "-"}


def test_what_it_writes_is_private(service: Running) -> None:
    (folder,) = service.temporary.glob("medae-serve-*")
    assert folder.stat().st_mode & 0o077 == 0
    settings = (folder / "service.json").read_text()
    assert (folder / "service.json").stat().st_mode & 0o077 == 0
    assert TOKEN not in settings
    assert list((folder / "spool").iterdir()) == []
    assert not (folder.parent.parent / "bentoml").exists(), "BentoML wrote into the home folder"


def test_no_port_but_ours_is_open(service: Running) -> None:
    """BentoML's supervisor would take commands from every account of the machine on a TCP port."""
    inodes = set()
    for pid in [service.process.pid, *service.children()]:
        for name in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(name)
            except FileNotFoundError:  # closed by now
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    listening = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            listening.add(int(fields[1].partition(":")[2], 16))
    assert listening == {int(service.url.rpartition(":")[2])}


def test_a_killed_worker_is_replaced(service: Running) -> None:
    killed = service.children()[0]
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: gone(killed), 5)
    wait_for(lambda: len([pid for pid in service.children() if not gone(pid)]) == 2, 15)
    wait_for(lambda: alive(service), 15)


def test_sigterm_ends_all_and_leaves_nothing(service: Running) -> None:
    children = service.children()
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    assert all(gone(pid) for pid in children)
    assert list(service.temporary.iterdir()) == []
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{service.url}/livez")


def test_a_killed_parent_leaves_no_orphan(tmp_path: Path) -> None:
    denoiser().save(tmp_path / "denoiser")
    running = start(tmp_path, "denoiser", "--workers", "1")
    children = running.children()
    try:
        running.process.kill()
        running.process.wait()
        wait_for(lambda: all(gone(pid) for pid in children), 15)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(running.url.rpartition(":")[2])))
    finally:
        for pid in children:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


# ends while there is work


def family(pid: int) -> list[int]:
    """All processes below one."""
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except FileNotFoundError:
        return []
    children = [int(name) for text in lists for name in text.split()]
    return [*children, *(below for child in children for below in family(child))]


def blank() -> bytes:
    """A picture that is sent in no time and computed in a while."""
    target = BytesIO()
    Picture.new("L", (1600, 1600)).save(target, "PNG")
    return target.getvalue()


def ask(running: Running) -> int:
    return httpx.post(f"{running.url}/v1/denoise", files={"file": blank()}, timeout=90).status_code


def uploaded(running: Running) -> float:
    """Bytes that the workers have received."""
    text = httpx.get(f"{running.url}/metrics", timeout=30).text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("medae_upload_bytes_total "))


@pytest.mark.slow
def test_after_a_kill_of_the_only_worker_the_next_request_is_answered(tmp_path: Path) -> None:
    denoiser().save(tmp_path / "denoiser")
    running = start(tmp_path, "denoiser", "--workers", "1")
    try:
        assert ask(running) == 200
        # BentoML's own helper is a child of the supervisor too; the worker is the one that has the model
        (worker,) = (pid for pid in running.children() if b"worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
        below = family(worker)
        os.kill(worker, signal.SIGKILL)
        begin = time.monotonic()
        assert ask(running) == 200  # it waits in the listening socket until there is a worker
        assert time.monotonic() - begin < 15
        wait_for(lambda: all(gone(pid) for pid in below), 10)
        assert "medae_queue_depth 0.0" in httpx.get(f"{running.url}/metrics").text
    finally:
        stop(running)


@pytest.mark.slow
def test_sigterm_loses_no_request_in_flight(tmp_path: Path) -> None:
    denoiser().save(tmp_path / "denoiser")
    (tmp_path / "service.yaml").write_text("waiting: 64\n")
    running = start(tmp_path, "denoiser", "--workers", "2", "--config", "service.yaml")
    below = family(running.process.pid)
    try:
        with ThreadPoolExecutor(50) as pool:
            asked = [pool.submit(ask, running) for _ in range(50)]
            wait_for(lambda: uploaded(running) >= 50 * len(blank()), 30)  # in flight: no longer in the backlog
            answered = running.log.read_text().count('"path": "/v1/denoise"')
            running.process.send_signal(signal.SIGTERM)
            assert [request.result() for request in asked] == [200] * 50
            assert answered < 40, "they were done before the signal came"
        assert running.process.wait(30) == 0
        assert all(gone(pid) for pid in below)
    finally:
        stop(running)


# calls that are refused before anything starts


def resolved(folder: Path, **changes: Any) -> Any:
    denoiser().save(folder / "denoiser")
    return resolve(ServiceSettings(**({"packages": (str(folder / "denoiser"),), "port": 0} | changes)))


def test_packages_are_checked_first(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel):
        serve([str(tmp_path / "none")])
    denoiser().save(tmp_path / "a")
    denoiser().save(tmp_path / "b")
    with pytest.raises(UsageError, match="two packages have the name denoiser"):
        serve([str(tmp_path / "a"), str(tmp_path / "b")])
    weights = tmp_path / "a" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(PackageError):
        serve([str(tmp_path / "a")])


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_beyond_loopback_a_token_is_needed(tmp_path: Path, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medae_service.launch._free_port", lambda host, port: 3000)
    with pytest.raises(UsageError, match="--token-file"):
        resolved(tmp_path, host=host)
    assert resolved(tmp_path, host=host, insecure=True).token_file is None
    (tmp_path / "token").write_text(TOKEN)
    assert resolved(tmp_path, host=host, token_file=tmp_path / "token").token_file == tmp_path / "token"


@pytest.mark.parametrize("host", ["example.com", "", "127.0.0.1:80"])
def test_a_host_is_an_address(tmp_path: Path, host: str) -> None:
    with pytest.raises(UsageError, match="IP address"):
        resolved(tmp_path, host=host, insecure=True)


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.0.2.7", "localhost.example", "")))


def test_token_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    with pytest.raises(UsageError, match="cannot be read"):
        resolved(tmp_path, token_file=path)
    path.write_text("# nothing\n\n")
    with pytest.raises(UsageError, match="no token in it"):
        resolved(tmp_path, token_file=path)
    path.write_text(f"{TOKEN}\nshort\n")
    path.chmod(0o644)
    assert TOKEN not in resolved(tmp_path, token_file=path).model_dump_json()
    assert "others may read" in caplog.text and "can be guessed" in caplog.text
    assert TOKEN not in caplog.text


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="choose another"):
            resolved(tmp_path, port=taken.getsockname()[1])


def test_settings_come_from_the_file_and_the_call_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser().save(tmp_path / "denoiser")
    path = tmp_path / "service.yaml"
    path.write_text(f"packages: [{tmp_path / 'denoiser'}]\nport: 0\nworkers: 3\nwaiting: 2\nlimits: {{pixels: 99}}\n")
    seen: list[Settings] = []
    monkeypatch.setattr("medae_service.launch._run", lambda settings, folder: seen.append(settings))
    assert serve(config=path, workers=1) == 0
    (settings,) = seen
    told = settings.model_dump()
    assert (told["workers"], told["waiting"], told["limits"]["pixels"]) == (1, 2, 99)


def test_what_a_killed_service_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / "medae-serve-left"
    left.mkdir()
    (left / "lock").touch()
    (left / "upload").touch()
    with _runtime_folder() as first, _runtime_folder() as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second]), "the running ones are left alone"
        assert first.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []


def test_bentoml_is_not_imported_before_it_runs() -> None:
    code = "import sys, medae_service.launch; sys.exit('bentoml' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
