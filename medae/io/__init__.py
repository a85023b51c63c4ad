"""Files <-> Image. What a file is, is decided by its content, never by its name.

Read: PNG, JPEG, TIFF (raster), NIfTI-1 and -2, plain or gzipped (nifti), MetaImage, NRRD, DICOM (dicom). Written: the
answer table, in the input's own format. The format modules are imported when a file needs them.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from numpy.typing import NDArray

from medae.errors import OutputError, SeriesError, UnreadableImage, UnsupportedImage
from medae.image import Image
from medae.io.answer import Algorithm, AnswerFile, Label, write_files
from medae.io.dicom_options import DEFAULT_DICOM, DicomAnswers
from medae.io.guard import DEFAULT_LIMITS, GZIP_MAGIC, Limits, inflate_head

__all__ = [
    "DEFAULT_DICOM",
    "DEFAULT_LIMITS",
    "Algorithm",
    "AnswerFile",
    "DicomAnswers",
    "Label",
    "Limits",
    "encode_image",
    "encode_labels",
    "encode_labels_nifti",
    "encode_map",
    "encode_png",
    "encode_probabilities",
    "encode_restored",
    "read_image",
    "read_labels",
    "write_files",
    "write_image",
]

File = str | PathLike[str] | bytes

_HEAD = 1024  # enough to recognise any format, also through gzip

_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "png",
    b"\xff\xd8\xff": "jpeg",
    b"II*\0": "tiff",
    b"MM\0*": "tiff",
    b"II+\0": "tiff",
    b"MM\0+": "tiff",
    b"NRRD000": "nrrd",
}
_ZIP = b"PK\x03\x04"
# what people send by mistake, so that the answer can say what came
_FOREIGN = {
    _ZIP: "a ZIP archive",
    b"%PDF": "a PDF document",
    b"GIF8": "a GIF picture",
    b"BM": "a BMP picture",
    b"RIFF": "a RIFF (WebP or AVI) file",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 stream",
    b"\0\0\0\x0cjP": "a JPEG 2000 picture",
}
_WHAT_IS_READ = "PNG, JPEG, TIFF, NIfTI (.nii, .nii.gz), MetaImage, NRRD and DICOM are read"


def read_image(
    source: File | Sequence[File],
    *,
    limits: Limits = DEFAULT_LIMITS,
    series: int | str | None = None,
    regular_grid: bool = False,
) -> Image:
    """One image from a file (path or bytes), or from the files of one DICOM series: a list in any order, their folder,
    a DICOMDIR (path) or a zip.

    Of a folder all files count, also in folders within it, except hidden ones. Palette pictures become RGB; see
    `read_labels`. NaN is kept, for the model to refuse.
    series: where there are several, the number of one in the list that the refusal gives, or its SeriesInstanceUID.
    regular_grid: make a DICOM series of uneven slices even, where at most one is missing in a row, and not refuse it;
    and one of a tilted gantry upright, whose grid is else sheared as it is. Answers to what was changed are NIfTI.
    Raises UnreadableImage, UnsupportedImage, LimitExceeded, GeometryError or SeriesError.
    """
    return _read(source, limits, as_labels=False, series=series, regular_grid=regular_grid)


def read_labels(source: File | Sequence[File], *, limits: Limits = DEFAULT_LIMITS) -> Image:
    """As read_image, for a picture that holds label numbers: the samples of a palette or low-depth PNG stay as stored.

    So what encode_labels wrote comes back as the numbers it was made of.
    """
    return _read(source, limits, as_labels=True)


def write_image(image: Image, path: str | PathLike[str]) -> None:
    """Write an image as .png, .tif, .tiff, .nii or .nii.gz; what is read back has the same pixels.

    PNG and TIFF keep the pixels of one slice or of a stack, NIfTI also their place.
    Raises OutputError for other suffixes, for pixels that the format cannot hold, and where the disk does not take it.
    """
    target = Path(path)
    name = target.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        from medae.io import nifti

        data = nifti.encode(image, compress=name.endswith(".gz"))
    elif name.endswith((".png", ".tif", ".tiff")):
        from medae.io import raster

        data = raster.encode_as_png(image) if name.endswith(".png") else raster.encode_as_tiff(image)
    else:
        raise OutputError("images are written as .png, .tif, .tiff, .nii or .nii.gz; the path ends otherwise")
    write_files([AnswerFile(target.name, "application/octet-stream", data)], target.parent)


def encode_image(image: Image) -> bytes:
    """An image as one file of its own, whatever its source: a picture of unknown size as TIFF, else as NIfTI.

    What is read back has the same pixels in the same place. Raises OutputError for pixels that the format cannot hold.
    """
    from medae.io import nifti, raster

    # a fresh source: the header or the turn of the file that the image came from belongs to that file
    pixels = image.pixels.view("uint8") if image.pixels.dtype == bool else image.pixels
    plain = Image(pixels, image.geometry)
    return raster.encode_as_tiff(plain) if image.geometry.unit == "px" else nifti.encode(plain, compress=False)


def encode_labels(
    labels: Image,
    *,
    stem: str,
    labels_info: Sequence[Label],
    algorithm: Algorithm,
    dicom: DicomAnswers = DEFAULT_DICOM,
) -> list[AnswerFile]:
    """A segmentation in the format of its source: PNG with the labels' colours, TIFF, NIfTI or DICOM SEG.

    labels: whole numbers (1, slices, rows, columns), 0 is background, n is the n-th of `labels_info`.
    dicom: what kind of DICOM SEG.
    """
    seg = {"dicom": dicom} if labels.source.format == "dicom" else {}
    module = _writer(labels, dicom_writer="dicom_seg")
    files: list[AnswerFile] = module.encode_labels(
        labels, stem=stem, labels_info=labels_info, algorithm=algorithm, **seg
    )
    return files


def encode_restored(image: Image, *, stem: str, algorithm: Algorithm, description: str) -> list[AnswerFile]:
    """A restored image in the format and stored type of its source; a DICOM series becomes a derived series.

    image: modality values (HU, scaled NIfTI values, grey levels), rounded and clipped here to the stored type.
    description: one sentence for people, kept where the format has a place for it.
    """
    module = _writer(image, dicom_writer="dicom")
    files: list[AnswerFile] = module.encode_restored(image, stem=stem, algorithm=algorithm, description=description)
    return files


def encode_map(
    map: Image, *, stem: str, maximum: float, algorithm: Algorithm, dicom: DicomAnswers = DEFAULT_DICOM
) -> list[AnswerFile]:
    """A map of scores (1, slices, rows, columns) as float32 TIFF or NIfTI, or as FRACTIONAL SEG of 0 to `maximum`."""
    seg = {"dicom": dicom} if map.source.format == "dicom" else {}
    module = _writer(map, dicom_writer="dicom_seg")
    files: list[AnswerFile] = module.encode_map(map, stem=stem, maximum=maximum, algorithm=algorithm, **seg)
    return files


def encode_probabilities(
    probabilities: Image,
    *,
    stem: str,
    labels_info: Sequence[Label],
    algorithm: Algorithm,
    dicom: DicomAnswers = DEFAULT_DICOM,
) -> list[AnswerFile]:
    """(labels, slices, rows, columns) in 0 to 1, as float32 TIFF or NIfTI with a channel a label, or FRACTIONAL SEG."""
    seg = {"dicom": dicom} if probabilities.source.format == "dicom" else {}
    module = _writer(probabilities, dicom_writer="dicom_seg")
    files: list[AnswerFile] = module.encode_probabilities(
        probabilities, stem=stem, labels_info=labels_info, algorithm=algorithm, **seg
    )
    return files


def encode_labels_nifti(labels: Image, *, stem: str) -> list[AnswerFile]:
    """A segmentation of any source as `{stem}_labels.nii.gz`."""
    from medae.io import nifti

    return nifti.encode_plain_labels(labels, stem=stem)


def encode_png(picture: NDArray[Any]) -> bytes:
    """A picture for people: (rows, columns) or (rows, columns, 3), uint8 or uint16."""
    from medae.io import png

    return png.encode(picture)


def _read(
    source: File | Sequence[File],
    limits: Limits,
    *,
    as_labels: bool,
    series: int | str | None = None,
    regular_grid: bool = False,
) -> Image:
    with _unpacked(_files(source, limits), limits) as files:
        kinds = [_kind(_head(file)) for file in files]
        if kinds and all(kind == "dicom" for kind in kinds):
            from medae.io import dicom

            return dicom.read_dicom(files, limits, series=series, regular_grid=regular_grid)
        if series is not None:
            raise SeriesError(f"a series is chosen among DICOM files; what came is {_census(kinds)}")
        if len(files) != 1:
            raise SeriesError(f"one image is one file or one DICOM series; what came is {_census(kinds)}")
        return _reader(kinds[0], as_labels, files[0])(_content(files[0], limits), limits)


@contextmanager
def _unpacked(files: list[Path | bytes], limits: Limits) -> Iterator[list[Path | bytes]]:
    """The files themselves or, of one that is a table of others (a zip, a DICOMDIR), those; while the block runs."""
    head = _head(files[0]) if len(files) == 1 else b""
    if head.startswith(_ZIP) and _kind(head) == _FOREIGN[_ZIP]:
        from medae.io import archive

        bounds = archive.Bounds(
            files=limits.files, bytes=limits.bytes, freely=limits.inflate_freely, depth=limits.depth
        )
        with TemporaryDirectory(prefix="medae-") as folder:  # mode 0700
            try:
                unpacked = archive.unpack(files[0], Path(folder), bounds, lambda: False)
            except OSError as error:
                raise UnreadableImage(
                    f"the zip cannot be read, or not unpacked into the temporary folder ({type(error).__name__}); make "
                    "space there, or give the files themselves"
                ) from None
            yield [*unpacked]
    elif head[128:132] == b"DICM" and isinstance(files[0], Path) and _is_directory(head):
        from medae.io.dicom_directory import referenced_files

        yield [*referenced_files(files[0], limits)]
    else:
        yield files


def _is_directory(head: bytes) -> bool:
    from medae.io.dicom_directory import is_directory

    return is_directory(head)


def _files(source: File | Sequence[File], limits: Limits) -> list[Path | bytes]:
    """The one file, all files of the list, or all files of the folder."""
    if isinstance(source, bytes | bytearray | memoryview):
        return [bytes(source)]
    if not isinstance(source, str | PathLike):
        limits.admit_files(len(source))
        return [file for each in source for file in _files(each, limits)]
    path = Path(fspath(source))
    if not path.is_dir():
        return [path]
    files: list[Path | bytes] = []
    for file in _walk(path):
        limits.admit_files(len(files) + 1)
        files.append(file)
    return files


def _walk(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UnreadableImage(f"the folder cannot be listed ({type(error).__name__})") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield entry
        elif entry.is_dir() and not entry.is_symlink():  # a link may lead back up
            yield from _walk(entry)


def _head(file: Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:_HEAD]
    try:
        with file.open("rb") as stream:
            return stream.read(_HEAD)
    except OSError as error:
        raise UnreadableImage(
            f"the file cannot be opened ({type(error).__name__}); check that it exists and may be read"
        ) from None


def _content(file: Path | bytes, limits: Limits) -> bytes:
    if isinstance(file, bytes):
        limits.admit_bytes(len(file))
        return file
    try:
        limits.admit_bytes(file.stat().st_size)
        return file.read_bytes()
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read ({type(error).__name__})") from None


def _kind(head: bytes) -> str:
    """png, jpeg, tiff, nifti, metaimage, nrrd, dicom, or a phrase that says what came instead."""
    if head[128:132] == b"DICM":  # first: the 128 bytes before it may be those of any other format
        return "dicom"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head.startswith(GZIP_MAGIC):
        return _kind_of_volume(inflate_head(head, 544)) or "gzip data that is no NIfTI volume"
    if volume := _kind_of_volume(head):
        return volume
    from medae.io import dicom
    from medae.io.metaimage import is_metaimage

    if dicom.is_dicom(head):
        return "dicom"
    if is_metaimage(head):
        return "metaimage"
    if not head:
        return "an empty file"
    return next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), "an unknown kind of file")


def _kind_of_volume(head: bytes) -> str | None:
    """NIfTI by the size of its header, in either byte order, and its magic."""
    if len(head) < 348:
        return None
    size = {struct.unpack(order + "i", head[:4])[0] for order in "<>"}
    if (540 in size and head[4:8] == b"n+2\0") or (348 in size and head[344:348] == b"n+1\0"):
        return "nifti"
    if (540 in size and head[4:8] == b"ni2\0") or (348 in size and head[344:348] == b"ni1\0"):
        return "the header of a NIfTI pair (.hdr and .img; save it as one .nii file)"
    if 348 in size:
        return "an ANALYZE 7.5 header (it has no orientation; convert it to NIfTI)"
    return None


def _reader(kind: str, as_labels: bool, file: Path | bytes) -> Callable[[bytes, Limits], Image]:
    if kind == "nifti":
        from medae.io import nifti

        return nifti.read
    if kind in ("metaimage", "nrrd"):
        module = import_module(f"medae.io.{kind}")
        return partial(module.read, folder=file.parent if isinstance(file, Path) else None)
    if kind in ("png", "jpeg", "tiff"):
        from medae.io import raster

        return lambda data, limits: raster.read(data, kind, limits, as_labels=as_labels)
    if kind == "an empty file":
        raise UnreadableImage("the file is empty; an image was expected")
    raise UnsupportedImage(f"what came is {kind}; {_WHAT_IS_READ}")


def _census(kinds: Sequence[str]) -> str:
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(f"{count} x {kind}" for kind, count in counts.items()) or "an empty folder or list"


def _writer(image: Image, *, dicom_writer: str) -> ModuleType:
    """The module that writes in the format of the image's source."""
    match image.source.format:
        case "png" | "jpeg" | "tiff":
            return import_module("medae.io.raster")
        case "nifti" | "metaimage" | "nrrd":
            return import_module("medae.io.nifti")
        case "dicom":
            return import_module(f"medae.io.{dicom_writer}")
        case _:  # made in Python: a picture as TIFF, a volume with its place
            return import_module("medae.io.nifti" if image.geometry.shape[0] > 1 else "medae.io.raster")
