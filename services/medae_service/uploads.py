"""Multipart bodies, parsed while they stream in. What a client calls a file is never looked at.

A few small files stay in memory; what is more goes to a private folder under names of ours and is gone when the
request is, however it ends. A zip, known by its content, is unpacked there. Text parts are refused, not followed:
BentoML would fetch them as a URL.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import IO, Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from medae.errors import LimitExceeded
from medae.io.archive import Bounds, is_zip, unpack
from medae_service.problems import Refusal
from medae_service.settings import WorkerSettings

IN_MEMORY = 1 << 20
"""Bytes of one request that never touch the disk: enough for a tile, and little where many are slow."""
FIELD = "file"
MASK = "mask"

Uploaded = bytes | Path


@dataclass
class UploadedParts:
    """What a request brought, by field."""

    files: list[Uploaded] = field(default_factory=list)
    mask: list[Uploaded] = field(default_factory=list)


@asynccontextmanager
async def uploaded_files(
    request: Request, settings: WorkerSettings, *, takes_mask: bool = False
) -> AsyncIterator[UploadedParts]:
    """The files of a request's fields, in order, for as long as the block runs; `mask` only where it is taken.

    A field that is one zip is the files in it. Raises UnreadableImage, UnsupportedImage or LimitExceeded for a zip, and
    Refusal: 415 not multipart, 400 malformed, 408 too slow, 422 text instead of a file or no file, 507 no space.
    """
    parts = _Parts(settings, (FIELD, MASK) if takes_mask else (FIELD,))
    try:
        await _receive(request, parts, settings.upload_seconds)
        yield UploadedParts(
            await _unpacked(parts.received[FIELD], parts, settings),
            await _unpacked(parts.received.get(MASK, []), parts, settings),
        )
    finally:
        await parts.remove()


async def _unpacked(files: list[Uploaded], parts: "_Parts", settings: WorkerSettings) -> list[Uploaded]:
    """The files in the zip, if that is what came; on a thread, and not a moment longer than the request lives."""
    if len(files) != 1 or not is_zip(_head(files[0])):
        return files
    limits = settings.limits
    bounds = Bounds(
        files=settings.upload_files, bytes=settings.upload_bytes, freely=limits.inflate_freely, depth=limits.depth
    )
    unwanted = Event()
    try:
        work = partial(unpack, files[0], parts.new_folder(), bounds, unwanted.is_set)
        job = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            unpacked = await asyncio.shield(job)
        except asyncio.CancelledError:
            unwanted.set()
            await asyncio.wait([job])
            raise
    except OSError:
        raise _no_space() from None
    if not unpacked:
        raise Refusal(422, "no-file", "the zip holds no file; send one with the files of one series, or with one image")
    return list(unpacked)


def _head(file: Uploaded) -> bytes:
    if isinstance(file, bytes):
        return file[:132]
    with file.open("rb") as stream:
        return stream.read(132)


def _no_space() -> Refusal:
    return Refusal(507, "no-space", "the upload cannot be stored now; try again later")


async def _receive(request: Request, parts: "_Parts", seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await _parse(request, parts)
    except TimeoutError:
        raise Refusal(408, "upload-timeout", f"the body did not come within {seconds:g} s") from None


async def _parse(request: Request, parts: "_Parts") -> None:
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refusal(
            415,
            "not-multipart",
            "the body is not multipart/form-data; send the image as a file in the field `file`, "
            "such as curl -F file=@IMAGE",
            {"Accept-Post": "multipart/form-data"},
        )
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for chunk in request.stream():
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "bad-multipart", "the multipart body is malformed") from None
    except OSError:
        raise _no_space() from None
    parts.finish()


class _Parts:
    """The parser's callbacks: from parts to files."""

    def __init__(self, settings: WorkerSettings, fields: tuple[str, ...]) -> None:
        self.received: dict[str, list[Uploaded]] = {name: [] for name in fields}
        self._settings = settings
        self._folders: list[Path] = []
        self._into: list[Uploaded] = []
        self._file: IO[bytes] = BytesIO()
        self._path: Path | None = None
        self._held = 0
        self._ended = False
        self._header = bytearray()
        self._value = bytearray()
        self._disposition = b""

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def finish(self) -> None:
        """Raises Refusal for a body that stopped in the middle, and for one without a file."""
        if not self._ended:
            raise Refusal(400, "bad-multipart", "the multipart body ends before its closing boundary")
        if not self.received[FIELD]:
            raise Refusal(422, "no-file", "no file was sent; send the image as a file in the field `file`")

    def new_folder(self) -> Path:
        """A private one, gone with the request."""
        self._folders.append(Path(tempfile.mkdtemp(prefix="upload-", dir=self._settings.spool)))  # mode 0700
        return self._folders[-1]

    async def remove(self) -> None:
        """Whatever was stored is gone afterwards."""
        self._file.close()
        if self._folders:  # of thousands of files, perhaps: not in the way of others
            await asyncio.shield(asyncio.to_thread(_remove, self._folders))

    @property
    def _count(self) -> int:
        return sum(map(len, self.received.values()))

    def _part_begin(self) -> None:
        self._disposition = b""
        if self._count >= self._settings.upload_files:
            raise LimitExceeded(f"a request takes at most {self._settings.upload_files} files; send fewer")

    def _header_end(self) -> None:
        if bytes(self._header).strip().lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("latin-1")
        if name not in self.received:
            known = ", ".join(f"`{field}`" for field in self.received)
            raise Refusal(422, "unknown-field", f"the form has a field that is not known; there is {known}")
        if b"filename" not in options:
            raise Refusal(422, "not-a-file", f"`{name}` holds text; send the file itself (texts and URLs are not read)")
        self._into = self.received[name]
        self._file = BytesIO()
        self._path = None

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._path is None and self._held + end - start > IN_MEMORY:
            self._spill()
        if self._path is None:
            self._held += end - start
        self._file.write(data[start:end])

    def _spill(self) -> None:
        held = self._file
        assert isinstance(held, BytesIO)
        self._held -= held.tell()
        folder = self._folders[0] if self._folders else self.new_folder()
        self._path = folder / f"{self._count:06d}"
        self._file = open(self._path, "xb")  # noqa: SIM115  # parts come in pieces; remove() closes it
        self._file.write(held.getbuffer())

    def _part_end(self) -> None:
        if isinstance(self._file, BytesIO):
            self._into.append(self._file.getvalue())
        else:
            assert self._path is not None
            self._into.append(self._path)
        self._file.close()

    def _end(self) -> None:
        self._ended = True


def _remove(folders: list[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
