"""What a package or an image is, and whether a model would take it; nothing is inferred."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medae import package as packages
from medae.batch.item import Item
from medae.batch.sources import fetch
from medae.batch.work import read_item
from medae.errors import InputError, UnknownModel
from medae.image import Image
from medae.io import DEFAULT_LIMITS, read_image
from medae.memory import Footprint, footprint, needed
from medae.package import ModelPackage


def describe(thing: str) -> dict[str, Any]:
    """A package by its folder or name, or an image by its file or folder, as plain data.

    Raises UnknownModel for neither, and what reading either raises.
    """
    path = Path(thing)
    if thing in packages.shipped() or (path / "card.json").is_file():
        return describe_package(packages.load(thing))
    if path.exists():
        return describe_image(read_image(path))
    raise UnknownModel(f"{thing}: neither a file or folder nor the name of a model; `medae models` lists these")


def describe_package(package: ModelPackage) -> dict[str, Any]:
    """Its card without the experiment, its digest, its size and what it and the packages inside were calibrated on."""
    return {
        "what": "model package",
        "digest": package.digest,
        **package.card.model_dump(mode="json", exclude={"experiment"}),
        "parameters": int(sum(np.size(weights) for weights in package.weights.values())),
        "calibration": _calibration(package),
        "gate_calibration": _calibration(package.gate),
        "shape_calibration": _calibration(package.shape),
    }


def _calibration(package: ModelPackage | None) -> dict[str, Any] | None:
    if package is None or (calibration := package.calibration) is None:
        return None
    count = len(calibration.deciding.values)
    return {"version": calibration.version, "score": calibration.score, "references": count}


def describe_image(image: Image) -> dict[str, Any]:
    """Its size, place and range of values; nothing that says whose image it is."""
    slices, rows, columns = image.geometry.shape
    return {
        "what": "image",
        "format": image.source.format,
        "volumes": image.volumes,
        "channels": image.channels,
        "slices": slices,
        "rows": rows,
        "columns": columns,
        "type": str(image.pixels.dtype),
        **_values(image.pixels),
        "spacing": [round(length, 6) for length in image.geometry.spacing],
        "unit": image.geometry.unit,
        "axes": image.geometry.axis_codes,
    }


def _values(pixels: NDArray[Any]) -> dict[str, Any]:
    """The lowest and the highest number, and how many values are none; JSON has no NaN."""
    finite = np.isfinite(pixels)
    if finite.all():
        return {"values": [pixels.min().item(), pixels.max().item()]}
    numbers = pixels[finite]
    extremes = [numbers.min().item(), numbers.max().item()] if numbers.size else None
    return {"values": extremes, "not_finite": pixels.size - numbers.size}


def list_models() -> list[dict[str, Any]]:
    """The models that come with medae."""
    found = {name: ModelPackage.load(folder) for name, folder in packages.shipped().items()}
    return [
        {"name": name, "version": package.card.version, "task": package.card.task.kind, "digest": package.digest}
        | {"intended_use": package.card.intended_use}
        for name, package in found.items()
    ]


@dataclass(frozen=True)
class Finding:
    """Whether an item would be accepted; `said` describes it or gives the reason."""

    item: Item
    accepted: bool
    said: str
    code: str = ""
    """Of the reason, as in results.csv."""
    footprint: Footprint | None = None
    """Of an accepted item, given a package."""

    def __str__(self) -> str:
        return f"{self.item.id}: {'accepted' if self.accepted else f'not accepted ({self.code})'}: {self.said}"


def check_item(item: Item, package: ModelPackage | None) -> Finding:
    """Read an item and, given a package, prepare it as its network would see it."""
    try:
        fetched = fetch(item.files, DEFAULT_LIMITS)
        image = read_item(item, fetched.sources)
        needs = None if package is None else footprint(package, image, stored=fetched.fingerprint.size)
    except InputError as error:
        return Finding(item, False, str(error), error.code)
    volumes = f"{image.volumes} volumes of " if image.volumes > 1 else ""
    shape = " x ".join(str(length) for length in (image.channels, *image.geometry.shape))
    said = f"{image.source.format}, {volumes}{shape} (channels, slices, rows, columns), {image.pixels.dtype}"
    return Finding(item, True, said, footprint=needs)


def memory_of(findings: Sequence[Finding], package: str) -> int | None:
    """Bytes of main memory that a run over the accepted items takes at its peak, at most; None without any."""
    return max(needed(package, [finding.footprint for finding in findings if finding.footprint]), default=None)


def show(description: dict[str, Any]) -> None:
    """A description on stdout: a line for each value, nested names with dots."""
    lines = list(_lines(description, ""))
    width = max(len(name) for name, _ in lines)
    console = Console(soft_wrap=True, highlight=False)  # a long value, such as a digest, is copied from here: never cut
    for name, value in lines:
        console.print(f"[bold]{name:<{width}}[/]  {escape(value)}")


def _lines(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _lines(part, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value, 1):
            yield from _lines(part, f"{name}.{number}")
    elif value not in (None, "", []):
        yield name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def show_models(models: list[dict[str, Any]]) -> None:
    """The list of models as a table on stdout."""
    if not models:
        Console().print("No model comes with this medae; train one, and give its folder.")
        return
    table = Table(*models[0])
    for model in models:
        table.add_row(*map(str, model.values()))
    Console().print(table)
