"""Packages for others: `medae export PACKAGE --to bento`. What is exported is data, as the package itself."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from medae.errors import OutputError, UsageError
from medae.package import CALIBRATION, GATE, PRIOR, SHAPE, WEIGHTS, ModelPackage, load, shipped

_TAG_LENGTH = 63  # of a name and of a version in BentoML's store
_FILES = ("card.json", WEIGHTS, PRIOR, CALIBRATION, "README.md")


@dataclass(frozen=True)
class Exported:
    """Where it lies and what it is called there."""

    tag: str
    folder: Path
    """A package again: `medae serve FOLDER`, medae.load(FOLDER)."""


def export(package: str, to: str, name: str | None = None) -> Exported:
    """Put a package, a folder or a shipped name, into a form that others load. The same package gives the same tag.

    name: what to call it there, instead of the package's own name.
    Raises UsageError for an unknown form, UnknownModel, PackageError, OutputError.
    """
    if to not in FORMS:
        raise UsageError(f"--to {to}: packages are exported to {', '.join(FORMS)}")
    return FORMS[to](package, name)


def to_bento(package: str, name: str | None) -> Exported:
    """Into BentoML's model store (BENTOML_HOME), as `name:version-digest`, with the whole digest in its metadata."""
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    import bentoml
    from bentoml.exceptions import BentoMLException, NotFound

    loaded, folder = load(package), _folder(package)
    tag = f"{_tag(name or loaded.card.name)}:{_version(loaded)}"
    try:
        return Exported(tag, Path(bentoml.models.get(tag).path))
    except NotFound:
        pass
    card = loaded.card
    facts = {"digest": loaded.digest, "name": card.name, "version": card.version, "task": card.task.kind}
    try:
        with bentoml.models.create(tag, labels={"made-by": "medae", "task": card.task.kind}, metadata=facts) as model:
            _copy(folder, Path(model.path))
        return Exported(tag, Path(bentoml.models.get(tag).path))
    except (BentoMLException, OSError) as error:
        raise OutputError(f"BentoML's model store did not take the package ({type(error).__name__})") from None


FORMS: dict[str, Callable[[str, str | None], Exported]] = {"bento": to_bento}
"""--to -> what does it."""


def _folder(package: str) -> Path:
    folder = Path(package)
    return folder if folder.is_dir() else shipped()[package]


def _copy(source: Path, target: Path) -> None:
    """The package's own files, and those of the packages inside it, and no others that lie beside them."""
    for name in _FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    for part in (GATE, SHAPE):
        if (source / part).is_dir():
            (target / part).mkdir()
            _copy(source / part, target / part)


def _tag(text: str) -> str:
    """As BentoML allows it: a-z, 0-9, `.`, `_` and `-`, the first and the last a letter or a digit."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:_TAG_LENGTH].rstrip("._-")
    if not plain:
        raise UsageError("BentoML's names are made of a-z, 0-9, `.`, `_` and `-`; give another with --name")
    return plain


def _version(package: ModelPackage) -> str:
    """The package's version and the beginning of its digest; of its calibrations' too, which may change alone."""
    marks = package.digest.removeprefix("sha256:")[:12]
    parts = [part for part in (package, package.gate, package.shape) if part is not None]
    made = [part.calibration.model_dump_json() for part in parts if part.calibration is not None]
    if made:
        marks += "-" + hashlib.sha256("".join(made).encode()).hexdigest()[:8]
    return f"{_tag(package.card.version)[: _TAG_LENGTH - len(marks) - 1].rstrip('._-')}-{marks}"
