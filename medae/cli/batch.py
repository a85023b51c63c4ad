"""`medae batch`: answer any number of cases, exactly once."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medae.cli.options import AsJson, Dicom, IdKey, RegularGrid, Series
from medae.cli.terminal import print_json, stderr
from medae.errors import InputError, UsageError

if TYPE_CHECKING:
    from medae.batch.results import Counts
    from medae.batch.settings import BatchSettings

batch = typer.Typer(
    name="batch", help="Answer any number of cases, each exactly once, whatever interrupts it.", no_args_is_help=True
)
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of a batch.", show_default=False)]
ShardOption = Annotated[str | None, typer.Option("--shard", metavar="I/N", help="Only the I-th part, from 0, of N.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PACKAGE] [INPUT]...",
        help="A model; then images, folders, DICOM series, patterns, lists (.csv, .parquet), archives (.zip, .tar, "
        ".tar.gz) or URLs. With --package or --embed, all are inputs.",
        show_default=False,
    ),
]


@batch.command()
def run(
    words: Words = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)] = None,
    package: Annotated[list[str] | None, typer.Option(help="A model; again for more, in one pass.")] = None,
    embed: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE", help="An autoencoder; the table gets each case's vector.")
    ] = None,
    config: Annotated[
        str | None, typer.Option(help="A YAML file of a batch that recurs, or the name of a shipped one.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change one value of --config.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="default, probabilities, labels-nifti, overlay, summary, table.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Segmentation: a probability. Score: a target false-positive rate.")
    ] = None,
    dicom: Dicom = None,
    series: Series = None,
    regular_grid: RegularGrid = False,
    id_key: IdKey = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one a core.")] = None,
    shard: ShardOption = None,
    engine: Annotated[str | None, typer.Option(help="local or ray.")] = None,
    ray_address: Annotated[str | None, typer.Option(help="Of a Ray cluster, such as 10.0.0.1:6379 or auto.")] = None,
    max_ram: Annotated[str | None, typer.Option(help="Of all processes together, such as 8G.")] = None,
    max_vram: Annotated[str | None, typer.Option(help="Of each CUDA device, such as 10G.")] = None,
    allow: Annotated[list[str] | None, typer.Option(help="The beginning of URLs that may be read.")] = None,
    summaries: Annotated[bool, typer.Option("--summaries", help="A summary JSON for each case as well.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compare digests of inputs that are done.")] = False,
    rescore: Annotated[bool, typer.Option("--rescore", help="Answer again what has changed.")] = False,
) -> None:
    """Answer all cases, or go on where this was interrupted; leaves answers, results.parquet, report.html, run.json."""
    given: dict[str, Any] = {
        "out": out,
        "output": output,
        "threshold": threshold,
        "dicom": _dicom(dicom),
        "series": series,
        "regular_grid": regular_grid or None,
        "id_key": id_key,
        "device": device,
        "workers": workers,
        "shard": shard,
        "engine": engine,
        "ray_address": ray_address,
        "max_ram": max_ram,
        "max_vram": max_vram,
        "allow": allow or None,
        "summaries": summaries or None,
        "verify": verify or None,
        "rescore": rescore or None,
        "packages": package or None,
        "embed": embed or None,
    }
    _go(_settings(words or [], config, changes or [], given))


@batch.command()
def retry(
    out: Folder,
    workers: Annotated[int | None, typer.Option(help="Processes; by default as before.")] = None,
    shard: ShardOption = None,
) -> None:
    """Answer again what failed, with the settings that the batch was begun with; and go on with what is left.

    In a folder of one shard, give that shard again.
    """
    from medae.batch.run import recorded
    from medae.batch.settings import BatchSettings
    from medae.settings import validate_settings

    settings = recorded(out)
    given = {name: value for name, value in (("workers", workers), ("shard", shard)) if value is not None}
    if given:
        settings = validate_settings(settings.model_dump() | given, BatchSettings, "the options")
    _go(settings, again=True)


@batch.command()
def status(out: Folder, as_json: AsJson = False) -> None:
    """Say how far a batch is, and why cases failed; also while it runs."""
    from medae.batch.state import show, state

    found = state(out)
    if as_json:
        print_json(found)
    else:
        show(found)


@batch.command()
def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Output folders of shards.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for all of it.", show_default=False)],
) -> None:
    """Put the results of several folders (shards that had a folder each) into one."""
    from medae.batch.merge import merge
    from medae.batch.state import show, state

    counts = merge(folders, out)
    show(state(out))
    _end(counts)


@batch.command()
def export(
    out: Folder,
    csv: Annotated[Path, typer.Option("--csv", help="The file to write.", show_default=False)],
) -> None:
    """Write the table of results as CSV."""
    from medae.batch.export import export_csv

    typer.echo(f"{csv}: {export_csv(out, csv)} rows")


def _dicom(words: list[str] | None) -> dict[str, Any] | None:
    from medae.io.dicom_options import DicomAnswers

    return DicomAnswers.from_words(words).model_dump() if words else None


def _settings(
    words: Sequence[str], config: str | None, changes: Sequence[str], given: dict[str, Any]
) -> "BatchSettings":
    from medae.batch.settings import BatchSettings
    from medae.settings import load_settings, validate_settings
    from medae.shipped import find_config

    named = {name: value for name, value in given.items() if value is not None}
    if config is not None:
        if words or "packages" in named or "embed" in named:
            raise UsageError("--config names the models and the inputs; change them with --set inputs='[...]'")
        settings = load_settings(find_config(config), BatchSettings, changes)
        return validate_settings(settings.model_dump() | named, BatchSettings, "the options")
    if changes:
        raise UsageError("--set changes a --config; without one, give options")
    if "packages" not in named and "embed" not in named:
        named["packages"], words = list(words[:1]), words[1:]
    if not words or "out" not in named:
        raise UsageError("give a model, at least one input and --out; or --config")
    return validate_settings(named | {"inputs": list(words)}, BatchSettings, "the options")


def _go(settings: "BatchSettings", *, again: bool = False) -> None:
    from medae.batch.folder import Folder as Places
    from medae.batch.progress import Progress
    from medae.batch.run import run

    with Progress(Places(settings.out).results, stderr()) as watch:
        counts = run(settings, watch, again=again)
    _end(counts)


def _end(counts: "Counts") -> None:
    if counts.fault:
        raise typer.Exit(1)
    if counts.failed:
        raise typer.Exit(InputError.exit_code)
