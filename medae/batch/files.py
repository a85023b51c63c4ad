"""Where a file of a case lies (on disk, in an archive, behind a URL), and which names stand for images."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".nii", ".nii.gz", ".dcm"),
    *(".mha", ".mhd", ".nrrd", ".nhdr"),
)
"""In a folder, a file of such a name counts as an image even when its content says otherwise: it is then a failed
item with a reason, and is not passed over. Whether a file really is an image, its content decides when it is read."""

HEAD_BYTES = 132
"""By which DICOM is known."""

_URL = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MEMBER = "member:"


@dataclass(frozen=True)
class Member:
    """A file within an archive."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"


@dataclass(frozen=True)
class Url:
    """A file that fsspec opens, if its address is allowed."""

    address: str

    def __str__(self) -> str:
        return self.address


File = str | Path | Member | Url
"""A text is a path of a list that nobody has looked at: a million of them are planned without being taken apart."""


def counts_as_image(name: str) -> bool:
    """By its name alone."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def to_bytes(file: File) -> bytes:
    """A file as a line of a plan, wherever the reader stands; a path need not be text."""
    if isinstance(file, Member):
        return os.fsencode(_MEMBER + json.dumps([os.path.abspath(file.archive), file.name], ensure_ascii=False))
    if isinstance(file, Url):
        return file.address.encode()
    path = os.fspath(file)
    return os.fsencode(path if path[0] == "/" else os.path.abspath(path))


def from_bytes(line: bytes) -> File:
    """The file that `to_bytes` wrote; local paths in plans are absolute, so they begin with a slash."""
    text = os.fsdecode(line)
    if text.startswith(_MEMBER):
        archive, name = json.loads(text.removeprefix(_MEMBER))
        return Member(Path(archive), name)
    return Url(text) if is_url(text) else Path(text)
