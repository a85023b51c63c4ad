"""What commands say to people and programs: one console on stderr, JSON on stdout."""

import json
from functools import cache
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


@cache
def stderr() -> "Console":
    """One console for errors, log and progress, so that they do not write over each other."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def complain(message: str) -> None:
    stderr().print("[bold red]error:[/] ", end="")
    stderr().print(message, markup=False)


def print_json(data: Any) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
