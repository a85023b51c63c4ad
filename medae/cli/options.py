"""The words that several commands share, and what they do before they start."""

from pathlib import Path
from typing import Annotated, Literal

import typer

Package = Annotated[
    str, typer.Argument(metavar="PACKAGE", help="A folder, or a name from `medae models`.", show_default=False)
]
Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Images, folders of them, DICOM series, patterns.", show_default=False),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
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
Output = Literal["default", "probabilities", "labels-nifti", "summary", "overlay"]


def keep_heap() -> None:
    """This process only infers, and ends with the command."""
    from medae.backends import torch as backend

    backend.keep_heap()


def require_existing(inputs: list[str]) -> None:
    from medae.batch.manifest import expand

    for value in inputs:
        if not expand(value):
            raise typer.BadParameter(f"{value}: no such file or folder", param_hint="INPUT")
