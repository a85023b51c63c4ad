"""`medae gate`: how far an input is from what a model knows."""

from typing import Annotated

import typer

from medae.cli.options import Out, Package


def gate(
    package: Package,
    out: Out,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="K=V", help="Change one value of the gate: steps=300.")
    ] = None,
) -> None:
    """Give a trained model a gate, from the images that it was trained on; leaves the model with it in OUT/package.

    The answers stay the same, and say how far each input is from what the model knows. The package is another one: its
    digest changes.
    """
    from medae.experiment import Experiment, GateSettings
    from medae.package import load
    from medae.settings import changed, validate_settings
    from medae.training.gate import give_gate

    settings = changed(GateSettings(), changes or ())
    model = load(package)
    experiment = validate_settings(model.card.experiment, Experiment, "card.json: experiment")
    gated = give_gate(model, experiment, settings, out)
    typer.echo(f"{out / 'package'}: {gated.card.name} {gated.card.version} {gated.digest}")
