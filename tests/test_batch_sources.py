"""Archives and URLs as inputs of a batch: the same images as from files, and nothing that they say is believed."""

import io as bytes_io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from medae import io
from medae.batch import remote
from medae.batch.archives import read_member
from medae.batch.files import File, Member, Url, from_bytes, to_bytes
from medae.batch.manifest import list_items
from medae.batch.remote import read_url, require_allowed
from medae.batch.results import Counts
from medae.batch.run import run
from medae.batch.settings import BatchSettings
from medae.batch.sources import fetch
from medae.errors import LimitExceeded, UnreadableImage, UsageError
from medae.io import DEFAULT_LIMITS
from tests.batch_parts import Seen, everything, segmenter, write_pictures, write_series


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, a series and a note."""
    write_pictures(tmp_path / "in")
    write_series(tmp_path / "in" / "scan", [0, 5, 10])
    return tmp_path / "in"


def pack(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as table:
            for path in sorted(folder.rglob("*")):
                table.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w:gz" if archive.suffix in (".gz", ".tgz") else "w") as table:
            table.add(folder, ".")
    return archive


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tgz"])
def test_an_archive_holds_what_its_folder_held(folder: Path, tmp_path: Path, kind: str) -> None:
    packed = list_items([str(pack(folder, tmp_path / f"a.{kind}"))])
    plain = list_items([str(folder)])
    assert [item.id for item in packed.items] == [item.id for item in plain.items] == ["a", "b", "c", "scan"]
    for one, other in zip(packed.items, plain.items, strict=True):
        images = [io.read_image(fetch(item.files, DEFAULT_LIMITS).sources) for item in (one, other)]
        np.testing.assert_array_equal(images[0].pixels, images[1].pixels)
        np.testing.assert_array_equal(images[0].geometry.affine, images[1].geometry.affine)


def test_a_line_of_a_plan_becomes_the_file_that_it_was(tmp_path: Path) -> None:
    files: list[File] = [Path("/a/b c.png"), Path("/no text \udcff"), Member(Path("/x \udcff.zip"), "a/ü.png")]
    for file in [*files, Url("s3://bucket/a b.png")]:
        assert from_bytes(to_bytes(file)) == file
    assert from_bytes(to_bytes(Path("here.png"))) == Path.cwd() / "here.png"


@pytest.mark.parametrize("name", ["../out.png", "/etc/x.png", "a/../../x.png", "C:/x.png", "..\\x.png"])
def test_an_archive_that_leads_out_of_itself_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as table:
        table.writestr(name, b"x")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    for kind in ("zip", "tar"):
        with pytest.raises(UsageError, match="lead out of it"):
            list_items([str(tmp_path / f"a.{kind}")])


def test_links_and_bombs_in_archives_are_not_followed(folder: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        link = tarfile.TarInfo("secret.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        tar.add(folder / "a.png", "a.png")
    assert [item.id for item in list_items([str(tmp_path / "links.tar")]).items] == ["a"]
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as table:
        table.writestr("zeros.png", bytes(10**7))
    (item,) = list_items([str(tmp_path / "bomb.zip")]).items
    tight = DEFAULT_LIMITS.model_copy(update={"inflate_freely": 10**6, "inflate_ratio": 100})
    with pytest.raises(LimitExceeded, match="more than 100"):
        fetch(item.files, tight)
    with pytest.raises(LimitExceeded, match="at most 1000"):
        fetch(item.files, DEFAULT_LIMITS.model_copy(update={"bytes": 1000}))


def test_damaged_archives_are_named(folder: Path, tmp_path: Path) -> None:
    archive = pack(folder, tmp_path / "a.zip")
    data = bytearray(archive.read_bytes())
    data[200:260] = bytes(60)  # within the first picture
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(UnreadableImage, match="damaged"):
        read_member(tmp_path / "b.zip", "a.png", DEFAULT_LIMITS)
    with pytest.raises(UnreadableImage, match="any more"):
        read_member(archive, "gone.png", DEFAULT_LIMITS)
    for name, content in (("c.zip", bytes(data[:-50])), ("c.tar", b"no tar"), ("d.tar", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError):
            list_items([str(tmp_path / name)])
    with tarfile.open(tmp_path / "e.tar", "w:xz") as tar:
        tar.add(folder / "a.png", "a.png")
    with pytest.raises(UsageError, match="another tool than gzip"):
        list_items([str(tmp_path / "e.tar")])
    whole = pack(folder, tmp_path / "f.tar.gz").read_bytes()
    for length in (100, len(whole) // 2):
        (tmp_path / "g.tar.gz").write_bytes(whole[:length])
        with pytest.raises(UsageError, match=r"is it whole|is damaged"):
            list_items([str(tmp_path / "g.tar.gz")])


def test_files_of_a_packed_tar_are_read_in_any_order(folder: Path, tmp_path: Path) -> None:
    items = list_items([str(pack(folder, tmp_path / "a.tar.gz"))]).items
    for item in (*items, *reversed(items)):
        assert fetch(item.files, DEFAULT_LIMITS).fingerprint == fetch(item.files, DEFAULT_LIMITS).fingerprint
    read = [fetch((file,), DEFAULT_LIMITS).sources for item in items for file in item.files]
    back = [fetch((file,), DEFAULT_LIMITS).sources for item in reversed(items) for file in reversed(item.files)]
    assert read == back[::-1]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_takes_no_more_than_is_plausible(tmp_path: Path, mode: Any) -> None:
    """A file, or one of the headers that tarfile reads at once, that declares more than came."""
    for kind, said in ((tarfile.REGTYPE, "unpacks to|is damaged"), (tarfile.XHDTYPE, "impossible length")):
        with tarfile.open(tmp_path / "a.tar", mode, format=tarfile.GNU_FORMAT) as tar:
            forged = tarfile.TarInfo("a.png")
            forged.type, forged.size = kind, 1 << 36
            tar.addfile(forged)
        with pytest.raises(UsageError, match=said):
            list_items([str(tmp_path / "a.tar")])
    with tarfile.open(tmp_path / "zeros.tar.gz", "w:gz") as tar:
        zeros = tarfile.TarInfo("a.png")
        zeros.size = DEFAULT_LIMITS.inflate_freely + 1
        tar.addfile(zeros, bytes_io.BytesIO(bytes(zeros.size)))
    with pytest.raises(UsageError, match="over 100 for each that came"):
        list_items([str(tmp_path / "zeros.tar.gz")])


ALLOWED = [
    ("s3://bucket/study/a.png", "s3://bucket/study/"),
    ("s3://bucket/study/a.png", "s3://bucket/study"),
    ("s3://bucket/a.png", "s3://bucket"),
    ("https://Example.org/a.png", "https://example.org/"),
]
REFUSED = [
    ("s3://bucket/study2/a.png", "s3://bucket/study"),
    ("s3://bucket2/a.png", "s3://bucket"),
    ("s3://bucket/study/../other/a.png", "s3://bucket/study/"),
    ("s3://bucket/study/%2e%2e/other/a.png", "s3://bucket/study/"),
    ("https://example.org@evil.org/a.png", "https://example.org"),
    ("https://example.org.evil.org/a.png", "https://example.org"),
    ("http://example.org/a.png", "https://example.org/"),
    ("https://example.org:8443/a.png", "https://example.org/"),
    ("file:///etc/passwd", "file:///"),
    ("zip://x::https://example.org/a.zip", "zip://"),
    ("https://example.org/a::file:///etc/passwd", "https://example.org/"),
]


@pytest.mark.parametrize(("address", "beginning"), ALLOWED)
def test_what_begins_as_allowed_is_allowed(address: str, beginning: str) -> None:
    require_allowed(address, [beginning])
    with pytest.raises(UsageError, match="not allowed"):
        require_allowed(address, [])


@pytest.mark.parametrize(("address", "beginning"), REFUSED)
def test_what_only_looks_as_allowed_is_not(address: str, beginning: str) -> None:
    with pytest.raises(UsageError, match="not allowed"):
        require_allowed(address, [beginning])


def test_urls_are_listed_and_read(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in "abc":
        memory.pipe(f"/study/{name}.png", (folder / f"{name}.png").read_bytes())
    memory.pipe("/study/notes.txt", b"x")
    allow = ["memory://study/"]
    for address, ids in (("memory://study/", "abc"), ("memory://study/[ac].png", "ac"), ("memory://study/b.png", "b")):
        items = list_items([address], allow=allow).items
        assert [item.id for item in items] == list(ids)
        for item in items:
            image = io.read_image(fetch(item.files, DEFAULT_LIMITS, allow).sources)
            np.testing.assert_array_equal(image.pixels, io.read_image(folder / f"{item.id}.png").pixels)
    with pytest.raises(UsageError, match="not allowed"):
        list_items(["memory://study/"])
    with pytest.raises(UsageError, match="names no image"):
        list_items(["memory://study/*.dcm"], allow=allow)
    with pytest.raises(UnreadableImage, match="not allowed"):
        read_url("memory://study/a.png", DEFAULT_LIMITS, [])
    with pytest.raises(UnreadableImage, match="FileNotFoundError"):
        read_url("memory://study/gone.png", DEFAULT_LIMITS, allow)
    with pytest.raises(LimitExceeded):
        read_url("memory://study/a.png", DEFAULT_LIMITS.model_copy(update={"bytes": 10}), allow)


class Buckets(MemoryFileSystem):
    """Objects in buckets, by the names that s3fs gives them; in this process."""

    protocol = ("s3",)
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"s3://{name.lstrip('/')}"


def test_a_bucket_is_answered_as_the_folder_that_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as a folder, a pattern, and rows of a list; one that changes is noticed where digests are asked."""
    folder = write_pictures(tmp_path / "in")
    monkeypatch.setitem(_registry, "s3", Buckets)
    remote._file_system.cache_clear()
    store = fsspec.filesystem("s3")
    names = [path.name for path in sorted(folder.glob("*.png"))]
    for name in names:
        store.pipe(f"s3://bucket/study/{name}", (folder / name).read_bytes())
    store.pipe("s3://bucket/other/x.png", b"no picture")
    segmenter().save(tmp_path / "model")
    (tmp_path / "cases.csv").write_text("path\n" + "".join(f"s3://bucket/study/{name}\n" for name in names))

    def answer(source: str, out: str, **given: Any) -> Counts:
        settings = {"packages": [str(tmp_path / "model")], "inputs": [source], "out": tmp_path / out, "workers": 0}
        return run(BatchSettings.model_validate(settings | {"device": "cpu", "report": False} | given), Seen())

    answer(str(folder), "whole")
    allow = ["s3://bucket/study/"]
    for out, source in {"a": allow[0], "b": "s3://bucket/study/*.png", "c": str(tmp_path / "cases.csv")}.items():
        answer(source, out, allow=allow)
        assert everything(tmp_path / out) == everything(tmp_path / "whole")
    with pytest.raises(UsageError, match="not allowed"):
        answer("s3://bucket/other/", "d", allow=allow)
    assert answer(str(tmp_path / "cases.csv"), "e").failed == len(names), "rows that are not allowed fail alone"
    store.pipe(f"s3://bucket/study/{names[0]}", (folder / names[1]).read_bytes())
    with pytest.raises(UsageError, match="1 inputs that were answered have changed"):
        answer(allow[0], "a", allow=allow, verify=True)
    remote._file_system.cache_clear()


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server with a picture, and a redirection to it from elsewhere; what it was asked."""
    asked: list[str] = []
    stream = bytes_io.BytesIO()
    from PIL import Image as Pillow

    Pillow.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(stream, "png")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            moved = self.path.startswith("/allowed/moved")
            self.send_response(302 if moved else 200)
            if moved:
                self.send_header("Location", "/elsewhere/a.png")
            body = b"" if moved else stream.getvalue()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()
    httpd.server_close()


def test_a_web_server_is_read_and_cannot_send_us_elsewhere(server: tuple[str, list[str]]) -> None:
    address, asked = server
    allow = [f"{address}/allowed/"]
    image = io.read_image(read_url(f"{address}/allowed/a.png", DEFAULT_LIMITS, allow))
    assert image.geometry.shape == (1, 16, 16)
    with pytest.raises(UnreadableImage):
        io.read_image(read_url(f"{address}/allowed/moved.png", DEFAULT_LIMITS, allow))
    with pytest.raises(UnreadableImage, match="not allowed"):
        read_url(f"{address}/elsewhere/a.png", DEFAULT_LIMITS, allow)
    assert asked and not [path for path in asked if path.startswith("/elsewhere")]
    with pytest.raises(UsageError, match="do not list folders"):
        list_items([f"{address}/allowed/"], allow=allow)
