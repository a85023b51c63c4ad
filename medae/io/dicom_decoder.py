"""Decodes compressed DICOM pixels in a child process, so that damaged data cannot take this process down.

The decoders are C and C++ (gdcm, openjpeg, CharLS, libjpeg); fed with damaged streams some of them crash or never end.
The child is started when first needed, serves one file after the other, and ends when its standard input does, which is
when its parent has gone, in whatever way. What the decoders print goes nowhere.

Protocol, a question for each frame: 8 bytes of length, then what the header says of the pixels, as a line of JSON, and
the compressed frame; back 8 bytes of length, then "A" and an array in NumPy's format, or "E" and the name of an
exception. So the child sees neither a file nor a word about a patient.
"""

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from medae.errors import UnreadableImage
from medae.io.dicom_codecs import add_codecs

SECONDS = 60.0
"""For one picture; what takes longer never ends."""

_LENGTH = struct.Struct(">Q")
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

    def decode(self, frame: bytes, options: Mapping[str, Any]) -> NDArray[Any]:
        """The array of one compressed frame, as pydicom gives it.

        options: pydicom's, of the pixels (`as_pixel_options`); plain values.
        Raises UnreadableImage, also where the decoder crashed or hung.
        """
        body = json.dumps(dict(options)).encode() + b"\n" + frame
        if _here:
            answer = _answer(body)
        else:
            with self._lock:
                answer = self._ask(body)
        if answer[:1] == b"E":
            raise UnreadableImage(
                "the DICOM pixel data is damaged, or compressed in a way that no installed decoder reads "
                f"({answer[1:].decode()})"
            )
        pixels: NDArray[Any] = np.load(BytesIO(answer[1:]), allow_pickle=False)
        return pixels

    def _ask(self, body: bytes) -> bytes:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._child is None:
            self._child = _start()
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        alarm = threading.Timer(self._seconds, child.kill)
        alarm.start()
        try:
            _send(child.stdin, body)
            return _receive(child.stdout)
        except (OSError, EOFError):
            self.close()
            raise UnreadableImage(
                f"the decoder crashed on the DICOM pixel data, or took more than {self._seconds:g} s: it is damaged"
            ) from None
        except BaseException:  # what it still has to say would answer the next question
            self.close()
            raise
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


def _answer(body: bytes) -> bytes:
    from pydicom.pixels.decoders.base import get_decoder

    add_codecs()
    head, _, frame = body.partition(b"\n")
    options = json.loads(head)
    try:
        decoder = get_decoder(UID(options.pop("transfer_syntax_uid")))
        pixels, _ = decoder.as_array(encapsulate([frame], has_bot=False), index=0, **options)
        buffer = BytesIO()
        buffer.write(b"A")
        np.save(buffer, pixels, allow_pickle=False)
        return buffer.getvalue()
    except MemoryError:
        raise  # says nothing about the file
    except Exception as error:  # whatever it was, the parent says it in its own words
        return b"E" + type(error).__name__.encode()


def _serve() -> None:
    """The child: answers until its input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # decoders print there, too
    while True:
        try:
            body = _receive(sys.stdin.buffer)
        except EOFError:
            return
        _send(answers, _answer(body))


if __name__ == "__main__":
    _serve()
