"""What a training says while it runs: metrics.jsonl, and a bar on a terminal or plain lines elsewhere."""

import json
import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from medae.errors import OutputError
from medae.io.answer import AnswerFile, write_files

logger = logging.getLogger(__name__)

NAME = "metrics.jsonl"


class Log:
    """One JSON object a line: {"step", "train": {term: mean since the last line, ...}} or {"step", "validation"}.

    progress: True: a bar on a terminal, else plain lines, on stderr; None: only where there is a terminal; False:
    nothing. Every line goes to the logger too.
    """

    def __init__(self, out: Path, *, step: int, steps: int, every: int, progress: bool | None) -> None:
        self._path = out / NAME
        self._steps, self._every = steps, every
        self._seen: dict[str, list[float]] = {}
        _cut_after(self._path, step)
        shown = sys.stderr.isatty() if progress is None else progress
        self._console = Console(stderr=True, soft_wrap=True, highlight=False, quiet=not shown)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Progress(
            *columns,
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("", total=steps, completed=step)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def trained(self, step: int, values: Mapping[str, float], learning_rate: float, seconds: float) -> None:
        """One optimiser step."""
        for name, value in values.items():
            self._seen.setdefault(name, []).append(value)
        self._bar.update(self._task, completed=step, description=f"loss {values['loss']:.4g}")
        if step % self._every == 0:
            means = {name: sum(values) / len(values) for name, values in self._seen.items()}
            self._seen = {}
            self._write(
                {"step": step, "train": {**means, "learning_rate": learning_rate}, "seconds": round(seconds, 3)}
            )
            said = "  ".join(f"{name} {value:.4g}" for name, value in means.items())
            self._say(f"step {step}/{self._steps}  {said}", shown=not self._console.is_terminal)

    def validated(self, step: int, summary: Mapping[str, Any], headline: str, *, best: bool, seconds: float) -> None:
        """One validation."""
        self._write({"step": step, "validation": dict(summary), "best": best, "seconds": round(seconds, 3)})
        value = summary.get(headline, {}).get("mean")
        number = "no number" if value is None else f"{value:.4g}"
        self._say(f"step {step}/{self._steps}  validation: {headline} {number}{'  (best)' if best else ''}", shown=True)

    def said(self, text: str) -> None:
        """Anything else worth a line."""
        self._say(text, shown=True)

    def _say(self, line: str, *, shown: bool) -> None:
        logger.info(line)
        if shown:
            self._console.print(line, markup=False)

    def _write(self, record: Mapping[str, Any]) -> None:
        # written at once and closed: a killed training loses no line
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        except OSError as error:
            raise OutputError(f"{NAME} cannot be written ({error.strerror}); free space, then --resume") from None


def _plain(value: Any) -> Any:
    """JSON has no numbers that are not finite."""
    if isinstance(value, Mapping):
        return {name: _plain(below) for name, below in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_after(path: Path, step: int) -> None:
    """Without the lines of steps that will be done again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    write_files([AnswerFile(NAME, "application/jsonl", "".join(f"{line}\n" for line in kept).encode())], path.parent)
