"""Images in a folder and their targets in another, matched by name: imagesTr and labelsTr, images and masks."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from medae.data.cases import Case, SplitData, divided
from medae.errors import SettingsError

_NAMED = 5
"""So many names are listed in an error."""


class Folder(SplitData):
    """Every file that `images` matches is a case; its target is the file that `targets` matches under the same name.

    The name is what the wildcards stand for, without the suffix: `images/*.png` and `masks/*_mask.png` pair
    images/a.png with masks/a_mask.png. A match may be the folder of one DICOM series (`scans/*`).
    """

    kind: Literal["folder"] = "folder"
    root: Path
    """Relative to where medae is started."""
    images: str
    """Such as `images/*.png`, `imagesTr/*.nii.gz`, `**/*.dcm`."""
    targets: str | None = None
    """Such as `masks/*.png`, `labelsTr/*.nii.gz`; None: the images alone."""
    patient: str | None = None
    r"""A regular expression whose first group finds the patient in the name, such as `^(P\d+)_`; None: each image is
    a patient of its own."""

    @field_validator("images", "targets")
    @classmethod
    def _a_pattern_below_the_root(cls, value: str | None) -> str | None:
        if value is not None and ("*" not in value or Path(value).is_absolute() or ".." in Path(value).parts):
            raise ValueError(f"a pattern below the root with a `*`, such as images/*.png; got {value!r}")
        return value

    @field_validator("patient")
    @classmethod
    def _an_expression_with_a_group(cls, value: str | None) -> str | None:
        try:
            groups = 1 if value is None else re.compile(value).groups
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"one group (in parentheses) finds the patient, got {groups}")
        return value

    def all_cases(self) -> list[Case]:
        if not self.root.is_dir():
            raise SettingsError(f"{self.root}: no such folder")
        images = _matches(self.root, self.images)
        if not images:
            raise SettingsError(f"{self.root}: nothing matches {self.images}")
        targets = _matches(self.root, self.targets) if self.targets is not None else {}
        if self.targets is not None:
            _require_partners(self.root, images, targets)
        cases = [
            Case(id=name, image=image, target=targets.get(name), patient=self._patient_of(name))
            for name, image in images.items()
        ]
        return divided(cases, self.validation, self.test)

    def _patient_of(self, name: str) -> str | None:
        if self.patient is None:
            return None
        found = re.search(self.patient, name)
        if found is None or not found[1]:
            raise SettingsError(f"{self.root}: the patient expression {self.patient} finds nothing in {name}")
        return found[1]


def _matches(root: Path, pattern: str) -> dict[str, Path]:
    """Name -> path, sorted by name; hidden files (macOS leaves `._name` beside every file) are no images."""
    named: dict[str, Path] = {}
    for path in sorted(root.glob(pattern)):
        below = path.relative_to(root)
        if any(part.startswith(".") for part in below.parts):
            continue
        name = _name(below, pattern)
        if name in named:
            raise SettingsError(f"{root}: two files that match {pattern} have the name {name}; names are unique")
        named[name] = path
    return dict(sorted(named.items()))


def _name(below: Path, pattern: str) -> str:
    """What the wildcards stand for, folders joined by `_`, without the suffix."""
    *folders, last = Path(pattern).parts
    fixed = next((n for n, part in enumerate(folders) if "*" in part), len(folders))
    before, _, after = last.partition("*")
    name = below.name
    if "*" not in after and "?" not in last and "[" not in last:
        name = name[len(before) : len(name) - len(after)]
    return "_".join([*below.parts[fixed:-1], _without_suffix(name)])


def _without_suffix(name: str) -> str:
    for suffix in (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm"):
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def _require_partners(root: Path, images: dict[str, Path], targets: dict[str, Path]) -> None:
    lonely = [*_lonely("image", "target", images, targets), *_lonely("target", "image", targets, images)]
    if lonely:
        raise SettingsError("\n".join(f"{root}: {line}" for line in lonely))


def _lonely(kind: str, other: str, here: dict[str, Path], there: dict[str, Path]) -> Iterator[str]:
    names: Sequence[str] = [name for name in here if name not in there]
    if names:
        rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield f"{len(names)} {kind}(s) without {other}: {', '.join(names[:_NAMED])}{rest}"
