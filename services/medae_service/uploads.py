"""Multipart bodies, parsed while they stream in. What a client calls a file is never looked at.

A few small files stay in memory; what is more goes to a private folder under names of ours and is gone when the
request is. Text parts are refused, not followed: BentoML would fetch them as a URL.
"""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from medae.errors import LimitExceeded
from medae_service.problems import Refusal
from medae_service.settings import WorkerSettings

IN_MEMORY = 4 << 20
"""Bytes of one request that never touch the disk."""
FIELD = "file"

Uploaded = bytes | Path


@asynccontextmanager
async def uploaded_files(request: Request, settings: WorkerSettings) -> AsyncIterator[list[Uploaded]]:
    """The files of a request's field `file`, in order, for as long as the block runs.

    Raises Refusal: 415 not multipart, 400 malformed, 408 too slow, 422 text instead of a file or no file, 507 no space.
    """
    parts = _Parts(settings)
    try:
        await _receive(request, parts, settings.upload_seconds)
        yield parts.files
    finally:
        parts.remove()


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
        raise Refusal(507, "no-space", "the upload cannot be stored now; try again later") from None
    parts.finish()


class _Parts:
    """The parser's callbacks: from parts to files."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.files: list[Uploaded] = []
        self._settings = settings
        self._folder: Path | None = None
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
        if not self.files:
            raise Refusal(422, "no-file", "no file was sent; send the image as a file in the field `file`")

    def remove(self) -> None:
        """Whatever was stored is gone afterwards."""
        self._file.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _part_begin(self) -> None:
        self._disposition = b""
        if len(self.files) >= self._settings.upload_files:
            raise LimitExceeded(f"a request takes at most {self._settings.upload_files} files; send fewer")

    def _header_end(self) -> None:
        if bytes(self._header).strip().lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if options.get(b"name") != FIELD.encode():
            raise Refusal(422, "unknown-field", f"the form has a field that is not known; the only one is `{FIELD}`")
        if b"filename" not in options:
            raise Refusal(
                422, "not-a-file", f"`{FIELD}` holds text; send the file itself (texts and URLs are not read)"
            )
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
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="upload-", dir=self._settings.spool))  # mode 0700
        self._path = self._folder / f"{len(self.files):06d}"
        self._file = open(self._path, "xb")  # noqa: SIM115  # parts come in pieces; remove() closes it
        self._file.write(held.getbuffer())

    def _part_end(self) -> None:
        if isinstance(self._file, BytesIO):
            self.files.append(self._file.getvalue())
        else:
            assert self._path is not None
            self.files.append(self._path)
        self._file.close()

    def _end(self) -> None:
        self._ended = True
