"""Does the gate tell a model's own cases from other modalities and from damaged inputs, and does doubt follow error?

Two models with a gate, trained here: nuclei in fluorescence pictures (2-D, DSB2018, grey_dark) and the hippocampus in
MR (3-D, MSD Task04). Own cases are test splits by md5 of the name, which the gate has not seen. Reported: AUROC of the
gate's score for own test cases against each kind of stranger, the verdicts at the usual limits, Spearman's correlation
of gate and uncertainties with Dice over own cases clean and damaged, and the area under the risk-coverage curve beside
that of the mean soft-max. All doubts are those that an answer comes with; `combined` is the door's own.

    python -m benchmarks.gate --data shared/data [--only nuclei] [--seeds 0 1 2] [--json results.jsonl] [--work FOLDER]
"""

import argparse
import csv
import hashlib
import json
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr

from benchmarks.lines import Lines
from medae.experiment import Experiment
from medae.image import Image
from medae.io import read_image, read_labels
from medae.metrics.selection import UNCERTAINTY, risk_coverage
from medae.package import ModelPackage
from medae.predictor import USUAL
from medae.training import train
from medae.training.gate import SCORE
from medae.training.state import LAST
from medae.uncertainty import RepeatedPredictor, disagreement

WAYS = ("soft_dice", "flips", "dropout")
"""Of uncertainty."""
Array = NDArray[Any]
Damage = Callable[[Array, np.random.Generator], Array]
"""(C, S, R, W) and chances -> the same shape and range."""


def _spread(pixels: Array) -> tuple[float, float]:
    low, high = np.percentile(pixels, [0.5, 99.5])
    return float(low), float(max(high - low, 1e-6))


def _like(values: Array, pixels: Array) -> Array:
    """In the type and steps of the image: no scanner stores fractions of them, which would give the damage away."""
    if pixels.dtype == np.uint8:
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    levels = np.unique(pixels).astype(float)
    step = np.diff(levels).min() if len(levels) > 1 else 1.0
    made: Array = (levels[0] + np.rint((values - levels[0]) / step) * step).astype(np.float32)
    return made


def noise(pixels: Array, rng: np.random.Generator) -> Array:
    return _like(pixels + 0.3 * _spread(pixels)[1] * rng.standard_normal(pixels.shape), pixels)


def blur(pixels: Array, rng: np.random.Generator) -> Array:
    return _like(gaussian_filter(pixels.astype(float), (0, 0, 3, 3)), pixels)


def invert(pixels: Array, rng: np.random.Generator) -> Array:
    low, span = _spread(pixels)
    return _like(2 * low + span - pixels.astype(float), pixels)


def saturate(pixels: Array, rng: np.random.Generator) -> Array:
    low, span = _spread(pixels)
    return _like(np.clip(pixels, low + 0.05 * span, low + 0.3 * span), pixels)


def shade(pixels: Array, rng: np.random.Generator) -> Array:
    """An illumination or coil field from one corner to the other, 0.2 to 3 times."""
    axes = [np.linspace(0, 1, length) for length in pixels.shape[-2:]]
    field = 0.2 * 15 ** ((axes[0][:, None] + axes[1][None]) / 2)
    low, _ = _spread(pixels)
    return _like(low + (pixels.astype(float) - low) * field, pixels)


def gap(pixels: Array, rng: np.random.Generator) -> Array:
    """A quarter of the rows is missing."""
    result = pixels.copy()
    rows = pixels.shape[-2]
    start = int(rng.integers(rows - rows // 4))
    result[..., start : start + rows // 4, :] = pixels.min()
    return result


def _as_it_is(pixels: Array, rng: np.random.Generator) -> Array:
    return pixels


DAMAGES: Mapping[str, Damage] = {f.__name__: f for f in (noise, blur, invert, saturate, shade, gap)}
MILD: Mapping[str, Damage] = {
    "noise/3": lambda p, rng: _like(p + 0.1 * _spread(p)[1] * rng.standard_normal(p.shape), p),
    "blur/2": lambda p, rng: _like(gaussian_filter(p.astype(float), (0, 0, 1.5, 1.5)), p),
}


@dataclass(frozen=True)
class Own:
    """A test case of the model's own."""

    image: Image
    target: Image


@dataclass(frozen=True)
class Bench:
    """One model, what is its own and what is not."""

    experiment: Experiment
    own: list[Own]
    strangers: Mapping[str, list[Image]]


def nuclei(data: Path, work: Path, seed: int) -> Bench:
    root = work / "nuclei"
    rows = _unpacked(data / "dsb2018_stage1", root)
    experiment = Experiment.model_validate(
        {
            "name": "nuclei",
            "data": {"kind": "cases", "path": root / "cases.csv"},
            "task": {"kind": "segmentation", "labels": [{"name": "nucleus", "colour": [255, 210, 0]}]},
            "network": {"kind": "unet", "features": [16, 32, 64], "strides": [2, 2], "dropout": 0.1},
            "objectives": [{"kind": "dice_ce"}],
            "augment": {"flip": ["rows", "columns"], "rot90": True, "intensity": {}, "noise": {}},
            "gate": {"steps": 500, "shape": False},
            "training": _training(seed, steps=500, patch=[96, 96]),
        }
    )
    own = [Own(read_image(root / row["image"]), read_labels(root / row["target"])) for row in rows]
    return Bench(experiment, own, dict(_pictures(data)))


def hippocampus(data: Path, work: Path, seed: int) -> Bench:
    source = data / "msd_task04_hippocampus"
    names = sorted(path.name for path in (source / "imagesTr").glob("*.nii.gz"))
    tested = sorted(names, key=lambda name: hashlib.md5(name.encode()).hexdigest())[:40]
    known = [name for name in names if name not in tested]
    root = work / "hippocampus"
    root.mkdir(parents=True, exist_ok=True)
    _write_cases(
        root / "cases.csv",
        [
            {
                "id": name.removesuffix(".nii.gz"),
                "image": source / "imagesTr" / name,
                "target": source / "labelsTr" / name,
                "split": "test" if name in tested else "validation" if known.index(name) % 10 == 0 else "train",
            }
            for name in names
        ],
    )
    experiment = Experiment.model_validate(
        {
            "name": "hippocampus",
            "data": {"kind": "cases", "path": root / "cases.csv"},
            "preparation": {"channels": 1, "spacing_mm": [1, 1, 1], "intensity": {"kind": "zscore"}},
            "task": {
                "kind": "segmentation",
                "labels": [
                    {"name": "anterior", "colour": [230, 80, 60]},
                    {"name": "posterior", "colour": [60, 120, 230]},
                ],
            },
            "network": {"kind": "unet", "dims": 3, "features": [8, 16, 32], "strides": [2, 2], "dropout": 0.1},
            "objectives": [{"kind": "dice_ce"}],
            "augment": {"intensity": {"gain": 0.3, "offset": 0.3, "gamma": 0}, "noise": {"level": 0.1}},
            "gate": {"steps": 400, "shape": False},
            "training": _training(seed, steps=400, patch=[32, 48, 32]) | {"batch_size": 2},
        }
    )
    own = [Own(read_image(source / "imagesTr" / name), read_labels(source / "labelsTr" / name)) for name in tested]
    return Bench(experiment, own, dict(_volumes(data)))


def _training(seed: int, *, steps: int, patch: list[int]) -> dict[str, Any]:
    return {
        "steps": steps,
        "validate_every": steps // 2,
        "batch_size": 8,
        "patch": patch,
        "ema": 0.98,
        "seed": seed,
        "threads": 1,
        "pictures": 0,
        "learning_rate": 0.002,
    }


def _unpacked(source: Path, root: Path) -> list[dict[str, str]]:
    """Fluorescence pictures with binary masks and their list; the test rows."""
    with (source / "index.csv").open() as stream:
        ids = [row["id"] for row in csv.DictReader(stream) if row["modality_by_colour"] in ("gray_dark", "grey_dark")]
    rows = []
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(next(source.glob("*.zip"))) as archive:
        members = {Path(name).parts[-2:]: name for name in archive.namelist() if name.endswith(".png")}
        for at, id_ in enumerate(ids):
            tested = int(hashlib.md5(id_.encode()).hexdigest(), 16) % 5 == 0
            (root / f"images/{id_}.png").write_bytes(archive.read(members["images", f"{id_}.png"]))
            with archive.open(members["labels", f"{id_}.png"]) as stream:
                mask = np.asarray(Picture.open(stream)) > 0
            Picture.fromarray(mask.astype(np.uint8)).save(root / f"masks/{id_}.png")
            split = "test" if tested else "validation" if at % 10 == 0 else "train"
            rows.append({"id": id_, "image": f"images/{id_}.png", "target": f"masks/{id_}.png", "split": split})
    _write_cases(root / "cases.csv", rows)
    return [row for row in rows if row["split"] == "test"]


def _write_cases(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["id", "image", "target", "split"])
        writer.writeheader()
        writer.writerows(rows)


def _pictures(data: Path, each: int = 30) -> Iterator[tuple[str, list[Image]]]:
    """Grey pictures of other kinds: CT, MR, H&E in grey, bright-field grey."""
    ct = sorted((data / "ldct_png_pairs" / "normal_dose").glob("*.png"))
    mr = sorted((data / "brain_mri_tumor_navoneel" / "no").glob("*"))[:each]
    yield "CT", [_grey(Picture.open(path)) for path in ct]
    yield "brain MR", [_grey(Picture.open(path)) for path in mr if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    with zipfile.ZipFile(data / "kather2016_colorectal_subset" / "tiles.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.lower().endswith((".tif", ".png")))
        yield "H&E in grey", [_grey(Picture.open(archive.open(name))) for name in names[:: max(1, len(names) // each)]]


def _grey(picture: Picture.Image) -> Image:
    return Image.from_picture(np.asarray(picture.convert("L")))


def _volumes(data: Path) -> Iterator[tuple[str, list[Image]]]:
    """Volumes that are no hippocampus, cut to its size: other MR and other parts, CT where there is one."""
    rng = np.random.default_rng(0)
    crops: list[Image] = []
    for path in sorted((data / "nifti_zoo").rglob("*.nii*")):
        try:
            image = read_image(path)
        except Exception:  # the zoo holds broken files and series on purpose
            continue
        crops += _crops(image, rng, 6)
    yield "other MR and CT", crops
    smooth = [
        Image(gaussian_filter(rng.standard_normal((1, 36, 50, 36)), (0, 2, 2, 2)).astype(np.float32), crop.geometry)
        for crop in crops[:30]
        if crop.geometry.shape == (36, 50, 36)
    ]
    yield "smooth noise", smooth


def _crops(
    image: Image, rng: np.random.Generator, count: int, size: tuple[int, int, int] = (36, 50, 36)
) -> list[Image]:
    if image.channels != 1 or any(have < need for have, need in zip(image.geometry.shape, size, strict=True)):
        return []
    made = []
    for _ in range(count):
        at = [int(rng.integers(have - need + 1)) for have, need in zip(image.geometry.shape, size, strict=True)]
        part = tuple(slice(start, start + length) for start, length in zip(at, size, strict=True))
        made.append(Image(image.pixels[(slice(None), *part)], image.geometry.moved(at, size)))
    return made


def measure(bench: Bench, package: ModelPackage, ways: Sequence[str]) -> dict[str, Any]:
    """All numbers of one trained model."""
    repeated = RepeatedPredictor(package, ways)
    looks = {name: [_looked(repeated, image) for image in images] for name, images in bench.strangers.items()}
    rng = np.random.default_rng(0)
    answers: list[dict[str, float]] = []
    for name, damage in {"own": _as_it_is, **MILD, **DAMAGES}.items():
        images = [case.image.with_pixels(damage(case.image.pixels, rng)) for case in bench.own]
        seen = [_looked(repeated, image) for image in images]
        if name not in MILD:
            looks[name] = seen
        answers += [_answered(repeated, image, case.target) for image, case in zip(images, bench.own, strict=True)]
    return {
        "auroc": {name: _auroc(looks["own"], looked) for name, looked in looks.items() if name != "own"},
        "pooled": _auroc(looks["own"], [look for name, looked in looks.items() if name != "own" for look in looked]),
        "verdicts": {name: dict(Counter(look.verdict for look in looked)) for name, looked in looks.items()},
        **_doubt(answers),
    }


class Look(NamedTuple):
    """What the gate says of one input."""

    strangeness: float
    verdict: str


def _looked(predictor: RepeatedPredictor, image: Image) -> Look:
    """By the image alone: a stranger's answer has no shape to speak of."""
    gate = predictor.gate
    assert gate is not None
    seen = gate.look(image)
    verdict = gate.judge(seen, image.with_pixels(np.zeros_like(image.pixels[:1], np.uint8)), USUAL, shape=False)
    return Look(np.inf if seen.scored is None else seen.scored.scores[SCORE], verdict.verdict)


def _answered(predictor: RepeatedPredictor, image: Image, target: Image) -> dict[str, float]:
    prediction = predictor(image, probabilities=True)
    soft = prediction.probabilities
    assert soft is not None
    background = 1 - soft.pixels.sum(0) if len(soft.pixels) > 1 else 1 - soft.pixels[0]
    return {
        "dice": 1 - disagreement([prediction.image.pixels, target.pixels]),
        **{
            name.removeprefix(UNCERTAINTY): at for name, at in prediction.scores.items() if name.startswith(UNCERTAINTY)
        },
        "softmax": 1 - float(np.maximum(soft.pixels.max(0), background).mean()),
    }


def _auroc(own: list[Look], others: list[Look]) -> float:
    from sklearn.metrics import roc_auc_score

    strange = [min(look.strangeness, 1e12) for look in [*own, *others]]
    return float(roc_auc_score([0] * len(own) + [1] * len(others), strange))


def _doubt(answers: list[dict[str, float]]) -> dict[str, Any]:
    """How well each doubt orders the answers by their error."""
    risk = 1 - np.array([answer["dice"] for answer in answers])
    doubts = {name: np.array([answer[name] for answer in answers]) for name in answers[0] if name != "dice"}
    return {
        "cases": len(answers),
        "dice": float(1 - risk.mean()),
        "spearman": {name: float(-spearmanr(doubt, 1 - risk).statistic) for name, doubt in doubts.items()},
        "aurc": {name: risk_coverage(doubt, risk).area for name, doubt in doubts.items()}
        | {"none": float(risk.mean())},
    }


BENCHES: Mapping[str, Callable[[Path, Path, int], Bench]] = {"nuclei": nuclei, "hippocampus": hippocampus}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", choices=BENCHES, nargs="*", default=list(BENCHES))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--ways", choices=WAYS, nargs="*", default=list(WAYS), help="of uncertainty")
    parser.add_argument("--cases", type=int, help="so many own test cases at most")
    parser.add_argument("--json", type=Path, help="the numbers of every run; what is there is not made again")
    parser.add_argument("--work", type=Path, help="keeps the models; trainings that were cut off there go on")
    arguments = parser.parse_args()
    lines = Lines(arguments.json)
    for name in arguments.only:
        for seed in arguments.seeds:
            with _folder(arguments.work, f"{name}-{seed}") as work:
                make = partial(trained_and_measured, name, arguments.data, work, seed, arguments.ways, arguments.cases)
                print(json.dumps(lines.made({"model": name, "seed": seed}, make)), flush=True)


@contextmanager
def _folder(kept: Path | None, name: str) -> Iterator[Path]:
    if kept is not None:
        yield kept / name
        return
    with tempfile.TemporaryDirectory() as work:
        yield Path(work)


def trained_and_measured(
    name: str, data: Path, work: Path, seed: int, ways: Sequence[str], cases: int | None
) -> dict[str, Any]:
    """All numbers of one training."""
    bench = BENCHES[name](data, work, seed)
    package = train(bench.experiment, work / "run", resume=(work / "run" / LAST).exists(), progress=False)
    return measure(replace(bench, own=bench.own[:cases]), package, ways)


if __name__ == "__main__":
    main()
