"""`medae calibrate` and `medae rescore`: what becomes of a model after its training."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medae.cli.options import AsJson, Device, Package, keep_heap
from medae.cli.terminal import complain, print_json, stderr

if TYPE_CHECKING:
    from medae.calibration import Calibration
    from medae.package import ModelPackage

RATES = (0.01, 0.05, 0.1)
"""Rates of false alarms whose thresholds are printed, where the references can tell them."""

Cases = Annotated[
    Path | None,
    typer.Argument(help="A CSV list of normal cases; without one, those of its experiment.", show_default=False),
]


def calibrate(
    package: Package,
    cases: Cases = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Leave a copy of the package there; by default it is calibrated in place."),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Place the scores of an anomaly model, or of another model's gate, among the normal images of a new site; no card
    and no weights change."""
    from medae.batch.folder import require_writable
    from medae.evaluation import calibrate
    from medae.package import ModelPackage, folder_of, require_replaceable

    keep_heap()
    folder = folder_of(package)
    if out is not None:
        require_replaceable(out)
        require_writable(out)
    calibrated = calibrate(ModelPackage.load(folder, recalibrating=True), cases, device=device, watch=_say)
    if out is None:
        calibrated.save_calibration(folder)
    else:
        calibrated.save(out)
    _show(calibrated, out or folder, as_json)


def rescore(
    package: Package,
    scores: Annotated[Path, typer.Argument(help="A YAML file with `scores`, as in a task.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the new package.", show_default=False)],
    cases: Annotated[
        Path | None,
        typer.Option(help="A CSV list; without one, the cases of its experiment.", show_default=False),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Give a trained autoencoder other scores: fit them on the normal training cases, calibrate on validation."""
    from medae.batch.folder import require_writable
    from medae.package import ModelPackage, folder_of, require_replaceable
    from medae.rescoring import rescore

    keep_heap()
    model = ModelPackage.load(folder_of(package), recalibrating=True)
    require_replaceable(out)
    require_writable(out)
    made = rescore(model, scores, cases, device=device, watch=_say)
    made.save(out)
    _show(made, out, as_json)


def _say(case: str, reason: str | None) -> None:
    if reason is None:
        stderr().print(f"{case}: scored", markup=False)
    else:
        complain(f"{case}: left out, {reason}")


def _show(package: "ModelPackage", folder: Path, as_json: bool) -> None:
    """What it is calibrated on: itself, or its gate and its model of shapes."""
    parts = {"": package, "gate": package.gate, "shape": package.shape}
    made = {name: part.calibration for name, part in parts.items() if part is not None and part.calibration is not None}
    if as_json:
        facts: dict[str, Any] = {"package": str(folder), "digest": package.digest}
        for name, calibration in made.items():
            facts |= {name: _facts(calibration)} if name else _facts(calibration)
        print_json(facts)
        return
    for name, calibration in made.items():
        _tell(folder / name, calibration)


def _facts(calibration: "Calibration") -> dict[str, Any]:
    images = len(calibration.deciding.values)
    return {"calibration": calibration.version, "images": images, "thresholds": _thresholds(calibration)}


def _tell(folder: Path, calibration: "Calibration") -> None:
    typer.echo(f"{folder}: calibration {calibration.version} on {len(calibration.deciding.values)} images")
    for row in _thresholds(calibration):
        low = "" if row["low"] is None else f"below {row['low']:.4g} or "
        typer.echo(
            f"  false alarms {row['rate']:.0%} (in truth {row['band'][0]:.1%} to {row['band'][1]:.1%}): "
            f"{row['score']} {low}above {row['high']:.4g}"
        )


def _thresholds(calibration: "Calibration") -> list[dict[str, Any]]:
    """Of each score and rate: the scores that are called anomalous, and the band (90 %) of the true rate."""
    from math import isfinite

    from medae.errors import UsageError

    rows: list[dict[str, Any]] = []
    for name, references in calibration.references.items():
        for rate in RATES:
            try:
                low, high = references.usual(rate)
            except UsageError:
                continue  # not to be told from so few
            band = list(references.band(rate))
            rows.append(
                {"score": name, "rate": rate, "low": low if isfinite(low) else None, "high": high, "band": band}
            )
    return rows
