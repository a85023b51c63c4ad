"""Decodes compressed DICOM pixels in a child process, so that damaged data cannot take this process down.

The decoders are C and C++ (gdcm, openjpeg, CharLS, libjpeg); fed with damaged streams some of them crash or never end.
The child is started when first needed, serves one file after the other, and ends when its standard input does, which is
when its parent has gone, in whatever way. What the decoders print goes nowhere.

Protocol: to the child 8 bytes of length, "P" or "B", the frames wanted (their count and their numbers, 4 bytes each), a
path or a file's bytes; back for each frame 8 bytes of length, "A" and an array in NumPy's format, or, as the last one,
"E" and the name of an exception.
"""

import atexit
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.uid import UID

from medae.errors import UnreadableImage
from medae.io.dicom_codecs import add_codecs
from medae.io.dicom_file import opened, read_dataset

SECONDS = 60.0
"""For one picture; what takes longer never ends."""

_LENGTH, _NUMBER = struct.Struct(">Q"), struct.Struct(">I")
_here = False


def decode_here() -> None:
    """Decode in this process from now on: for one that is a child itself, and may crash."""
    global _here
    _here = True


class Decoder:
    """A child process that decodes; thread-safe, and each forked process gets its own."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._of_parents: list[subprocess.Popen[bytes] | None] = []
        os.register_at_fork(after_in_child=self._leave_to_parent)
        atexit.register(self.close)

    def _leave_to_parent(self) -> None:
        """After a fork the child is the parent's, and the lock may be held by a thread that was not forked."""
        self._of_parents.append(self._child)  # kept, since letting go of it would be reported as a leak
        self._child, self._lock = None, threading.Lock()

    def close(self) -> None:
        """Ends the child; another is started when needed."""
        child, self._child = self._child, None
        if child is not None and child.stdin is not None and child.stdout is not None:
            child.kill()
            child.wait()
            child.stdout.close()
            with suppress(OSError):  # what was not yet sent has nowhere to go
                child.stdin.close()

    def decode(self, file: Path | bytes, frames: Sequence[int] = (0,)) -> Generator[NDArray[Any]]:
        """The arrays of a file's frames, one after the other, as pydicom gives them.

        Close it, where it is not read to its end. Raises UnreadableImage, also where the decoder crashed or hung.
        """
        wanted = _NUMBER.pack(len(frames)) + b"".join(map(_NUMBER.pack, frames))
        body = b"B" + wanted + file if isinstance(file, bytes) else b"P" + wanted + os.fsencode(file.absolute())
        with self._lock, closing(_answers(body) if _here else self._ask(body, len(frames))) as answers:
            for answer in answers:
                if answer[:1] == b"E":
                    raise UnreadableImage(
                        "the DICOM pixel data is damaged, or compressed in a way that no installed decoder reads "
                        f"({answer[1:].decode()})"
                    )
                yield np.load(BytesIO(answer[1:]), allow_pickle=False)

    def _ask(self, body: bytes, count: int) -> Generator[bytes]:
        """The child's answers: `count`, or fewer where the last is an error."""
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start()
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        is_done = False
        try:
            with self._alarm(child):
                _send(child.stdin, body)
            for number in range(1, count + 1):
                with self._alarm(child):
                    answer = _receive(child.stdout)
                is_done = number == count or answer[:1] == b"E"
                yield answer
                if is_done:
                    return
        except (OSError, EOFError):
            raise UnreadableImage(
                f"the decoder crashed on the DICOM pixel data, or took more than {self._seconds:g} s: it is damaged"
            ) from None
        finally:
            if not is_done:  # what it still has to say would answer the next question
                self.close()

    @contextmanager
    def _alarm(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        alarm = threading.Timer(self._seconds, child.kill)
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()


def decodes(syntax: str) -> bool:
    """Whether there is a decoder for a compressed transfer syntax."""
    from pydicom.pixels.decoders.base import get_decoder

    add_codecs()
    try:
        return bool(get_decoder(UID(syntax)).is_available)
    except NotImplementedError:
        return False


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the parent, whose end ends the child
    )


def _send(stream: BinaryIO | Any, body: bytes) -> None:
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()


def _receive(stream: BinaryIO | Any) -> bytes:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    body: bytes = stream.read(length)
    if len(body) < length:
        raise EOFError
    return body


def _answers(body: bytes) -> Generator[bytes]:
    from pydicom.pixels.utils import iter_pixels

    add_codecs()
    (count,) = _NUMBER.unpack_from(body, 1)
    begin = 1 + _NUMBER.size * (1 + count)
    frames = [number for (number,) in _NUMBER.iter_unpack(body[1 + _NUMBER.size : begin])]
    try:
        with opened(body[begin:] if body[:1] == b"B" else Path(os.fsdecode(body[begin:]))) as stream:
            dataset = read_dataset(stream, pixels=True)
        for pixels in iter_pixels(dataset, indices=frames):
            buffer = BytesIO(b"A")
            buffer.seek(1)
            np.save(buffer, pixels, allow_pickle=False)
            yield buffer.getvalue()
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # whatever it was, the parent says it in its own words
        yield b"E" + type(error).__name__.encode()


def _serve() -> None:
    """The child: answers until its input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print there, too
    while True:
        try:
            body = _receive(sys.stdin.buffer)
        except EOFError:
            return
        for answer in _answers(body):
            _send(answers, answer)


if __name__ == "__main__":
    _serve()
