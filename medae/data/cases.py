"""Cases: which images there are, what belongs to them, and in which split they are.

Whoever trains chose these files, so the SettingsError that explains a list that does not hold may name them; errors
about the content of an image name nothing, as everywhere.
"""

import csv
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import Field, ValidationError, model_validator

from medae.errors import SettingsError, UnfitImage
from medae.image import Image
from medae.settings import Settings

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

_FILES = ("image", "target", "mask")
_MOST_MISTAKES = 20
"""So many lines of a list are complained about; the rest is counted."""


class Case(Settings):
    """One row of a case list."""

    id: str = Field(min_length=1, pattern=r"^[^/\\]+$")
    """Unique; names the case's answers, so it holds no path separator."""
    image: Path | None
    """A file, or the folder of one DICOM series; None: embedded in medae."""
    target: Path | None = None
    """Label image (segmentation) or clean image (restoration), on the image's grid."""
    mask: Path | None = None
    """Where to fill in (inpainting), on the image's grid."""
    patient: str | None = None
    """Cases of one patient never come into different splits."""
    split: Split | None = None
    label: str | None = None
    """What the whole image shows: `normal`, or the name of what is abnormal."""


@dataclass(frozen=True, eq=False)
class LoadedCase:
    """A case and its pixels."""

    case: Case
    image: Image
    target: Image | None


class Data(Settings, ABC):
    """Base of the ways to name a training's images."""

    @abstractmethod
    def all_cases(self) -> list[Case]:
        """Every case, each with its split. Raises SettingsError where the list does not hold."""

    def cases(self, split: Split) -> list[Case]:
        """The cases of one split; may be empty."""
        return [case for case in self.all_cases() if case.split == split]

    def read(self, case: Case, *, labels: int | None = None) -> LoadedCase:
        """One case with its pixels. `labels`: the target is a label image of so many labels (see `label_image`).

        Raises GeometryError where image and target lie on different grids, and any InputError of reading.
        """
        from medae.io import read_image, read_labels

        if case.image is None:
            raise SettingsError(f"case {case.id} has no image")
        image = read_image(case.image)
        if case.target is None:
            return LoadedCase(case, image, None)
        read_target = read_image if labels is None else read_labels
        return with_labels(LoadedCase(case, image, in_place_of(image, read_target(case.target))), labels)

    def load(self, split: Split, *, labels: int | None = None) -> Iterator[LoadedCase]:
        """The cases of one split, read one at a time. To go on after a bad image, use `cases` and `read`."""
        return (self.read(case, labels=labels) for case in self.cases(split))


class SplitData(Data):
    """Data that medae itself can divide, patient by patient."""

    validation: float = Field(default=0.15, ge=0, lt=1)
    """Part of the patients for choosing the best weights and for calibration."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """Part of the patients for the reported numbers; never seen in training."""
    licence: str | None = None
    """Of the images; goes into the model card."""

    @model_validator(mode="after")
    def _something_is_left(self) -> "SplitData":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation {self.validation:g} + test {self.test:g} leave nothing to train on")
        return self


class CaseList(SplitData):
    """A CSV file with a header line of Case's fields; `id` and `image` are needed.

    Paths are relative to the CSV's folder. Without a `split` column, cases are divided by patient.
    """

    kind: Literal["cases"] = "cases"
    path: Path
    """Relative to where medae is started."""

    def all_cases(self) -> list[Case]:
        cases = read_cases(self.path)
        return cases if any(case.split for case in cases) else divided(cases, self.validation, self.test)


def divided(cases: Sequence[Case], validation: float, test: float) -> list[Case]:
    """The cases, each with a split: whole patients (without one: single cases) in the order of their SHA-256.

    The first `test` of them are tested on, the next `validation` validated on, at least one each where the part is
    not 0 and three patients exist. No seed: the same cases always divide alike. A list that will grow should say its
    splits in a column, because a new patient may move another one over the line.
    """
    patients = sorted({_patient(case) for case in cases}, key=lambda name: hashlib.sha256(name.encode()).digest())
    tested = _count(len(patients), test)
    validated = _count(len(patients), validation)
    split_of: dict[str, Split] = {}
    for rank, name in enumerate(patients):
        split_of[name] = "test" if rank < tested else "validation" if rank < tested + validated else "train"
    return [case.model_copy(update={"split": split_of[_patient(case)]}) for case in cases]


def _count(patients: int, part: float) -> int:
    least = 1 if part > 0 and patients >= 3 else 0
    return max(least, round(patients * part))


def _patient(case: Case) -> str:
    # a case without a patient is one of its own, and shares nothing with a patient who happens to have its id
    return f"case {case.id}" if case.patient is None else f"patient {case.patient}"


def read_cases(path: Path) -> list[Case]:
    """The rows of a CSV. Raises SettingsError: one line per mistake, `file:line: column: reason`."""
    rows = list(_rows(path))
    cases: list[Case] = []
    mistakes: list[str] = []
    for line, row in rows:
        try:
            case = Case.model_validate(row)
        except ValidationError as error:
            mistakes += [f"{path}:{line}: {item['loc'][0]}: {item['msg']}" for item in error.errors()]
            continue
        cases.append(_from_folder(case, path.parent))
        mistakes += [
            f"{path}:{line}: {column}: no such file; paths are relative to the list's folder"
            for column in _FILES
            if (file := getattr(cases[-1], column)) is not None and not file.exists()
        ]
    numbered = [line for line, _ in rows]
    _refuse(mistakes)
    _refuse(_repeated(path, cases, numbered))
    _refuse(_unsplit(path, cases, numbered) or _leaks(path, cases, numbered))
    return cases


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, its filled cells), empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; give the path of a CSV with one case per line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: a case list is CSV in UTF-8 ({type(error).__name__})") from None
    reader = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _refuse(_header_mistakes(path, header))
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, _row(path, reader.line_num, header, cells)
    except csv.Error as error:
        raise SettingsError(f"{path}:{reader.line_num}: not valid CSV: {error}") from None


def _row(path: Path, line: int, header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    if len(cells) > len(header):
        raise SettingsError(f"{path}:{line}: {len(cells)} cells in a list of {len(header)} columns; quote commas")
    return {name: cell.strip() for name, cell in zip(header, cells, strict=False) if cell.strip()}


def _header_mistakes(path: Path, header: Sequence[str]) -> Iterator[str]:
    allowed = ", ".join(Case.model_fields)
    yield from (
        f"{path}:1: {name}: no such column; columns are {allowed}" for name in header if name not in Case.model_fields
    )
    yield from (f"{path}:1: {name}: this column is there twice" for name, count in Counter(header).items() if count > 1)
    yield from (f"{path}:1: {name}: this column is missing" for name in ("id", "image") if name not in header)


def _from_folder(case: Case, folder: Path) -> Case:
    at: dict[str, Any] = {column: folder / file for column in _FILES if (file := getattr(case, column)) is not None}
    return case.model_copy(update=at)


def _repeated(path: Path, cases: Sequence[Case], lines: Sequence[int]) -> Iterator[str]:
    first: dict[str, int] = {}
    for case, line in zip(cases, lines, strict=True):
        if first.setdefault(case.id, line) != line:
            yield f"{path}:{line}: id: {case.id} is on line {first[case.id]} already; ids are unique"


def _unsplit(path: Path, cases: Sequence[Case], lines: Sequence[int]) -> list[str]:
    if not any(case.split for case in cases):
        return []
    reason = "empty, and other lines have one; fill all or leave the column out"
    return [f"{path}:{line}: split: {reason}" for case, line in zip(cases, lines, strict=True) if not case.split]


def _leaks(path: Path, cases: Sequence[Case], lines: Sequence[int]) -> Iterator[str]:
    first: dict[str, tuple[Split | None, int]] = {}
    for case, line in zip(cases, lines, strict=True):
        split, before = first.setdefault(_patient(case), (case.split, line))
        if split != case.split:
            yield (
                f"{path}:{line}: split: this patient is in {split} on line {before} and in {case.split} here; "
                "a patient belongs to one split"
            )


def _refuse(mistakes: Iterable[str]) -> None:
    found = list(mistakes)
    if not found:
        return
    more = [f"and {len(found) - _MOST_MISTAKES} more"] if len(found) > _MOST_MISTAKES else []
    raise SettingsError("\n".join(found[:_MOST_MISTAKES] + more))


def in_place_of(image: Image, target: Image) -> Image:
    """A target on its image's grid. A picture that does not know its place is taken to lie where the image lies.

    Raises GeometryError where the grids differ.
    """
    if target.geometry.unit == "px" and target.geometry.shape == image.geometry.shape:
        return replace(target, geometry=image.geometry)
    image.geometry.require_same_grid(target.geometry)
    return target


def with_labels(loaded: LoadedCase, labels: int | None) -> LoadedCase:
    """The case with its target as a label image; as it is where `labels` is None."""
    if labels is None or loaded.target is None:
        return loaded
    return replace(loaded, target=label_image(loaded.target, labels))


def label_image(target: Image, labels: int) -> Image:
    """(1, S, R, W) whole numbers 0..labels from what tools write as a label image.

    Three equal channels are one. Real numbers that are whole become integers. A mask of exactly 0 and 255, the way
    pictures show a mask, is 0 and 1, unless 255 is a label of its own.
    Raises UnfitImage for colours, fractions and labels beyond `labels`.
    """
    pixels = target.pixels
    if pixels.shape[0] > 1 and all(np.array_equal(pixels[0], plane) for plane in pixels[1:]):
        pixels = pixels[:1]
    if pixels.shape[0] > 1:
        raise UnfitImage(f"a label image has one channel, this target has {len(pixels)}; save the labels as numbers")
    if pixels.dtype.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
        raise UnfitImage("a label image holds whole numbers, this target holds fractions; is it a probability map?")
    values = np.unique(pixels)
    if values[-1] == 255 and labels < 255 and set(values.tolist()) <= {0, 255}:
        pixels = pixels == 255
    elif values[0] < 0 or values[-1] > labels:
        raise UnfitImage(
            f"the target's values go from {values[0]:g} to {values[-1]:g}; the task has the labels 1..{labels} and "
            "0 for the background. Name all labels in the task, or renumber the target."
        )
    return target.with_pixels(pixels.astype(np.uint8 if labels < 256 else np.uint16))
