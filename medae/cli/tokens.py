"""`medae token`: the tokens of a service."""

from pathlib import Path
from typing import Annotated

import typer

TokenFile = Annotated[Path, typer.Option("--file", help="The token file of a service.", show_default=False)]
TokenName = Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.", show_default=False)]
token = typer.Typer(name="token", help="Make, list and revoke the tokens of a service.", no_args_is_help=True)


@token.command("new")
def new_token(
    name: TokenName,
    file: TokenFile,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="segment, restore, score, models, metrics or admin (all); by default the first four.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print a new token: once, here. FILE keeps only its hash; a running service takes it from now on."""
    from medae_service import tokens

    typer.echo(tokens.new(file, name, scope or tokens.CLIENT_SCOPES))


@token.command("list")
def list_tokens(file: TokenFile) -> None:
    """Whose tokens FILE has, and what each may do; never a token."""
    from medae_service import tokens

    for entry in tokens.read(file):
        scopes = ",".join(scope for scope in tokens.SCOPES if scope in entry.scopes)
        typer.echo(f"{entry.name}\t{scopes}" + ("\tin plain text" if entry.plain else ""))


@token.command("revoke")
def revoke_token(name: TokenName, file: TokenFile) -> None:
    """Remove a token from FILE; a running service refuses it from now on."""
    from medae_service import tokens

    tokens.revoke(file, name)
