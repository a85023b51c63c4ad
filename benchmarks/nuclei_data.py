"""Nuclei of real pictures for `benchmarks.nuclei`: DSB2018 and TNBC as lists of cases, and what is measured on them."""

import csv
import hashlib
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from scipy import ndimage

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
VALIDATION = 6
"""Pictures of the training part that choose the weights."""
SIDE = 256
"""A larger picture of DSB2018 is cut to its middle for training: patches are drawn by area, so that the few large ones
would be most of what is seen, while results are means over pictures."""
LEAST, SMOOTHED, WAIST = 30, 0.15, 0.05
"""Pixels of a nucleus, and parts of its radius. Chosen on training pictures."""
Labels = NDArray[np.int32]


@dataclass(frozen=True)
class Picture:
    """One picture and its nuclei."""

    id: str
    patient: str
    rgb: NDArray[np.uint8]
    """(R, W, 3)"""
    nuclei: Labels
    """(R, W), 0 or the number of a nucleus."""


def dsb2018(shared: Path) -> Iterator[Picture]:
    """220 pictures of many microscopes; instance maps."""
    with zipfile.ZipFile(shared / "dsb2018_stage1" / "dsb2018_stage1.zip") as archive:
        for name in sorted(name for name in archive.namelist() if name.startswith("images/")):
            image, labels = (
                Pillow.open(io.BytesIO(archive.read(each))) for each in (name, name.replace("images/", "labels/"))
            )
            stem = Path(name).stem
            yield Picture(stem, stem, np.asarray(image.convert("RGB")), np.asarray(labels).astype(np.int32))


def tnbc(shared: Path) -> Iterator[Picture]:
    """50 tiles of stained tissue of 11 patients; nuclei are the connected parts of the mask."""
    for path in sorted((shared / "tnbc_nuclei" / "images").glob("*.png")):
        with Pillow.open(path) as image, Pillow.open(path.parents[1] / "masks" / path.name) as mask:
            nuclei = ndimage.label(np.asarray(mask.convert("L")) > 127)[0]
            yield Picture(path.stem, path.stem[:2], np.asarray(image.convert("RGB")), nuclei.astype(np.int32))


def held_out(name: str, picture: Picture, fold: int) -> bool:
    """dsb2018: md5 of the id, of five parts the first; tnbc: in fold 0 the odd patients, in fold 1 the even ones."""
    if name == "dsb2018":
        return int(hashlib.md5(picture.id.encode()).hexdigest(), 16) % 5 == 0
    return int(picture.patient) % 2 != fold


def write_cases(name: str, pictures: list[Picture], fold: int, folder: Path) -> Path:
    """cases.csv with pictures and masks beside it; the validation part is drawn from the training part by md5."""
    folder.mkdir(parents=True)
    training = [picture for picture in pictures if not held_out(name, picture, fold)]
    drawn = sorted(training, key=lambda picture: hashlib.md5(f"validation {picture.id}".encode()).hexdigest())
    chosen = {picture.patient for picture in drawn[:VALIDATION]} if name == "dsb2018" else {drawn[0].patient}
    with (folder / "cases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", "image", "target", "patient", "split"])
        for picture in training:
            split = "validation" if picture.patient in chosen else "train"
            part = _middle(picture.nuclei.shape) if (name, split) == ("dsb2018", "train") else ...
            Pillow.fromarray(picture.rgb[part]).save(folder / f"{picture.id}.png")
            Pillow.fromarray((picture.nuclei > 0).astype(np.uint8)[part]).save(folder / f"{picture.id}-mask.png")
            rows.writerow([picture.id, f"{picture.id}.png", f"{picture.id}-mask.png", picture.patient, split])
    return folder / "cases.csv"


def _middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = [max((length - SIDE) // 2, 0) for length in shape]
    return tuple(slice(start, start + SIDE) for start in starts)


def otsu(name: str, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What needs no training: Otsu on the smoothed grey, or on the blue stain, smoothed as much as nuclei are large."""
    from skimage.color import rgb2gray, rgb2hed
    from skimage.filters import gaussian, threshold_otsu

    values = gaussian(rgb2hed(rgb)[..., 0], 3) if name == "tnbc" else gaussian(rgb2gray(rgb), 1)
    found: NDArray[np.bool_] = values > threshold_otsu(values)
    return ~found if name == "dsb2018" and found.mean() > 0.5 else found


def parted(mask: NDArray[np.bool_]) -> Labels:
    """Touching nuclei parted by a watershed on the distance to the background, in whose smoothing and in how deep a
    waist must be the picture's own nuclei are the measure: how deep the deepest place of half its parts lies at least.
    Specks are none.
    """
    from skimage.morphology import h_maxima
    from skimage.segmentation import watershed

    mask = _without_specks(mask, LEAST)
    parts, count = ndimage.label(mask)
    if not count:
        return parts.astype(np.int32)
    distance = ndimage.distance_transform_edt(mask)
    radius = float(np.median(ndimage.maximum(distance, parts, np.arange(1, count + 1))))
    distance = ndimage.gaussian_filter(distance, max(SMOOTHED * radius, 0.5))
    seeds = ndimage.label(h_maxima(distance, WAIST * radius) * mask)[0]
    found: Labels = watershed(-distance, seeds, mask=mask).astype(np.int32)
    return found


def parted_by_pixels(mask: NDArray[np.bool_]) -> Labels:
    """As the floor was published with: maxima 5 pixels apart of a distance smoothed by 2, whatever the picture."""
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    mask = _without_specks(mask, 20)
    distance = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), 2)
    peaks = peak_local_max(distance, min_distance=5, labels=ndimage.label(mask)[0], exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    found: Labels = watershed(-distance, seeds, mask=mask).astype(np.int32)
    return found


def _without_specks(mask: NDArray[np.bool_], least: int) -> NDArray[np.bool_]:
    from skimage.morphology import remove_small_objects

    kept: NDArray[np.bool_] = remove_small_objects(mask, max_size=least - 1)
    return kept


def measured(mask: NDArray[np.bool_], found: Labels, nuclei: Labels) -> dict[str, float]:
    """Dice of the mask; AP at an IoU of .5 and AJI (Kumar 2017, doi:10.1109/TMI.2017.2677499) of the nuclei found."""
    from medae.metrics.overlap import dice

    both = _common(found, nuclei)
    areas, true = both.sum(1, keepdims=True), both.sum(0, keepdims=True)
    iou = (both / np.maximum(areas + true - both, 1))[1:, 1:]
    hits = int((iou > 0.5).sum())  # above .5 each nucleus has one partner at most
    count = iou.shape[0] + iou.shape[1] - hits
    return {
        "Dice": dice(mask.astype(np.uint8), (nuclei > 0).astype(np.uint8), 1),
        "AP@.5": hits / count if count else 1.0,
        "AJI": _aji(both, iou),
    }


def _common(found: Labels, nuclei: Labels) -> NDArray[np.int64]:
    """Pixels of each pair (found, true), 0 the background."""
    _, one = np.unique(found, return_inverse=True)
    _, other = np.unique(np.append(nuclei, 0), return_inverse=True)
    first, second = found.max() + 1, int(other.max()) + 1
    assert one.max() + 1 <= first
    table: NDArray[Any] = np.bincount(found.ravel() * second + other.ravel()[:-1], minlength=first * second)
    return table.reshape(first, second).astype(np.int64)


def _aji(both: NDArray[np.int64], iou: NDArray[np.float64]) -> float:
    areas, true = both.sum(1)[1:], both.sum(0)[1:]
    if not len(true) or not len(areas):
        return float(len(true) == len(areas))
    best = iou.argmax(0)
    overlap = both[1:, 1:][best, np.arange(len(true))]
    missed = iou.max(0) == 0
    union = np.where(missed, true, areas[best] + true - overlap).sum()
    unused = np.setdiff1d(np.arange(len(areas)), best[~missed])
    return float(overlap[~missed].sum() / (union + areas[unused].sum()))
