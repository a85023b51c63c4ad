"""Sheets of small pictures, labelled, so that people see what a latent space holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medae.io import encode_png
from medae.io.answer import AnswerFile
from medae.pictures import RGB

CELL = 96
"""Pixels of a cell's longer side at least: smaller pictures are enlarged by a whole factor."""
LARGEST = 256
"""Larger ones are reduced to this."""
GAP, LINE, CHARACTER = 6, 18, 7
FRAME = (200, 200, 200)


@dataclass(frozen=True)
class Row:
    """Pictures side by side, with what they are."""

    label: str
    pictures: Sequence[RGB]
    captions: Sequence[str] = ()
    """One above each picture; none: as the row before."""


def sheet(name: str, title: str, rows: Sequence[Row]) -> AnswerFile:
    """A PNG of all rows below each other, under a title; all pictures at one scale."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    sizes = [picture.shape[:2] for row in rows for picture in row.pictures]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    factor = _factor(max(height, width))
    cell = round(height * factor), round(width * factor)
    left = GAP + CHARACTER * max(len(row.label) for row in rows) + GAP
    across = max(len(row.pictures) for row in rows)
    tops = np.cumsum([2 * GAP + LINE, *((LINE if row.captions else 0) + cell[0] + GAP for row in rows)]).tolist()
    wide = max(left + across * (cell[1] + GAP), GAP + CHARACTER * len(title) + GAP)
    page = Pillow.new("RGB", (wide, tops[-1]), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    draw.text((GAP, GAP), title, fill="black", font=ImageFont.load_default(13))
    for row, top in zip(rows, tops, strict=False):
        below = top + (LINE if row.captions else 0)
        draw.text((GAP, below + cell[0] // 2 - LINE // 2), row.label, fill="black", font=font)
        for at, picture in enumerate(row.pictures):
            x = left + at * (cell[1] + GAP)
            if row.captions:
                draw.text((x, top), row.captions[at], fill="black", font=font)
            shown = Pillow.fromarray(picture)
            size = round(picture.shape[1] * factor), round(picture.shape[0] * factor)
            page.paste(
                shown.resize(size, Pillow.Resampling.NEAREST if factor >= 1 else Pillow.Resampling.LANCZOS), (x, below)
            )
    return AnswerFile(name, "image/png", encode_png(np.asarray(page)))


def _factor(side: int) -> float:
    """96 of 32: 3; 96 of 100: 1; 256 of 512: a half."""
    return float(-(-CELL // side)) if side <= LARGEST else LARGEST / side
