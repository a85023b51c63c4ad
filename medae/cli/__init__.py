"""The command-line door: it parses, calls and exits. Rooms are imported when they are called: --help is instant."""

import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medae import __version__
from medae.cli.batch import batch
from medae.cli.gate import gate
from medae.cli.latent import latent
from medae.cli.options import (
    AsJson,
    Device,
    Dicom,
    GateReject,
    GateReview,
    IdKey,
    Inputs,
    Members,
    Out,
    Output,
    Package,
    RegularGrid,
    Series,
    Uncertainty,
    gate_limits,
    keep_heap,
    require_existing,
)
from medae.cli.scores import calibrate, rescore
from medae.cli.terminal import complain, print_json, stderr
from medae.cli.tokens import token
from medae.errors import InputError, MedaeError

if TYPE_CHECKING:
    from medae.evaluation import CaseResult

app = typer.Typer(
    name="medae",
    help="Train, package and serve models that segment, restore and score medical images.",
    epilog="Exit codes: 0 all done; 2 the call is wrong; 3 some inputs failed, each with its reason; 1 our fault.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # boxes would double the time until --help answers
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(batch)
app.add_typer(latent)
app.add_typer(token)
app.command()(calibrate)
app.command()(rescore)
app.command()(gate)


def main() -> None:
    """Runs a command; every error of ours is one message on stderr and its exit code."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # clean up as on Ctrl-C
    try:
        app()
    except MedaeError as error:
        complain(str(error))
        sys.exit(error.exit_code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"medae {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is done.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    from rich.logging import RichHandler

    handler: logging.Handler = RichHandler(console=stderr(), show_time=False, show_path=False)
    if not stderr().is_terminal:  # a file has no width to wrap to
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for name in ("medae", "medae_service"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO if verbose else logging.WARNING)
        logger.addHandler(handler)
    # what third parties log and warn of can hold tag values, and so the data of a patient
    logging.getLogger().addHandler(logging.NullHandler())
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


@app.command()
def train(
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped one.", show_default=False)],
    out: Out,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change one value: training.steps=100.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint under --out.")] = False,
) -> None:
    """Train a model as CONFIG says; leaves OUT/package, OUT/metrics.jsonl and pictures."""
    from medae.experiment import Experiment
    from medae.settings import load_settings
    from medae.shipped import find_config
    from medae.training import train

    experiment = load_settings(find_config(config), Experiment, changes or ())
    package = train(experiment, out, resume=resume, progress=True)
    typer.echo(f"{out / 'package'}: {package.card.name} {package.card.version} {package.digest}")


@app.command()
def evaluate(
    package: Package,
    out: Out,
    cases: Annotated[
        Path | None,
        typer.Argument(help="A CSV list of cases; without one, the test cases of its experiment.", show_default=False),
    ] = None,
    uncertainty: Uncertainty = None,
    member: Members = None,
    id_key: IdKey = None,
) -> None:
    """Measure a model on cases with known answers; leaves report.html, metrics.json, cases.csv, run.json under OUT."""
    from medae.batch.folder import require_writable
    from medae.evaluation import evaluate
    from medae.package import load
    from medae.pseudonyms import Pseudonyms
    from medae.uncertainty import open_predictor

    pseudonyms = None if id_key is None else Pseudonyms.from_file(id_key)
    model = load(package)
    keep_heap()
    predictor = open_predictor(model, uncertainty or (), members=[load(other) for other in member or ()])
    require_writable(out)
    evaluation = evaluate(predictor, cases, out, watch=_say_measured, pseudonyms=pseudonyms)
    print_json(evaluation.metrics)
    if any(result.reason is not None for result in evaluation.cases):
        raise typer.Exit(InputError.exit_code)


@app.command()
def predict(
    package: Package,
    inputs: Inputs,
    out: Out,
    output: Annotated[Output, typer.Option(help="What to write for each image.")] = "default",
    threshold: Annotated[
        float | None,
        typer.Option(help="Segmentation: a probability. Score: a target false-positive rate.", show_default=False),
    ] = None,
    uncertainty: Uncertainty = None,
    member: Members = None,
    gate_review: GateReview = None,
    gate_reject: GateReject = None,
    dicom: Dicom = None,
    series: Series = None,
    regular_grid: RegularGrid = False,
    id_key: IdKey = None,
    device: Device = "auto",
) -> None:
    """Answer images in their own format; leaves answers, summaries, results.csv and run.json under OUT."""
    from medae.batch.folder import require_writable
    from medae.batch.manifest import list_items
    from medae.batch.predict import predict_items
    from medae.batch.progress import Progress
    from medae.io.dicom_options import DicomAnswers
    from medae.package import load
    from medae.pseudonyms import Pseudonyms
    from medae.uncertainty import open_predictor

    require_existing(inputs)
    limits = gate_limits(gate_review, gate_reject)
    words = DicomAnswers.from_words(dicom or ())
    pseudonyms = None if id_key is None else Pseudonyms.from_file(id_key)
    model = load(package)
    keep_heap()
    others = [load(other) for other in member or ()]
    predictor = open_predictor(model, uncertainty or (), members=others, device=device, limits=limits)
    require_writable(out)
    manifest = list_items(inputs, out=out, pseudonyms=pseudonyms, series=series, regular_grid=regular_grid)
    with Progress(out / "results.csv", stderr()) as progress:
        progress.begin(len(manifest.items), passed_over=manifest.passed_over)
        outcomes = predict_items(
            predictor,
            manifest.items,
            out,
            output=output,
            threshold=threshold,
            dicom=words,
            pseudonyms=pseudonyms,
            watch=lambda outcome: progress.see((outcome,)),
        )
    if any(outcome.status == "fault" for outcome in outcomes):
        raise typer.Exit(1)
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(InputError.exit_code)


def _say_measured(result: "CaseResult") -> None:
    if result.reason is None:
        stderr().print(f"{result.id}: measured", markup=False)
    else:
        complain(f"{result.id}: {result.reason}")


@app.command()
def info(
    thing: Annotated[str, typer.Argument(metavar="PACKAGE|FILE", help="A model package, an image or a DICOM folder.")],
    as_json: AsJson = False,
) -> None:
    """Say what a package or an image is."""
    from medae.inspection import describe, show

    try:
        description = describe(thing)
    except InputError as error:
        complain(f"{thing}: {error}")
        raise typer.Exit(error.exit_code) from None
    if as_json:
        print_json(description)
    else:
        show(description)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the models that come with medae."""
    from medae.inspection import list_models, show_models

    found = list_models()
    if as_json:
        print_json(found)
    else:
        show_models(found)


@app.command()
def check(
    inputs: Inputs,
    package: Annotated[str | None, typer.Option(help="Would this model take them?", show_default=False)] = None,
    series: Series = None,
    regular_grid: RegularGrid = False,
) -> None:
    """Say of each image whether it would be accepted and, if not, why; given a package also the memory of a run, for
    which the network sees one empty tile."""
    from medae.batch.manifest import list_items
    from medae.inspection import check_item, memory_of
    from medae.package import load

    require_existing(inputs)
    model = load(package) if package else None
    listed = list_items(inputs, series=series, regular_grid=regular_grid)
    findings = [check_item(item, model) for item in listed.items]
    for finding in findings:
        typer.echo(finding)
    if package and (memory := memory_of(findings, package)) is not None:
        typer.echo(f"a run over what is accepted takes at most {memory / 2**20:.0f} MiB of main memory")
    if not all(finding.accepted for finding in findings):
        raise typer.Exit(InputError.exit_code)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has: versions, device, cores, memory, disk, programs, limits."""
    from medae.doctor import examine, show

    findings = examine()
    if as_json:
        print_json(findings)
    else:
        show(findings)


@app.command()
def serve(
    packages: Annotated[
        list[str] | None, typer.Argument(metavar="[PACKAGE]...", help="Models to serve, here or in --config.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file of service settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="The tokens that callers must send: `medae token`.")] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help="A Host name that callers may use.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen beyond this machine without a token.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; by default one for each core.")] = None,
) -> None:
    """Answer over HTTP until stopped."""
    from medae_service.launch import serve

    serve(
        packages or (),
        host=host,
        port=port,
        workers=workers,
        token_file=token_file,
        insecure=insecure,
        allowed_hosts=allowed_host or (),
        config=config,
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Trainings of seconds: the way, not the quality.")] = False,
) -> None:
    """The whole way on real images that come with the dependencies, ending in pictures."""
    from medae.demo import run

    run(out, quick)


@app.command()
def export(
    package: Package,
    to: Annotated[str, typer.Option("--to", help="bento: BentoML's model store.", show_default=False)],
    name: Annotated[str | None, typer.Option(help="What to call it there.", show_default=False)] = None,
) -> None:
    """Put a package into a form that others load; prints its tag and its folder, which is a package again."""
    from medae.export import export

    exported = export(package, to, name)
    typer.echo(f"{exported.tag} {exported.folder}")


@app.command(hidden=True)
def schema(
    out: Annotated[Path | None, typer.Option(help="Write it there instead of printing it.")] = None,
) -> None:
    """The JSON schema of a configuration, from which editors complete it."""
    from medae.experiment import schema_text

    text = schema_text()
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")
