"""Results as JSON lines, one a run: a benchmark that was cut off goes on where it was, and parts that ran side by side
are put together by putting their files together."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Lines:
    """What was found already, by run; and, as it comes, what is found now. path: None keeps nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        text = path.read_text() if path is not None and path.exists() else ""
        self._known = [json.loads(line) for line in text.splitlines()]

    def made(self, run: Mapping[str, object], make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The line of one run: the one that is there, or what `make` finds, written down at once."""
        for line in self._known:
            if all(line.get(name) == value for name, value in run.items()):
                return dict(line)
        line = {**run, **make()}
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        return line
