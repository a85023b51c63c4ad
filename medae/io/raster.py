"""PNG, JPEG and TIFF <-> Image, and the answers to them.

A picture is read upright and answered as stored (see exif). JPEG is answered as PNG, since an answer must not lose
anything. PNG and JPEG say dots per inch for printers, never the size of tissue: their unit is px.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medae.errors import OutputError
from medae.image import Geometry, Image, Source
from medae.io import jpeg, png, tiff
from medae.io.answer import Algorithm, AnswerFile, Label, label_numbers, to_stored
from medae.io.exif import as_stored, exif_block, orientation_of, upright
from medae.io.guard import Limits

logger = logging.getLogger(__name__)

_PNG, _TIFF = "image/png", "image/tiff"


@dataclass(frozen=True)
class RasterSource(Source):
    """A picture or a stack of pictures: format is png, jpeg or tiff."""

    dtype: str = "uint8"
    """Of the samples as they were read: what a restored picture is rounded to."""
    orientation: int = 1
    """Exif orientation of the stored pixels, 1 to 8."""


def read(data: bytes, kind: str, limits: Limits, *, as_labels: bool = False) -> Image:
    """`kind` is png, jpeg or tiff. Raises UnreadableImage, UnsupportedImage or LimitExceeded."""
    spacing = None
    if kind == "tiff":
        pixels, orientation, spacing = tiff.decode(data, limits, as_labels=as_labels)
    else:
        if kind == "png":
            samples, exif = png.decode(data, limits, as_labels=as_labels)
        else:
            samples, exif = jpeg.decode(data, limits)
        orientation = orientation_of(exif)
        if samples.shape[2] in (2, 4):
            logger.warning("alpha was dropped: 1 of %d samples a pixel", samples.shape[2])
            samples = samples[..., :-1]
        pixels = np.moveaxis(samples, 2, 0)[:, None]
    seen = np.ascontiguousarray(upright(pixels, orientation))
    _, slices, rows, columns = seen.shape
    geometry = Geometry.picture(rows, columns, slices=slices, spacing_mm=_turned(spacing, orientation))
    return Image(seen, geometry, RasterSource(kind, seen.dtype.name, orientation))


def encode_labels(labels: Image, *, stem: str, labels_info: Sequence[Label], algorithm: Algorithm) -> list[AnswerFile]:
    """PNG in the labels' colours, index = label (16-bit grey where there are more than 255), or TIFF of numbers."""
    numbers = labels.with_pixels(label_numbers(labels, len(labels_info)))
    if not _answers_as_png(labels):
        return [AnswerFile(f"{stem}_labels.tif", _TIFF, _tiff(numbers, algorithm.signature))]
    has_palette = numbers.pixels.dtype == np.uint8
    palette = [(0, 0, 0), *(label.colour for label in labels_info)] if has_palette else None
    return [AnswerFile(f"{stem}_labels.png", _PNG, _png(numbers, algorithm.signature, palette))]


def encode_restored(image: Image, *, stem: str, algorithm: Algorithm, description: str) -> list[AnswerFile]:
    """PNG or TIFF of the source's sample type. `description` has no place in these formats."""
    source = image.source
    dtype = source.dtype if isinstance(source, RasterSource) else image.pixels.dtype
    stored = image.with_pixels(to_stored(image.pixels, dtype))
    if _answers_as_png(image):
        return [AnswerFile(f"{stem}_restored.png", _PNG, _png(stored, algorithm.signature))]
    return [AnswerFile(f"{stem}_restored.tif", _TIFF, _tiff(stored, algorithm.signature))]


def encode_map(map_: Image, *, stem: str, maximum: float, algorithm: Algorithm) -> list[AnswerFile]:
    """float32 TIFF of the scores themselves; `maximum` is for formats that need a scale."""
    return [AnswerFile(f"{stem}_map.tif", _TIFF, _tiff(_real(map_), algorithm.signature))]


def encode_probabilities(
    probabilities: Image, *, stem: str, labels_info: Sequence[Label], algorithm: Algorithm
) -> list[AnswerFile]:
    """float32 TIFF with a channel a label."""
    data = _tiff(_real(probabilities), algorithm.signature)
    return [AnswerFile(f"{stem}_probabilities.tif", _TIFF, data)]


def encode_as_png(image: Image) -> bytes:
    """Raises OutputError for more than one slice, other types than uint8 and uint16, other than 1 or 3 channels."""
    if image.geometry.shape[0] != 1:
        raise OutputError(f"a PNG holds one slice, got {image.geometry.shape[0]}; write .tif or .nii.gz instead")
    return _png(image, "medae")


def encode_as_tiff(image: Image) -> bytes:
    """Any image; a page a slice."""
    return _tiff(image, "medae")


def _png(image: Image, made_by: str, palette: Sequence[tuple[int, int, int]] | None = None) -> bytes:
    orientation = _orientation(image)
    picture = np.moveaxis(as_stored(image.pixels, orientation)[:, 0], 0, -1)
    return png.encode(picture, palette=palette, exif=exif_block(orientation), made_by=made_by)


def _tiff(image: Image, made_by: str) -> bytes:
    orientation = _orientation(image)
    is_measured = image.geometry.unit == "mm" and image.geometry.shape[0] == 1
    spacing = _turned(image.geometry.spacing[1:], orientation) if is_measured else None
    pixels = as_stored(image.pixels, orientation)
    return tiff.encode(pixels, orientation=orientation, spacing_mm=spacing, made_by=made_by)


def _real(image: Image) -> Image:
    return image.with_pixels(image.pixels.astype(np.float32, copy=False))


def _answers_as_png(image: Image) -> bool:
    return image.source.format in ("png", "jpeg")


def _orientation(image: Image) -> int:
    return image.source.orientation if isinstance(image.source, RasterSource) else 1


def _turned(spacing: tuple[float, float] | None, orientation: int) -> tuple[float, float] | None:
    """(row, column) spacing between stored and upright, either way: orientations from 5 exchange rows and columns."""
    return spacing[::-1] if spacing is not None and orientation >= 5 else spacing
