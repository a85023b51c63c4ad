"""The bar of a client that asks for many images."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager

from medae.client.answer import Outcome
from medae.client.form import Source


@contextmanager
def shown(sources: Iterable[Source], wanted: bool) -> Iterator[Callable[[Outcome], Outcome]]:
    """A bar on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    with Progress(*columns, console=console, disable=not (wanted and console.is_terminal)) as bar:
        task = bar.add_task("images", total=len(sources) if isinstance(sources, Sized) else None, failed="")
        failed = 0

        def advance(outcome: Outcome) -> Outcome:
            nonlocal failed
            failed += outcome.error is not None
            bar.update(task, advance=1, failed=f"{failed} failed" if failed else "")
            return outcome

        yield advance
