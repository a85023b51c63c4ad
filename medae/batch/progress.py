"""How far a batch is: a bar with rate and ETA on a terminal, lines elsewhere."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from medae.batch.work import Outcome
from medae.errors import OutputError, UsageError

FEW = 100
"""Of so many cases each has a line of its own where there is no terminal; of more there is one every LINE_SECONDS."""
LINE_SECONDS = 30.0
NAMED = 100
"""Failures that are named as they come; the table has all."""


class Progress:
    """Watches a batch; says at the end where the results are."""

    def __init__(self, results: Path, console: Console) -> None:
        """results: the table that will have been written."""
        self._console = console
        self._results = results
        self._total = self._before = self._passed_over = 0
        self._counts: Counter[str] = Counter()
        self._began = self._said = time.monotonic()
        columns = (BarColumn(), MofNCompleteColumn(), _Rate(), TextColumn("ETA"), TimeRemainingColumn(), _Failed())
        self._bar = Bar(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("images", total=None, failed=0)

    def begin(self, total: int, before: int = 0, passed_over: int = 0) -> None:
        """total: cases, with those that were finished `before`. passed_over: files that are no images, or of series
        that were not asked for."""
        self._total, self._before, self._passed_over = total, before, passed_over
        self._began = self._said = time.monotonic()
        self._bar.update(self._task, total=total - before)
        if before:
            self._print(f"{before} of {total} cases were finished before")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def see(self, outcomes: Sequence[Outcome]) -> None:
        """One more case, as each model left it."""
        worst = next((outcome for outcome in outcomes if outcome.status != "done"), outcomes[0])
        self._counts[worst.status] += 1
        failed = self._counts["failed"] + self._counts["fault"]
        self._bar.update(self._task, advance=1, failed=failed)
        if worst.status != "done" and failed <= NAMED:
            self._print(f"{worst.item.id}: {worst.reason}", style="red")
            if failed == NAMED:
                self._print("further failures are in the table only")
        elif not self._console.is_terminal and worst.status == "done":
            self._say_done(worst)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()
        if isinstance(error, UsageError) and not isinstance(error, OutputError):
            return  # the call was wrong: nothing was begun
        named = ("done", "failed", "fault")
        counts = ", ".join(f"{self._counts[name]} {name}" for name in named if self._counts[name]) or "nothing done"
        over = f"; files passed over, no images or not asked for: {self._passed_over}" if self._passed_over else ""
        written = "" if isinstance(error, OutputError) else f"; results in {self._results}"
        self._print(f"{counts} of {self._total - self._before}{self._rate()}{over}{written}")

    def _say_done(self, outcome: Outcome) -> None:
        number = sum(self._counts.values())
        if self._total <= FEW:
            self._print(f"[{number}/{self._total - self._before}] {outcome.item.id}: done in {outcome.seconds:.1f} s")
        elif time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            rate = number / max(self._said - self._began, 1e-6)
            left = (self._total - self._before - number) / rate
            self._print(f"[{number}/{self._total - self._before}] {rate:.1f} images/s, about {left / 60:.0f} min left")

    def _rate(self) -> str:
        seconds, number = time.monotonic() - self._began, sum(self._counts.values())
        return f" in {seconds:.0f} s ({number / seconds:.1f} images/s)" if number >= 20 and seconds >= 1 else ""

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False)


class _Rate(ProgressColumn):
    """Images a second, or seconds an image where they are slow."""

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("-- images/s")
        return Text(f"{task.speed:.1f} images/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s/image")


class _Failed(ProgressColumn):
    """How many failed, once one has."""

    def render(self, task: Task) -> Text:
        failed = task.fields["failed"]
        return Text(f"{failed} failed", style="red") if failed else Text("")
