"""A real browser: what a page of another origin can do to the service, and what its own page looks like.

Without a token, as on a workstation: then the browser is the only one who could be tricked.
"""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from tests.service_parts import segmenter
from tests.test_service_process import Running, start, stop

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

QUIET = [
    f"--{switch}"
    for switch in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-dev-shm-usage",
        "disable-background-networking", "disable-component-update", "disable-sync",
    )
]  # fmt: skip

ATTEMPTS = """<!doctype html><title>elsewhere</title><iframe name="sink"></iframe>
<script>
const service = "%SERVICE%";
const picture = Uint8Array.from(atob("%PICTURE%"), c => c.charCodeAt(0));
const form = () => { const f = new FormData(); f.append("file", new Blob([picture]), "x.png"); return f; };
async function outcome(what) {
  try {
    const response = await what();
    if (response.type === "opaque") return "opaque";
    return "read " + response.status + " " + (await response.text()).slice(0, 40);
  } catch (error) { return "blocked"; }
}
const tag = (kind, url) => new Promise(resolve => {
  const element = document.createElement(kind);
  element.onload = () => resolve("loaded");
  element.onerror = () => resolve("blocked");
  element[kind === "link" ? "href" : "src"] = url;
  if (kind === "link") element.rel = "stylesheet";
  document.body.append(element);
});
const framed = () => new Promise(resolve => {
  const element = document.createElement("iframe");
  element.onload = () => {
    try { resolve(element.contentDocument ? "read " + element.contentDocument.title : "blocked"); }
    catch (error) { resolve("blocked"); }
  };
  element.src = service + "/";
  document.body.append(element);
});
const post = extra => ({method: "POST", body: form(), ...extra});
const posted = () => new Promise(resolve => {
  const form = document.createElement("form");
  form.method = "POST"; form.enctype = "multipart/form-data"; form.action = service + "/v1/segment";
  form.target = "sink";
  const input = document.createElement("input");
  input.type = "file"; input.name = "file";
  const files = new DataTransfer(); files.items.add(new File([picture], "x.png"));
  input.files = files.files;
  form.append(input); document.body.append(form); form.submit();
  setTimeout(() => resolve("sent"), 1000);
});
(async () => {
  const found = {
    "get models": await outcome(() => fetch(service + "/v1/models")),
    "get page": await outcome(() => fetch(service + "/")),
    "get metrics": await outcome(() => fetch(service + "/metrics")),
    "get no-cors": await outcome(() => fetch(service + "/v1/models", {mode: "no-cors"})),
    "post": await outcome(() => fetch(service + "/v1/segment", post({}))),
    "post no-cors": await outcome(() => fetch(service + "/v1/segment", post({mode: "no-cors"}))),
    "post token": await outcome(() => fetch(service + "/v1/segment", post({headers: {Authorization: "Bearer x"}}))),
    "beacon": navigator.sendBeacon(service + "/v1/segment", form()) ? "sent" : "blocked",
    "socket": await new Promise(resolve => {
      const socket = new WebSocket(service.replace("http", "ws") + "/v1/segment");
      socket.onopen = () => resolve("open");
      socket.onerror = () => resolve("blocked");
    }),
    "image": await tag("img", service + "/v1/models"),
    "script": await tag("script", service + "/v1/models"),
    "style": await tag("link", service + "/v1/models"),
    "frame": await framed(),
    "form": await posted(),
  };
  await fetch("/result", {method: "POST", body: JSON.stringify(found)});
  document.title = "done";
})();
</script>"""


class _Elsewhere(BaseHTTPRequestHandler):
    """The other origin: one page, and where it tells what it could do."""

    page: ClassVar[bytes] = b""
    told: ClassVar[list[Any]] = []
    come: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self._answer(self.page)

    def do_POST(self) -> None:
        self.told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self._answer(b"")
        self.come.set()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("c")
    segmenter().save(folder / "segmenter")
    running = start(folder, "segmenter", "--workers", "1")
    yield running
    stop(running)


def browse(profile: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", *arguments]
    environment = {"HOME": str(profile), "PATH": "/usr/bin:/bin"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


def tried(service: Running, profile: Path, page: str) -> dict[str, str]:
    """What a page of another origin tells about its attempts."""
    _Elsewhere.page = page.encode()
    _Elsewhere.told.clear()
    _Elsewhere.come.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere)
    thread = threading.Thread(target=partial(server.serve_forever, 0.1), daemon=True)
    thread.start()
    browser = browse(profile, "--remote-debugging-port=0", f"http://127.0.0.1:{server.server_port}/")
    try:
        assert _Elsewhere.come.wait(120), "the page has told nothing"
        return dict(_Elsewhere.told[0])
    finally:
        browser.terminate()
        browser.wait(20)
        server.shutdown()
        server.server_close()


def page_for(service: Running) -> str:
    from base64 import b64encode

    from tests.service_parts import png

    picture = b64encode(png()).decode()
    return ATTEMPTS.replace("%SERVICE%", service.url).replace("%PICTURE%", picture)


def statuses(service: Running) -> list[tuple[str, str, int]]:
    """(method, path, status) of all requests in the log."""
    lines = [json.loads(line) for line in service.log.read_text().splitlines() if line.startswith("{")]
    return [(one["method"], one["path"], one["status"]) for one in lines if one.get("message") == "request"]


def test_a_page_of_another_origin_can_neither_read_nor_post(service: Running, tmp_path: Path) -> None:
    from tests.service_parts import png

    before = len(statuses(service))
    found = tried(service, tmp_path, page_for(service))
    read = {what: outcome for what, outcome in found.items() if outcome.startswith("read") or outcome == "open"}
    assert not read, found
    # what a browser sends without asking is refused before it is read; "opaque" and "sent" tell the page nothing
    came = statuses(service)[before:]
    posts = [status for method, path, status in came if method == "POST" and path == "/v1/segment"]
    assert len(posts) >= 3, came
    assert set(posts) == {403}, came
    assert not any(method == "POST" and status == 200 for method, _, status in came)
    # and the service would have answered this picture
    assert httpx.post(f"{service.url}/v1/segment", files={"file": png()}).status_code == 200


def test_such_a_page_reads_from_a_service_that_lets_it(service: Running, tmp_path: Path) -> None:
    """The attempts are real: from the service's own origin they succeed (as far as the browser's own rules go)."""
    page = (
        "<script>fetch('%/v1/models').then(r => r.text()).then(t => "
        "fetch('/result', {method: 'POST', body: JSON.stringify({read: t})}))</script>"
    )
    _Elsewhere.page = b'{"models": []}'
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Open)
    threading.Thread(target=partial(server.serve_forever, 0.1), daemon=True).start()
    try:
        found = tried(service, tmp_path, page.replace("%", f"http://127.0.0.1:{server.server_port}"))
        assert found["read"] == '{"models": []}'
    finally:
        server.shutdown()
        server.server_close()


class _Open(BaseHTTPRequestHandler):
    """A service without our care: CORS for everyone."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Access-Control-Allow-Origin", "*")
        self.send_header("Content-Length", "14")
        self.end_headers()
        self.wfile.write(b'{"models": []}')

    def log_message(self, *arguments: Any) -> None:
        pass


def test_its_own_page_shows_without_a_single_foreign_request(service: Running, tmp_path: Path) -> None:
    """Everything on the page comes from the service, and it has something to show."""
    picture = tmp_path / "page.png"
    browser = browse(tmp_path / "p", f"--screenshot={picture}", "--window-size=1000,1400", service.url + "/")
    assert browser.wait(120) == 0
    from PIL import Image as Picture

    shown = Picture.open(picture).convert("L")
    low, high = shown.getextrema()
    assert high - low > 100, "the page is blank"
