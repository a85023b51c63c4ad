"""What a call means by its inputs: files, folders and patterns become a list of items, each one image."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from medae.errors import UsageError
from medae.io import dicom

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm"),
    *(".mha", ".mhd", ".nrrd", ".nhdr"),
)
"""In a folder, a file of such a name counts as an image even when its content says otherwise: it is then a failed
item with a reason, and is not passed over. Whether a file really is an image, its content decides when it is read."""

HEAD_BYTES = 132

STEM_BYTES = 200
"""File systems take names of 255 bytes."""


@dataclass(frozen=True)
class Item:
    """One image of a batch."""

    id: str
    """Unique in the batch; the stem of its answers' names."""
    files: tuple[Path, ...]
    """One file, or the files of one DICOM series."""


@dataclass(frozen=True)
class Manifest:
    """The items of a batch, and how many files of its folders are no images (notes, thumbnails)."""

    items: tuple[Item, ...]
    passed_over: int


def expand(value: str) -> list[Path]:
    """The files and folders that one argument names: itself or, where no such path exists, a pattern such as
    `scans/*.png`. Empty where there is none."""
    path = Path(value)
    if path.exists():
        return [path]
    return sorted(Path(found) for found in glob.glob(value, recursive=True))


def list_items(inputs: Sequence[str], *, out: Path | None = None) -> Manifest:
    """The items that `inputs` name, in their order; `out`, where answers go, is never taken for an input.

    Single files are one item each, except DICOM files: those of one series are one item, however they were given.
    Raises UsageError where an input names nothing, where none holds an image, and where `out` is an input.
    """
    named: list[Path] = []
    found: list[Path] = []
    for number, value in enumerate(inputs, 1):
        paths = expand(value)
        if not paths:
            raise UsageError(f"input {number} of {len(inputs)} names no file or folder")
        for path in paths:
            if path.is_dir():
                found += _walk(path, out)
            else:
                named.append(path)
    items = tuple(_items(named, [path for path in found if _counts_as_image(path)]))
    if not items:
        raise UsageError(
            f"no image among the inputs ({len(found)} files looked at); images are PNG, JPEG, TIFF, NIfTI, DICOM, "
            "MetaImage and NRRD"
        )
    used = {path for item in items for path in item.files}
    return Manifest(items, len(set(found) - used))


def _walk(folder: Path, out: Path | None) -> Iterator[Path]:
    """Files below a folder in the order of their names, without hidden ones and without those below `out`.

    Links to folders are not followed, so a circle of links ends.
    """
    own = out.resolve() if out else None
    if folder.resolve() == own:
        raise UsageError("the output folder is one of the inputs; answers need a folder of their own")
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and (here / name).resolve() != own)
        yield from (here / name for name in sorted(names) if name[0] != "." and (here / name).is_file())


def _refuse(error: OSError) -> None:
    raise UsageError(f"a folder among the inputs cannot be listed ({type(error).__name__}); its images would be missed")


def _counts_as_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_SUFFIXES) or _is_dicom(path)


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return dicom.is_dicom(file.read(HEAD_BYTES))
    except OSError:
        return False  # reading it will say why


def _items(named: Sequence[Path], found: Sequence[Path]) -> Iterator[Item]:
    place = {path: number for number, path in enumerate(dict.fromkeys([*named, *found]))}
    dicom_files = [path for path in place if _is_dicom(path)]
    groups = [tuple(series.paths) for series in dicom.group_series(dicom_files)] if dicom_files else []
    grouped = {path for group in groups for path in group}
    # DICOM without a picture (reports, DICOMDIR) is left out of a folder; a named file fails with a reason instead
    alone = (place.keys() - set(dicom_files)) | set(named)
    groups += [(path,) for path in alone - grouped]
    taken: set[str] = set()
    for group in sorted(groups, key=lambda group: min(place[path] for path in group)):
        name = _unique(_stem(group), taken)
        taken.add(name.casefold())
        yield Item(name, group)


def _stem(group: Sequence[Path]) -> str:
    """What answers are called after: the file without its endings, or the folder of a series."""
    first = Path(os.path.abspath(group[0]))  # a link keeps its own name: what it points to may be called by a digest
    if len(group) > 1:
        return _printable(first.parent.name) or "series"
    name = first.name
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return _printable(name) or "image"


def _printable(name: str) -> str:
    """A name that any file system takes, also with a number and the suffix of an answer behind it."""
    clean = "".join(letter if letter.isprintable() and letter not in "\\/" else "_" for letter in name)
    return clean.encode()[:STEM_BYTES].decode(errors="ignore")


def _unique(stem: str, taken: set[str]) -> str:
    """`stem`, or the first of stem-2, stem-3 ... that is free on any file system (case does not tell names apart)."""
    number, name = 1, stem
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}"
    return name
