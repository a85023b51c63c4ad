"""One image of a batch, and what it is called."""

from typing import NamedTuple

from medae.batch.files import IMAGE_SUFFIXES, File

STEM_BYTES = 200
"""File systems take names of 255 bytes."""


class Item(NamedTuple):
    """One image of a batch."""

    id: str
    """Unique in the batch."""
    files: tuple[File, ...]
    """One file, the files of one DICOM series, or the folder of one."""
    patient: str | None = None
    target: str | None = None
    """What a list says about it; kept beside its results."""
    packages: tuple[str, ...] = ()
    """The models that are still to answer it; none named: all."""
    series: int | None = None
    """Which of several volumes in its files, as `read_image` counts them."""
    regular_grid: bool = False
    """Whether slices that are uneven, or of a tilted gantry, are put on a regular grid."""

    @property
    def stem(self) -> str:
        """Of its answers' names."""
        return printable(self.id)


def stem_of(path: str) -> str:
    """The name of a file without its folder and its endings."""
    name = path.rstrip("/").rpartition("/")[2]
    for suffix in sorted(IMAGE_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return printable(name) or "image"


def printable(name: str) -> str:
    """A name that any file system takes, also with a number and the suffix of an answer behind it."""
    if len(name) <= STEM_BYTES // 4 and name.isprintable() and "/" not in name and "\\" not in name:
        return name
    clean = "".join(letter if letter.isprintable() and letter not in "\\/" else "_" for letter in name)
    return clean.encode()[:STEM_BYTES].decode(errors="ignore")
