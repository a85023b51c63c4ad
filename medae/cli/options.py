"""The words that several commands share, and what they do before they start."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from medae.verdict import GateLimits

Package = Annotated[
    str, typer.Argument(metavar="PACKAGE", help="A folder, or a name from `medae models`.", show_default=False)
]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Images, folders of them, DICOM series, patterns.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
GateReview = Annotated[
    float | None,
    typer.Option(help="False alarms of the model's gate that are accepted before `review`: .05.", show_default=False),
]
GateReject = Annotated[float | None, typer.Option(help="The same before `reject`: .01.", show_default=False)]
Uncertainty = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WAY", help="soft_dice, flips, dropout or ensemble: how unsure the answer is by this; again for more."
    ),
]
Members = Annotated[
    list[str] | None,
    typer.Option("--member", metavar="PACKAGE", help="Another model of the ensemble; again for more."),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Dicom = Annotated[
    list[str] | None,
    typer.Option(
        "--dicom",
        metavar="K[=V]",
        help="How answers to DICOM are written: seg=labelmap, empty_frames, map=seg,parametric,overlay, "
        "compress=jpeg-ls|jpeg-2000|rle, report, deidentify.",
        show_default=False,
    ),
]
IdKey = Annotated[
    Path | None,
    typer.Option(help="A file with a secret key: ids in names and tables become keyed hashes.", show_default=False),
]
Series = Annotated[
    str | None,
    typer.Option(
        metavar="N|UID|all",
        help="Of several DICOM series in the inputs one, by its number (a wrong one lists them) or its UID; all: each.",
        show_default=False,
    ),
]
RegularGrid = Annotated[
    bool,
    typer.Option(
        "--regular-grid",
        help="Make unevenly spaced slices even (else refused), those of a tilted gantry upright; answers in NIfTI.",
    ),
]
Output = Literal["default", "probabilities", "labels-nifti", "summary", "overlay"]


def gate_limits(review: float | None, reject: float | None) -> "GateLimits":
    from pydantic import ValidationError

    from medae.verdict import GateLimits

    try:
        return GateLimits.of(review, reject)
    except ValidationError:
        raise typer.BadParameter("rates from 0 to below 1, and reject not above review", param_hint="--gate") from None


def keep_heap() -> None:
    """This process only infers, and ends with the command."""
    from medae.backends import torch as backend

    backend.keep_heap()


def require_existing(inputs: list[str]) -> None:
    from medae.batch.manifest import expand

    for value in inputs:
        if not expand(value):
            raise typer.BadParameter(f"{value}: no such file or folder", param_hint="INPUT")
