"""`medae latent`: look into a model's latent space, and draw from it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medae.cli.options import Device, Inputs, Out, Package, keep_heap, require_existing
from medae.cli.terminal import complain, print_json, stderr
from medae.errors import InputError, SettingsError, UsageError

if TYPE_CHECKING:
    from medae.batch.item import Item
    from medae.image import Image
    from medae.io.answer import AnswerFile
    from medae.latent import LatentSpace
    from medae.record import Run

latent = typer.Typer(name="latent", help="Look into a model's latent space, and draw from it.", no_args_is_help=True)

Picture = Annotated[
    str, typer.Argument(metavar="INPUT", help="An image, or a folder of one series.", show_default=False)
]
Seed = Annotated[int, typer.Option(help="The same seed, the same pictures.")]
Steps = Annotated[int, typer.Option(min=2, help="Pictures in a row.")]


@latent.command()
def embed(package: Package, inputs: Inputs, out: Out, device: Device = "auto") -> None:
    """One vector an image: OUT/embedding.parquet with columns id and vector, the mean of its latent over all places."""
    from medae.latent import embed

    space, run = _opened(package, device), _run(package, "latent embed")
    found = embed(space, _collection(inputs, out), watch=_watch(run))
    if not found.ids:
        raise UsageError("none of the images could be embedded, so no table was written")
    usage = {"codes": found.usage.summary} if found.usage else {}
    run.facts |= usage
    _write(run, space, out, found.parquet(space.package.digest))
    print_json({"images": len(found.ids), "dimensions": found.vectors.shape[1], **usage})
    if found.failed:
        raise typer.Exit(InputError.exit_code)


@latent.command()
def interpolate(
    package: Package,
    first: Picture,
    second: Picture,
    out: Out,
    steps: Steps = 7,
    method: Annotated[
        Literal["linear", "spherical"], typer.Option(help="A straight line, or a great circle.")
    ] = "linear",
    device: Device = "auto",
) -> None:
    """From one image to another of the same size: OUT/interpolation.png."""
    from medae.latent import interpolate

    space, run = _opened(package, device), _run(package, "latent interpolate")
    _write(run, space, out, interpolate(space, _read(first), _read(second), steps=steps, method=method))


@latent.command()
def traverse(
    package: Package,
    image: Picture,
    out: Out,
    dimension: Annotated[
        list[int] | None, typer.Option(help="One to move; by default, those that say most about the image.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many, where none is named.")] = 8,
    span: Annotated[float, typer.Option(help="Standard deviations to each side.")] = 3,
    steps: Steps = 7,
    device: Device = "auto",
) -> None:
    """One image with one latent dimension moved at a time: OUT/traversal.png."""
    from medae.latent import traverse

    space, run = _opened(package, device), _run(package, "latent traverse")
    sheet = traverse(space, _read(image), dimensions=dimension or (), count=count, span=span, steps=steps)
    _write(run, space, out, sheet)


@latent.command()
def decodings(
    package: Package,
    image: Picture,
    out: Out,
    count: Annotated[int, typer.Option(min=2, help="Draws.")] = 6,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Several decodings of one image's posterior, and where they differ: OUT/decodings.png."""
    from medae.latent import decodings

    space, run = _opened(package, device), _run(package, "latent decodings", seed)
    _write(run, space, out, decodings(space, _read(image), count=count, seed=seed))


@latent.command()
def sample(
    package: Package,
    out: Out,
    count: Annotated[int, typer.Option(min=1, help="Samples.")] = 16,
    seed: Seed = 0,
    size: Annotated[
        str | None,
        typer.Option(metavar="RxC", help="Of a VAE's samples (a vqvae has its prior's); by default, of a patch."),
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.01, help="Below 1, likelier samples.")] = 1.0,
    device: Device = "auto",
) -> None:
    """Images that nobody took, from the prior of a VAE or of a vqvae: OUT/samples.png."""
    from medae.latent import sample

    space, run = _opened(package, device), _run(package, "latent sample", seed)
    told = None if size is None else _size(size, space.dims)
    _write(run, space, out, sample(space, count=count, seed=seed, size=told, temperature=temperature))


@latent.command()
def units(
    package: Package,
    inputs: Inputs,
    out: Out,
    unit: Annotated[list[int] | None, typer.Option(help="One to show; by default, the most telling.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many units, where none is named.")] = 12,
    most: Annotated[int, typer.Option(min=1, help="Pictures of each.")] = 8,
    device: Device = "auto",
) -> None:
    """What makes each unit of the latent fire most, among the inputs: OUT/units.png."""
    from medae.latent import units

    space, run = _opened(package, device), _run(package, "latent units")
    sheet = units(space, _collection(inputs, out), chosen=unit or (), count=count, most=most, watch=_watch(run))
    _write(run, space, out, sheet)
    if any(case["status"] == "failed" for case in run.cases):
        raise typer.Exit(InputError.exit_code)


@latent.command()
def prior(
    package: Package,
    out: Out,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change one value: prior.steps=100.")
    ] = None,
) -> None:
    """Train a prior over the codes of a vqvae, on the data of its own experiment: OUT/package, with the prior in it."""
    from medae.batch.folder import require_writable
    from medae.experiment import Experiment
    from medae.networks.prior import PriorSettings
    from medae.package import load, require_replaceable
    from medae.settings import changed, validate_settings
    from medae.training.prior import with_prior

    model, run = load(package), _run(package, "latent prior")
    if not model.card.experiment:
        raise UsageError("this package does not say which data it was made from, so there are no codes to learn from")
    told = model.card.experiment
    try:
        experiment = validate_settings(
            told | {"prior": told.get("prior") or PriorSettings().model_dump()}, Experiment, "card"
        )
    except SettingsError as error:
        raise UsageError(f"this package can have no prior: {error}") from None
    experiment = changed(experiment, changes or ())
    require_writable(out)
    require_replaceable(out / "package")
    made = with_prior(
        model, experiment, watch=lambda step, bits: stderr().print(f"step {step}  {bits:.3f} bits a code")
    )
    made.save(out / "package")
    run.seed = experiment.training.seed
    run.digests["made"] = made.digest
    run.write(out)
    print_json(made.card.metrics["prior"])


def _opened(package: str, device: str) -> "LatentSpace":
    from medae.latent import LatentSpace
    from medae.package import load

    keep_heap()
    return LatentSpace(load(package), device)


def _run(package: str, command: str, seed: int | None = None) -> "Run":
    from medae.package import load
    from medae.record import Run

    return Run(command, seed, {"package": load(package).digest})


def _write(run: "Run", space: "LatentSpace", out: Path, file: "AnswerFile") -> None:
    from medae.io.answer import write_files

    write_files([file], out)
    run.write(out)
    typer.echo(out / file.name)


def _read(value: str) -> "Image":
    from medae.batch.manifest import list_items

    require_existing([value])
    items = list_items([value]).items
    if len(items) != 1:
        raise typer.BadParameter(f"{value}: {len(items)} images; one is needed", param_hint="INPUT")
    return _image_of(items[0])


def _collection(inputs: list[str], out: Path) -> Iterator[tuple[str, "Callable[[], Image]"]]:
    from functools import partial

    from medae.batch.manifest import list_items

    require_existing(inputs)
    for item in list_items(inputs, out=out).items:
        yield item.id, partial(_image_of, item)


def _image_of(item: "Item") -> "Image":
    from medae.batch.sources import fetch
    from medae.io import DEFAULT_LIMITS, read_image

    sources = fetch(item.files, DEFAULT_LIMITS).sources
    return read_image(sources if len(sources) > 1 else sources[0])


def _watch(run: "Run") -> "Callable[[str, str | None], None]":
    def watch(name: str, reason: str | None) -> None:
        if reason is None:
            run.done(name)
        else:
            run.failed(name, reason)
            complain(f"{name}: {reason}")

    return watch


def _size(text: str, dims: int) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != dims or not all(part.isdigit() and int(part) > 0 for part in parts):
        form = "ROWSxCOLUMNS" if dims == 2 else "SLICESxROWSxCOLUMNS"
        raise typer.BadParameter(f"{text}: expected {form}, such as {'x'.join(['64'] * dims)}", param_hint="--size")
    return tuple(int(part) for part in parts)
