"""What an answer consists of (files in memory, labels, who made it), and writing it whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from pydantic import Field

from medae.errors import OutputError
from medae.image import Image
from medae.settings import Settings
from medae.verdict import Verdict

Byte = Annotated[int, Field(ge=0, le=255)]


class AnswerFile(NamedTuple):
    """One file of an answer, still in memory."""

    name: str
    """Relative, with at most one folder: "knee_seg.dcm" or "knee_restored/0001.dcm"."""
    media_type: str
    data: bytes

    def __repr__(self) -> str:
        """For people: without the bytes."""
        return f"AnswerFile(name={self.name!r}, media_type={self.media_type!r}, {len(self.data)} bytes)"


class CodedTerm(Settings):
    """A term of a coding scheme, such as 108369006, SCT, "Neoplasm" (DICOM PS3.3 8.8; lengths from PS3.5 6.2)."""

    value: str = Field(min_length=1, max_length=16)
    scheme: str = Field(min_length=1, max_length=16)
    """Coding scheme designator: SCT (SNOMED CT), DCM, FMA, 99NAME for one's own."""
    meaning: str = Field(min_length=1, max_length=64)


class Label(Settings):
    """What one number of a segmentation means; the first label is number 1, the background 0 is implicit."""

    name: str = Field(min_length=1, max_length=64)
    colour: tuple[Byte, Byte, Byte]
    """RGB, 0 to 255: palette of PNG answers, recommended display colour of DICOM SEG."""
    category: CodedTerm | None = None
    """Segmented property category of DICOM SEG; where absent, the writer's general one."""
    term: CodedTerm | None = None
    """Segmented property type of DICOM SEG; where absent, the writer's general one."""


@dataclass(frozen=True)
class Algorithm:
    """Who made an answer: a model package."""

    name: str
    version: str
    digest: str
    """Of the package: "sha256:" and 64 hexadecimal digits."""

    @property
    def signature(self) -> str:
        """One line of ASCII for a file's software field."""
        return f"medae {self.name} {self.version} {self.digest}".encode("ascii", "replace").decode()


@dataclass(frozen=True)
class LabelSize:
    """How much of an image has one label."""

    label: Label
    number: int
    voxels: int
    mm3: float | None = None
    """Of a volume whose voxels have a size."""
    mm2: float | None = None
    """Of a picture whose pixels have a size."""


@dataclass(frozen=True)
class Findings:
    """What an answer says in numbers, for a report."""

    labels: tuple[LabelSize, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    percentile: float | None = None
    """0 to 100."""
    p_value: float | None = None
    decision: str | None = None
    """normal or anomalous."""
    gate: Verdict | None = None


def to_stored(values: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Values rounded and clipped to an integer `dtype`, or cast to a real one. NaN becomes the integer 0."""
    stored = np.dtype(dtype)
    if values.dtype == stored or stored.kind not in "iu" or np.can_cast(values.dtype, stored):
        return values.astype(stored, copy=False)
    low, high = np.iinfo(stored).min, np.iinfo(stored).max
    if values.dtype.kind != "f":
        own = np.iinfo(values.dtype)
        clipped: NDArray[Any] = np.clip(values, max(low, own.min), min(high, own.max))
        return clipped.astype(stored)
    top = values.dtype.type(high)
    if int(top) > high:  # 2**31 - 1 has no float32; the next lower one has
        top = np.nextafter(top, values.dtype.type(0))
    rounded: NDArray[Any] = np.clip(np.rint(np.nan_to_num(values, nan=0.0, posinf=top, neginf=low)), low, top)
    return rounded.astype(stored)


def label_numbers(labels: Image, count: int) -> NDArray[Any]:
    """The pixels of a segmentation as uint8, or as uint16 where 255 labels do not do.

    Raises OutputError for other pixels than one channel of whole numbers 0 to `count`.
    """
    pixels = labels.pixels
    low, high = (int(pixels.min()), int(pixels.max())) if pixels.dtype.kind in "bui" else (-1, -1)
    if labels.channels != 1 or low < 0 or high > min(count, 65535):
        raise OutputError(
            f"a label image has one channel of whole numbers 0 to {count} (its labels); got {labels.channels} channels "
            f"of {pixels.dtype} from {pixels.min()} to {pixels.max()}"
        )
    return pixels.astype(np.uint8 if count <= 255 else np.uint16)


def write_files(files: Sequence[AnswerFile], folder: Path) -> list[Path]:
    """Write all files below `folder`, or none: each goes to a temporary file beside its place; when all are on disk,
    they are renamed.

    Raises OutputError when a name leaves the folder, or when folder or disk do not take the files. Nothing
    half-written is left then, and files that were there before are there again.
    """
    paths = [_place(file.name, folder) for file in files]
    with _said_as_output_error(sum(len(file.data) for file in files)):
        made = _make_folders({path.parent for path in paths})
        beside: list[Path] = []
        try:
            parts = []
            for file, path in zip(files, paths, strict=True):
                parts.append(_temporary(path, "part", beside))
                _write_through(parts[-1], file.data)
            _rename(parts, paths, beside)
        except BaseException:
            _remove(beside)
            _remove_if_empty(made)
            raise
        _remove(beside)
    return paths


def _rename(parts: Sequence[Path], paths: Sequence[Path], beside: list[Path]) -> None:
    """Each part into its place; where one fails, all places are as they were."""
    before: dict[Path, Path | None] = {}
    try:
        for part, path in zip(parts, paths, strict=True):
            if path not in before:
                before[path] = _kept(path, beside)
            os.replace(part, path)
        for parent in {path.parent for path in paths}:
            sync_one(parent)
    except BaseException:
        _put_back(before)
        raise


def _kept(path: Path, beside: list[Path]) -> Path | None:
    """What is there now, under another name; None where there is nothing."""
    if not os.path.lexists(path):
        return None
    kept = _temporary(path, "old", beside)
    try:
        os.link(path, kept, follow_symlinks=False)
    except OSError:  # a file system without hard links
        shutil.copy2(path, kept, follow_symlinks=False)
    return kept


def _put_back(before: Mapping[Path, Path | None]) -> None:
    """Raises OutputError where some of it stays replaced."""
    stuck = False
    for path, kept in before.items():
        try:
            if kept is None:
                path.unlink(missing_ok=True)
            else:
                os.replace(kept, path)
        except OSError:
            stuck = True
    if stuck:
        raise OutputError(
            "the output folder did not take all files, and what was there could not be put back: old and new files "
            "may lie side by side, each whole. Give another folder, or write all of them again."
        )


def _temporary(path: Path, kind: str, beside: list[Path]) -> Path:
    """A random name in the same folder: temporary names, too, say nothing about a patient."""
    beside.append(path.with_name(f".{uuid.uuid4().hex}.{kind}"))
    return beside[-1]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):  # it is hidden, and what matters is in its place
            path.unlink(missing_ok=True)


def _place(name: str, folder: Path) -> Path:
    parts = PurePosixPath(name).parts
    if not 1 <= len(parts) <= 2 or ".." in parts or "/" in parts or "\0" in name or "\\" in name:
        raise OutputError("the name of an answer is a file name with at most one folder before it; this one is not")
    path = folder.joinpath(*parts)
    if path.is_dir():
        raise OutputError("a folder lies where an answer's file belongs; give another output folder")
    return path


@contextmanager
def _said_as_output_error(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        what = "free space there or" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable or"
        raise OutputError(
            f"the output folder did not take {size} bytes ({reason}); {what} give another folder. Nothing was written."
        ) from None


def _make_folders(folders: set[Path]) -> list[Path]:
    """Make what is missing; returns what was made, outermost first."""
    made: list[Path] = []
    for folder in sorted(folders):
        missing = [at for at in (folder, *folder.parents) if not at.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        made.extend(reversed(missing))
    return made


def _remove_if_empty(folders: Sequence[Path]) -> None:
    for folder in reversed(folders):
        try:
            folder.rmdir()
        except OSError:
            return  # someone else put something there meanwhile


def _write_through(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_one(path: Path) -> None:
    """A file, or a folder: a rename is on disk only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
