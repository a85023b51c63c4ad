"""DICOMDIR: the table of contents of a medium (PS3.3 F, PS3.10 8), and the files that it names.

A path in it is a list of names below its own folder. One that leads anywhere else, also through a link, is refused.
"""

from pathlib import Path

from medae.errors import SeriesError, UnsupportedImage
from medae.io.dicom_file import guarded, opened, read_dataset
from medae.io.guard import Limits

# Media Storage Directory Storage (PS3.6), as an element of the file meta group
_DIRECTORY = b"UI\x14\0001.2.840.10008.1.3.10"


def is_directory(head: bytes) -> bool:
    """Whether the first 1024 bytes or so begin a DICOMDIR."""
    return head[128:132] == b"DICM" and _DIRECTORY in head[:1024]


def referenced_files(directory: Path, limits: Limits) -> list[Path]:
    """The image files that a DICOMDIR names, in its order.

    Raises UnreadableImage for a damaged one, UnsupportedImage for paths that lead out of its folder, LimitExceeded,
    and SeriesError where it names no image, or files that are not there.
    """
    with opened(directory) as stream:
        limits.admit_bytes(stream.seek(0, 2))
        stream.seek(0)
        dataset = read_dataset(stream, pixels=False)
    base = directory.resolve().parent
    files: list[Path] = []
    with guarded("the DICOMDIR is damaged"):
        for record in dataset.get("DirectoryRecordSequence") or ():
            names = record.get("ReferencedFileID")
            if record.get("DirectoryRecordType") == "IMAGE" and names:
                files.append(_below(base, [names] if isinstance(names, str) else list(names)))
                limits.admit_files(len(files))
    if not files:
        raise SeriesError("the DICOMDIR names no image; give the folder of the medium, or its files")
    missing = sum(not file.is_file() for file in files)
    if missing:
        raise SeriesError(
            f"{missing} of {len(files)} files that the DICOMDIR names are not there; copy the whole medium"
        )
    return files


def _below(base: Path, names: list[str]) -> Path:
    is_plain = all(name not in ("", ".", "..") and not set(name) & set("/\\:\0") for name in names)
    path = base.joinpath(*names) if is_plain else base
    if not is_plain or not path.resolve().is_relative_to(base):
        raise UnsupportedImage("the DICOMDIR has paths that lead out of its folder; it was tampered with")
    return path
