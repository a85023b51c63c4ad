"""How far a batch is: a bar with rate and ETA on a terminal, a line an item elsewhere."""

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from medae.batch.local import Outcome
from medae.batch.manifest import Manifest
from medae.errors import OutputError, UsageError


class Progress:
    """Called with each outcome of a batch; says at the end where the results are."""

    def __init__(self, manifest: Manifest, out: Path, console: Console) -> None:
        self._console = console
        self._total = len(manifest.items)
        self._passed_over = manifest.passed_over
        self._out = out
        self._counts = {"done": 0, "failed": 0, "fault": 0}
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TextColumn("ETA"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("images", total=self._total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __call__(self, outcome: Outcome) -> None:
        self._counts[outcome.status] += 1
        self._bar.advance(self._task)
        number = sum(self._counts.values())
        if outcome.status != "done":
            self._print(f"{outcome.item.id}: {outcome.reason}", style="red")
        elif not self._console.is_terminal:
            self._print(f"[{number}/{self._total}] {outcome.item.id}: done in {outcome.seconds:.1f} s")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        if isinstance(error, UsageError) and not isinstance(error, OutputError):
            return  # the call was wrong: nothing was begun
        counts = ", ".join(f"{count} {status}" for status, count in self._counts.items() if count) or "nothing done"
        over = f"; files passed over as no images: {self._passed_over}" if self._passed_over else ""
        written = "" if isinstance(error, OutputError) else f"; results in {self._out / 'results.csv'}"
        self._print(f"{counts} of {self._total}{over}{written}")

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)


class _Rate(ProgressColumn):
    """Images a second, or seconds an image where they are slow."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("-- images/s")
        return Text(f"{task.speed:.1f} images/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/image")
