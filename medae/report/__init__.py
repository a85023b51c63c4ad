"""report.html: an evaluation for people, in one file: no scripts, nothing loaded from anywhere, pictures inside.

It shows the images themselves, so it is to be kept as they are.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medae import record
from medae.io.answer import AnswerFile
from medae.package import Card, ModelPackage
from medae.report import charts
from medae.report.gallery import Gallery, Row
from medae.scores.baselines import is_baseline
from medae.tasks import Anomaly, Segmentation

__all__ = ["Gallery", "Row", "report_file"]

ROWS = 2000
"""Cases in the table at most; all of them are in cases.csv."""

MEANINGS = {
    "dice": "2 |A and T| / (|A| + |T|) of the answer A and the target T; 1 is perfect, and if neither has it.",
    "iou": "|A and T| / |A or T|; 1 is perfect.",
    "psnr": "Peak signal-to-noise ratio of the answer in dB: 10 log10(range² / mean squared error). Higher is better.",
    "ssim": "Structural similarity of the answer (Gaussian window of 11 pixels); at most 1.",
    "psnr_input": "The same of the input, before anything was restored.",
    "ssim_input": "The same of the input, before anything was restored.",
}

PROTOCOLS = {
    "segmentation": "Each image was answered as a whole, as in use, and compared with its target voxel by voxel on the"
    " image's own grid. A mean is the mean over cases: each counts the same, however large it is.",
    "restoration": "Each image was answered as a whole, as in use, and compared with its clean image; where the task"
    " has a corruption, the clean image was damaged by it, seeded by the case's place in the list. A mean is the mean"
    " over cases. Numbers for different value ranges cannot be compared.",
    "anomaly": "Each image was scored as a whole, as in use. AUROC is how often an abnormal image scores above a normal"
    " one (0.5 is chance); the chance value of the average precision is the share of abnormal images. A score that does"
    " not beat the trivial statistics beside it has learnt nothing that one line of code does not know.",
}


class Tile(NamedTuple):
    """One large number of the page's head."""

    name: str
    value: str
    note: str


def report_file(
    package: ModelPackage, rows: Sequence[Row], metrics: Mapping[str, Any], gallery: Gallery, *, cases: str
) -> AnswerFile:
    """The page. rows: all cases; metrics: as in metrics.json; cases: where they came from, in words."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    template = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template.filters["number"] = number
    card = package.card
    measured = [row for row in rows if row.reason is None]
    page = template.get_template("page.html").render(
        card=card,
        tiles=_tiles(card, metrics),
        warnings=metrics.get("verdict", []),
        over_cases=_over_cases(metrics),
        detection=_detection_rows(metrics),
        voxels=metrics.get("voxels"),
        protocol=PROTOCOLS[card.task.kind],
        cases=cases,
        count=len(measured),
        charts=charts.of_task(card.task, measured),
        groups=gallery.groups(),
        labels=card.task.labels if isinstance(card.task, Segmentation) else (),
        columns=_columns(card, measured),
        ordered=gallery.ordered(measured)[:ROWS],
        left_out=max(0, len(measured) - ROWS),
        failed=[row for row in rows if row.reason is not None],
        facts=_facts(package),
    )
    return AnswerFile("report.html", "text/html", page.encode())


def number(value: float | None) -> str:
    """For a table: four digits; a dash where there is none."""
    if value is None or math.isnan(value):
        return "\N{EN DASH}"
    return "\N{INFINITY}" if value == math.inf else f"{value:.4g}"


def _tiles(card: Card, metrics: Mapping[str, Any]) -> list[Tile]:
    if isinstance(card.task, Anomaly):
        overall = metrics["detection"]["all"]
        score = next(numbers for numbers in overall.values() if isinstance(numbers, Mapping))
        note = f"{overall['normal']} normal, {overall['abnormal']} abnormal images"
        found = [Tile("AUROC", number(score["auroc"]), note)]
        found.append(Tile("Average precision", number(score["average_precision"]), note))
        return found
    names = ("dice", "iou") if isinstance(card.task, Segmentation) else ("psnr", "ssim")
    return [_tile(name, metrics) for name in names if name in metrics]


def _detection_rows(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Group -> its counts and a row for each score and baseline; the scores first, then the best baselines."""
    found: dict[str, dict[str, Any]] = {}
    for kind, group in metrics.get("detection", {}).items():
        rows = [
            {"name": name, "trivial": is_baseline(name), **numbers}
            for name, numbers in group.items()
            if isinstance(numbers, Mapping)
        ]
        rows.sort(key=lambda row: (row["trivial"], -(row["auroc"] or 0) if row["trivial"] else 0))
        found[kind] = {"normal": group["normal"], "abnormal": group["abnormal"], "rows": rows}
    return found


def _columns(card: Card, rows: Sequence[Row]) -> list[str]:
    """Of the table of cases; baselines are many, and cases.csv has them."""
    names = dict.fromkeys(name for row in rows for name in row.values)
    return [name for name in names if card.task.kind != "anomaly" or not is_baseline(name)]


def _tile(name: str, metrics: Mapping[str, Any]) -> Tile:
    over = metrics[name]
    unit = " dB" if name == "psnr" else ""
    note = f"{number(over['lowest'])} to {number(over['highest'])} over the cases"
    if f"{name}_input" in metrics:
        note = f"the input had {number(metrics[f'{name}_input']['mean'])}{unit}"
    return Tile({"dice": "Dice", "iou": "IoU"}.get(name, name.upper()), number(over["mean"]) + unit, note)


def _over_cases(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, float | None], str]]:
    """(name, numbers, what it means) of everything that was averaged over the cases."""
    found = []
    for name, numbers in metrics.items():
        if isinstance(numbers, Mapping) and "mean" in numbers and not is_baseline(name):
            kind = next((kind for kind in ("dice_", "iou_") if name.startswith(kind)), "")
            meaning = f"Of the label {name.removeprefix(kind)} alone." if kind else MEANINGS.get(name, "")
            found.append((name, numbers, meaning))
    return found


def _facts(package: ModelPackage) -> dict[str, str]:
    card, field = package.card, package.card.receptive_field
    versions = ", ".join(f"{name} {version}" for name, version in record.versions().items())
    return {
        "Network": f"{card.network.get('kind', '?')}, {field.dims}-D; an answer sees {field.radius} voxels around it",
        "Input": f"{card.channels_in} channel(s); {_prepared(card)}",
        "Training data": card.training_data or "not stated",
        "Licence of the data": card.licence or "not stated",
        **_calibrations(package),
        "Package digest": package.digest,
        "Evaluated": record.now().isoformat(),
        "Versions": versions,
        "Commit": record.commit() or "an installed release",
    }


def _calibrations(package: ModelPackage) -> dict[str, str]:
    """Its own and, where it has a gate, those of the models inside."""
    said = {"Calibration": package, "Calibration of the gate": package.gate, "Calibration of shapes": package.shape}
    inside = {name: part for name, part in said.items() if part is not None}
    return {name: part.calibration.version if part.calibration else "none" for name, part in inside.items()}


def _prepared(card: Card) -> str:
    preparation = card.preparation
    said = [f"intensity {preparation.intensity.kind.replace('_', ' ')}"]
    if preparation.spacing_mm:
        said.append("resampled to " + " x ".join(f"{size:g}" for size in preparation.spacing_mm) + " mm")
    if preparation.orientation:
        said.append(f"turned to {preparation.orientation}")
    return ", ".join(said)
