"""Public anomaly data sets in the layouts in which they are published: which images there are, in which split.

Nothing is downloaded: `root` is where the user has put the set. Splits are the published ones; where a set has none,
they follow from the patients' or slides' names alone, so that everybody's are the same.

    collection            layout                                              normal / abnormal
    pneumoniamnist        pneumoniamnist*.npz (MedMNIST)                      normal / pneumonia; official splits
    crchistophenotypes    patches.npz, patient_id and is_cancerous            by patient
    kather2016            index.csv and tiles.zip, or folders 01_TUMOR ...    stroma, mucosa / tumour, lympho, debris
    brain_mri             no/ and yes/ (Chakrabarty)                          no / tumour; exact duplicates left out
    medianomaly           images/ and data.json (Cai 2025, arXiv:2404.04518)  0 / 1
    bmad                  train/good, test/good, test/Ungood (Bao 2024)       good / Ungood, masks where there are
"""

import csv
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medae.data.cases import Case, Data, LoadedCase, Split
from medae.errors import SettingsError
from medae.image import Image
from medae.metrics.detection import NORMAL

FOLDS = 5

CollectionName = Literal["pneumoniamnist", "crchistophenotypes", "kather2016", "brain_mri", "medianomaly", "bmad"]


@dataclass(frozen=True)
class Item:
    """One image of a set."""

    case: Case
    read: Callable[[], NDArray[Any]] | None
    """(R, W) or (R, W, 3); None: the case names its file."""


class Collection(Data):
    """A public data set in its own layout; `fold` chooses the test part of those that are divided into five."""

    kind: Literal["collection"] = "collection"
    name: CollectionName
    root: Path
    """The folder that holds it. Relative to where medae is started."""
    fold: int = Field(default=0, ge=0, lt=FOLDS)
    """Of kather2016 and brain_mri."""
    side: int | None = Field(default=None, ge=8, le=1024)
    """Pixels along each side that images are brought to; null: as they are. brain_mri has 128 then."""
    licence: str | None = None
    """Of the images; goes into the model card."""

    def all_cases(self) -> list[Case]:
        return [item.case for item in self._items().values()]

    def read(self, case: Case, *, labels: int | None = None) -> LoadedCase:
        item = self._items().get(case.id)
        if item is None:
            raise SettingsError(f"the collection {self.name} has no case {case.id}")
        if item.read is not None:
            return LoadedCase(case, Image.from_picture(_sized(item.read(), self.side)), None)
        loaded = super().read(case, labels=labels)
        if self.side is None:
            return loaded
        target = None if loaded.target is None else _resized(loaded.target, self.side, labels=True)
        return LoadedCase(case, _resized(loaded.image, self.side), target)

    def _items(self) -> Mapping[str, Item]:
        if not self.root.is_dir():
            raise SettingsError(f"{self.root}: no such folder; it should hold the set {self.name}")
        return _items(self.name, self.root, self.fold)


@cache
def _items(name: CollectionName, root: Path, fold: int) -> Mapping[str, Item]:
    return {item.case.id: item for item in _READERS[name](root, fold)}


def _pneumoniamnist(root: Path, fold: int) -> Iterator[Item]:
    files = sorted(root.glob("pneumoniamnist*.npz"))
    if not files:
        raise SettingsError(f"{root}: holds no pneumoniamnist*.npz")
    with np.load(files[0]) as arrays:
        parts: Sequence[tuple[str, Split]] = (("train", "train"), ("val", "validation"), ("test", "test"))
        for part, split in parts:
            images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"].ravel()
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield _of_array(f"{part}-{number:04d}", image, split, "pneumonia" if label else NORMAL)


def _crchistophenotypes(root: Path, fold: int) -> Iterator[Item]:
    """Test: the 15 patients with the smallest md5 of "crc<id>"; validation: the next six."""
    with np.load(root / "patches.npz") as arrays:
        images, patients, cancerous = arrays["images"], arrays["patient_id"].astype(int), arrays["is_cancerous"]
    order = sorted(np.unique(patients).tolist(), key=lambda patient: _md5(f"crc{patient}"))
    split_of: dict[int, Split] = {
        patient: "test" if rank < 15 else "validation" if rank < 21 else "train" for rank, patient in enumerate(order)
    }
    for number, (image, patient, label) in enumerate(zip(images, patients.tolist(), cancerous, strict=True)):
        name = "cancerous" if label else NORMAL
        yield _of_array(f"patch-{number:05d}", image, split_of[patient], name, f"patient-{patient}")


_KATHER = {"tumor": "tumour", "lympho": "lympho", "debris": "debris", "stroma": NORMAL, "mucosa": NORMAL}


def _kather2016(root: Path, fold: int) -> Iterator[Item]:
    """By slide: those of one fold are the test; of the others, the one with the fewest normal tiles validates."""
    with open(root / "index.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] in _KATHER]
    slides = [_slide(row["original_name"]) for row in rows]
    fold_of = _folds(slides)
    fewest = _fewest(rows, slides, [fold_of[slide] == fold for slide in slides])
    archive = zipfile.ZipFile(root / "tiles.zip")
    for row, slide in zip(rows, slides, strict=True):
        data = archive.read(row["file"])
        name = row["file"].replace("/", "-").removesuffix(".png")
        split: Split = "test" if fold_of[slide] == fold else "validation" if slide == fewest else "train"
        yield _of_array(name, data, split, _KATHER[row["class"]], slide)


def _fewest(rows: Sequence[Mapping[str, str]], slides: Sequence[str], tested: Sequence[bool]) -> str:
    """The slide with the fewest normal tiles, two at least, that is not tested."""
    normal = [
        slide
        for row, slide, test in zip(rows, slides, tested, strict=True)
        if _KATHER[row["class"]] == NORMAL and not test
    ]
    enough = [slide for slide in set(normal) if normal.count(slide) > 1]
    return min(enough, key=lambda slide: (normal.count(slide), slide))


def _slide(name: str) -> str:
    """CRC-Prim-HE-03 of 10009_CRC-Prim-HE-03_009.tif_Row_301_Col_151.tif; else the name itself."""
    start = name.find("CRC-Prim-HE-")
    return name if start < 0 else name[start : start + len("CRC-Prim-HE-00")]


def _brain_mri(root: Path, fold: int) -> Iterator[Item]:
    """Tumours are all test; images without are divided into folds. The first of exact duplicates stays."""
    with open(root / "index.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if not row["exact_pixel_duplicate_of"]]
    normal = sorted(row["file"] for row in rows if row["file"].startswith("no"))
    fold_of = {name: number % FOLDS for number, name in enumerate(sorted(normal, key=_md5))}
    for row in rows:
        name = row["file"]
        split = _split_of(fold_of[name], fold) if name in fold_of else "test"
        label = NORMAL if name in fold_of else "tumour"
        case = Case(id=_identifier(name), image=None, split=split, label=label)
        yield Item(case, _grey_reader(root / name))


def _medianomaly(root: Path, fold: int) -> Iterator[Item]:
    lists = json.loads((root / "data.json").read_text())
    for part in ("train", "test"):
        for label, names in lists[part].items():
            for name in names:
                split: Split = "validation" if part == "train" and _held_out(name) else part
                yield Item(_named(root / "images" / name, name, split, NORMAL if label == "0" else "abnormal"), None)


def _bmad(root: Path, fold: int) -> Iterator[Item]:
    """With or without a folder `img` below, and masks in `label` (or `anomaly_mask`) beside it."""
    parts: Sequence[tuple[str, Split]] = (("train", "train"), ("valid", "validation"), ("test", "test"))
    for part, split in parts:
        for kind, label in (("good", NORMAL), ("Ungood", "abnormal")):
            folder = root / part / kind
            images = folder / "img" if (folder / "img").is_dir() else folder
            for path in sorted(path for path in images.glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")):
                masks = (folder / "label" / path.name, folder / "anomaly_mask" / path.name)
                mask = next((mask for mask in masks if kind == "Ungood" and mask.is_file()), None)
                yield Item(_named(path, f"{part}-{kind}-{path.name}", split, label, mask), None)


_READERS: Mapping[CollectionName, Callable[[Path, int], Iterator[Item]]] = {
    "pneumoniamnist": _pneumoniamnist,
    "crchistophenotypes": _crchistophenotypes,
    "kather2016": _kather2016,
    "brain_mri": _brain_mri,
    "medianomaly": _medianomaly,
    "bmad": _bmad,
}


def _of_array(name: str, image: Any, split: Split, label: str, patient: str | None = None) -> Item:
    case = Case(id=name, image=None, split=split, label=label, patient=patient)
    return Item(case, lambda: _decoded(image) if isinstance(image, bytes) else np.asarray(image))


def _named(path: Path, name: str, split: Split, label: str, target: Path | None = None) -> Case:
    return Case(id=_identifier(name), image=path, target=target, split=split, label=label)


def _identifier(name: str) -> str:
    return name.replace("/", "-").rpartition(".")[0] or name


def _decoded(data: bytes) -> NDArray[np.uint8]:
    from PIL import Image as Pillow

    return np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"))


def _grey_reader(path: Path) -> Callable[[], NDArray[np.uint8]]:
    from PIL import Image as Pillow

    def read() -> NDArray[np.uint8]:
        grey = Pillow.open(path).convert("L")
        return np.asarray(grey.resize((128, 128), Pillow.Resampling.BILINEAR, reducing_gap=None))

    return read


def _sized(pixels: NDArray[Any], side: int | None) -> NDArray[Any]:
    if side is None or pixels.shape[:2] == (side, side):
        return pixels
    from PIL import Image as Pillow

    return np.asarray(Pillow.fromarray(pixels).resize((side, side), Pillow.Resampling.BILINEAR))


def _resized(image: Image, side: int, *, labels: bool = False) -> Image:
    from skimage.transform import resize

    size = (image.channels, 1, side, side)
    order = 0 if labels else 1
    made = resize(image.pixels.astype(np.float32), size, order=order, anti_aliasing=not labels, preserve_range=True)
    picture = np.moveaxis(np.rint(made).astype(image.pixels.dtype)[:, 0], 0, -1)
    return Image.from_picture(picture if image.channels == 3 else picture[..., 0])


def _split_of(own: int, fold: int) -> Split:
    return "test" if own == fold else "validation" if own == (fold + 1) % FOLDS else "train"


def _folds(groups: Sequence[str]) -> dict[str, int]:
    """Group -> fold: the largest first, each into the fold with the fewest so far."""
    sizes = {name: groups.count(name) for name in groups}
    filled = [0] * FOLDS
    fold_of: dict[str, int] = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        fold_of[name] = int(np.argmin(filled))
        filled[fold_of[name]] += sizes[name]
    return fold_of


def _held_out(name: str) -> bool:
    """A tenth of the normal training images, for the calibration."""
    return int(_md5(name), 16) % 10 == 0


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
