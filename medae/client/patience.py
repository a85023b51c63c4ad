"""When to ask again, and how long to wait before: exponential back-off with jitter, never earlier than Retry-After."""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import httpx

BUSY = frozenset({429, 503})
# the connection broke or never was; not a slow answer (ReadTimeout): its work is still going on over there
BROKEN = (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError)


@dataclass(frozen=True)
class Patience:
    """Asking never changes anything on the other side, so asking again is always safe."""

    retries: int = 5
    first_seconds: float = 0.5
    longest_seconds: float = 120.0
    """Of one pause; a service that asks for a longer one is not waited for."""
    uniform: Callable[[float, float], float] = random.uniform

    def pause_after_error(self, attempt: int, error: httpx.TransportError) -> float | None:
        """Seconds to wait before attempt + 1; None: give up. The first attempt is 0."""
        return self._pause(attempt) if isinstance(error, BROKEN) else None

    def pause_after_answer(self, attempt: int, status: int, headers: Mapping[str, str]) -> float | None:
        """The same after an answer; None also for one that need not be asked for again."""
        if status not in BUSY:
            return None
        pause, asked = self._pause(attempt), _seconds(headers.get("retry-after", ""))
        if pause is None or asked > self.longest_seconds:
            return None
        # those who were told the same time do not come back at the same time
        return max(pause, asked + self.uniform(0, self.first_seconds)) if asked else pause

    def _pause(self, attempt: int) -> float | None:
        if attempt >= self.retries:
            return None
        full = min(self.first_seconds * 2**attempt, self.longest_seconds)
        return self.uniform(full / 2, full)


def _seconds(retry_after: str) -> float:
    """RFC 9110, 10.2.3: a number of seconds or a date. 0 for neither."""
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0
