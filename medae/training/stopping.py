"""SIGTERM and SIGINT are noted, so that a training can save itself and then end as it was asked to."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """While entered, in the main thread: the first signal is noted, a second one ends the process at once."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._received: int | None = None

    @property
    def asked(self) -> bool:
        """Whether the work should end soon."""
        return self._received is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def obey(self) -> NoReturn:
        """End as Python ends on that signal: KeyboardInterrupt, or SystemExit with 128 + its number."""
        if self._received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self._received or signal.SIGTERM))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
