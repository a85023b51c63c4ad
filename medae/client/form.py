"""What is sent: an image, a file or the files of a series, as a multipart form that can be streamed again and again."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Literal, NamedTuple
from uuid import uuid4

from medae.errors import SeriesError, UnreadableImage
from medae.image import Image
from medae.io import encode_image

File = str | PathLike[str] | bytes
Source = File | Image | Sequence[File]
"""A file by its path or content, the folder or the files of one DICOM series, or an Image."""

Task = Literal["segment", "restore", "denoise", "score"]
TASKS: tuple[Task, ...] = ("segment", "restore", "denoise", "score")

CHUNK = 1 << 20
"""A body of one piece would take httpcore time that grows with its square."""


class Part(NamedTuple):
    """One file of a form."""

    field: str
    file: Path | bytes
    size: int

    def pieces(self) -> Iterator[bytes]:
        """Its content. Raises UnreadableImage, also where it is not as long as it was."""
        sent = 0
        for piece in _pieces(self.file):
            sent += len(piece)
            if sent > self.size:
                break
            yield piece
        if sent != self.size:
            raise UnreadableImage("the file changed while it was sent; ask again when it is complete")


def parts_of(source: Source, field: str = "file") -> list[Part]:
    """The files of one image. Raises UnreadableImage for a path that cannot be opened, SeriesError for no file."""
    files = _files_of(source)
    if not files:
        raise SeriesError("the folder or list has no file in it; an image is one file or the files of one series")
    return [Part(field, file, _size(file)) for file in files]


def _files_of(source: Source) -> list[Path | bytes]:
    if isinstance(source, Image):
        return [encode_image(source)]
    if isinstance(source, bytes | bytearray | memoryview):
        return [bytes(source)]
    if isinstance(source, str | PathLike):
        path = Path(fspath(source))
        return list(_walk(path)) if path.is_dir() else [path]
    return [file for each in source for file in _files_of(each)]


def _walk(folder: Path) -> Iterator[Path]:
    """As medae.read_image takes a folder: all files in it and below, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts):
            yield path


def _size(file: Path | bytes) -> int:
    if isinstance(file, bytes):
        return len(file)
    try:
        with file.open("rb"):  # stat alone says nothing about permissions
            return file.stat().st_size
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> UnreadableImage:
    return UnreadableImage(f"the file cannot be opened ({type(error).__name__}); check that it exists and may be read")


@dataclass(frozen=True)
class Form:
    """multipart/form-data (RFC 7578); its pieces are the body."""

    parts: Sequence[Part]
    boundary: str = field(default_factory=lambda: uuid4().hex)

    @property
    def headers(self) -> Mapping[str, str]:
        """With the length, so that a service can refuse what is too large before any of it is sent."""
        length = sum(len(self._head(part.field)) + part.size + 2 for part in self.parts) + len(self._end)
        return {
            "Content-Type": f"multipart/form-data; boundary={self.boundary}",
            "Content-Length": str(length),
        }

    def pieces(self) -> Iterator[bytes]:
        """The body, from the beginning at each call. Raises UnreadableImage."""
        for part in self.parts:
            yield self._head(part.field)
            yield from part.pieces()
            yield b"\r\n"
        yield self._end

    async def pieces_async(self) -> AsyncIterator[bytes]:
        """The same for asyncio: files are read on another thread."""
        pieces = self.pieces()
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    def _head(self, name: str) -> bytes:
        # a part without a file name is no file; the real name may be that of a patient
        return (
            f'--{self.boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="image"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()

    @property
    def _end(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()


def _pieces(file: Path | bytes) -> Iterator[bytes]:
    if isinstance(file, bytes):
        yield from (file[start : start + CHUNK] for start in range(0, len(file), CHUNK))
        return
    try:
        with file.open("rb") as stream:
            while piece := stream.read(CHUNK):
                yield piece
    except OSError as error:
        raise _unreadable(error) from None
