"""Pictures of images and answers, for people: overlays, before and after. Never the answer itself."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medae.image import Image
from medae.io.answer import Label
from medae.resample import resample_onto, standard_grid

if TYPE_CHECKING:
    from PIL.Image import Image as PictureFile

RGB = NDArray[np.uint8]
"""(rows, columns, 3)"""

# how a slice is shown: slices along I/S are axial, along A/P coronal, along L/R sagittal (face to the left)
_SHOWN = {"I": "SPL", "S": "SPL", "A": "PIL", "P": "PIL", "L": "LIP", "R": "LIP"}
_OPACITY = 0.45


def upright(image: Image) -> Image:
    """The image as radiologists look at it: its own slices, turned; pictures stay as they are."""
    orientation = _SHOWN[image.geometry.axis_codes[0]]
    return resample_onto(image, standard_grid(image.geometry, orientation=orientation, spacing_mm=None))


def display_range(image: Image) -> tuple[float, float]:
    """What is shown black and white: the type's range of 8-bit pictures, else percentiles 0.5 and 99.5."""
    if image.pixels.dtype == np.uint8:
        return 0.0, 255.0
    finite = image.pixels[np.isfinite(image.pixels)]
    low, high = (float(value) for value in np.percentile(finite, (0.5, 99.5))) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1)


def to_rgb(slice_CRW: NDArray[Any], low: float, high: float) -> RGB:
    """One slice, grey or RGB, (channels, rows, columns) -> what a screen shows."""
    scaled = np.clip((np.nan_to_num(slice_CRW.astype(np.float32)) - low) * (255 / (high - low)), 0, 255)
    planes = scaled if len(scaled) == 3 else np.repeat(scaled[:1], 3, axis=0)
    rgb: RGB = np.moveaxis(np.rint(planes).astype(np.uint8), 0, -1)
    return rgb


def overlay_labels(rgb: RGB, labels_RW: NDArray[Any], labels: tuple[Label, ...]) -> RGB:
    """Tinted areas with a full-colour outline, in the labels' colours."""
    shown = rgb.astype(np.float32)
    for value in np.unique(labels_RW[labels_RW > 0]).tolist():  # of many labels a slice shows few
        inside, label = labels_RW == value, labels[value - 1]
        shown[inside] = (1 - _OPACITY) * shown[inside] + _OPACITY * np.array(label.colour, np.float32)
        shown[inside & ~_eroded(inside)] = label.colour
    return np.rint(shown).astype(np.uint8)


def overlay_map(rgb: RGB, map_RW: NDArray[Any], maximum: float) -> RGB:
    """A heat map on the fixed scale 0..maximum; what scores nothing stays as it is."""
    from matplotlib import colormaps

    strength = np.clip(map_RW / maximum, 0, 1)
    heat = colormaps["inferno"](strength)[..., :3] * 255
    weight = (0.8 * np.sqrt(strength))[..., None]
    mixed: RGB = np.rint((1 - weight) * rgb + weight * heat).astype(np.uint8)
    return mixed


def compared(before: RGB, after: RGB, gap: int = 4) -> RGB:
    """Two pictures of one shape side by side; wide ones below each other. White between them."""
    axis = 0 if before.shape[1] > 1.5 * before.shape[0] else 1
    space = np.full((gap, before.shape[1], 3) if axis == 0 else (before.shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([before, space, after], axis=axis)


def square_pixels(rgb: RGB, image: Image) -> RGB:
    """Stretched along one axis, so that a centimetre is as long down as across; small pictures enlarged."""
    from PIL import Image as Pillow

    _, row, column = image.geometry.spacing
    least = min(row, column)
    height, width = rgb.shape[0] * row / least, rgb.shape[1] * column / least
    enlarge = max(1, int(256 // max(height, width)))
    size = (max(1, round(width * enlarge)), max(1, round(height * enlarge)))
    if size == (rgb.shape[1], rgb.shape[0]):
        return rgb
    return np.asarray(Pillow.fromarray(rgb).resize(size, Pillow.Resampling.NEAREST))


def _eroded(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    from scipy.ndimage import binary_erosion

    kept: NDArray[np.bool_] = binary_erosion(inside)
    return kept


def contact_sheet(panels: Sequence[tuple[str, RGB]], *, width: int = 560, columns: int = 2) -> RGB:
    """Captioned pictures in columns, each made `width` wide."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font, line, gap = ImageFont.load_default(13), 20, 14
    cells = [(caption, _fitted(Pillow.fromarray(picture), width, width)) for caption, picture in panels]
    rows = [cells[at : at + columns] for at in range(0, len(cells), columns)]
    heights = [max(picture.height for _, picture in row) + line + gap for row in rows]
    sheet = Pillow.new("RGB", (columns * (width + gap) + gap, sum(heights) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for row, top in zip(rows, np.cumsum([gap, *heights]).tolist(), strict=False):
        for column, (caption, picture) in enumerate(row):
            left = gap + column * (width + gap)
            draw.text((left, top), caption, fill="black", font=font)
            sheet.paste(picture, (left, top + line))
    return np.asarray(sheet)


def _fitted(picture: "PictureFile", width: int, height: int) -> "PictureFile":
    """As large as fits; enlarged without smoothing, so that pixels are seen as they are."""
    from PIL import Image as Pillow

    factor = min(width / picture.width, height / picture.height)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return picture.resize(size, Pillow.Resampling.NEAREST if factor > 1 else Pillow.Resampling.LANCZOS)
