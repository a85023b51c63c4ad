"""Pictures of a validation: one PNG, a row a case, its input, target and output side by side."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medae.image import Image
from medae.io.answer import AnswerFile
from medae.tasks import Segmentation, TaskConfig

SIDE = 256
"""Pixels of an image at most, along each side: its middle is shown."""

GAP = 4

Picture = NDArray[np.uint8]


def strip(cases: Sequence[Mapping[str, Image]], task: TaskConfig, name: str) -> AnswerFile:
    """A PNG of the middle slices. Values are stretched over the input's range; labels lie in their colours over it."""
    from PIL import Image as Pillow

    rows = [_row(images, task) for images in cases]
    width = max(row.shape[1] for row in rows)
    wide = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    file = io.BytesIO()
    Pillow.fromarray(np.concatenate(wide)).save(file, "PNG")
    return AnswerFile(name, "image/png", file.getvalue())


def _row(images: Mapping[str, Image], task: TaskConfig) -> Picture:
    shown = _grey_or_colour(images["input"], images["input"])
    row = [shown]
    for name in ("target", "output"):
        if name in images:
            row.append(_of_answer(images[name], images["input"], shown, task))
    return np.concatenate([np.pad(one, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for one in row], axis=1)


def _of_answer(answer: Image, source: Image, shown: Picture, task: TaskConfig) -> Picture:
    if isinstance(task, Segmentation):
        return _labels_over(shown, _middle(answer)[0], task)
    return _grey_or_colour(answer, answer if task.kind == "anomaly" else source)


def _labels_over(shown: Picture, labels: NDArray[Any], task: Segmentation) -> Picture:
    colours = np.array([(0, 0, 0), *(label.colour for label in task.labels)], np.float32)[labels]
    mixed = np.where(labels[..., None] > 0, 0.5 * shown + 0.5 * colours, shown)
    return mixed.astype(np.uint8)


def _grey_or_colour(image: Image, scale: Image) -> Picture:
    middle = _middle(image).astype(np.float32)
    low, high = float(scale.pixels.min()), float(scale.pixels.max())
    stretched = ((middle - low) * (255 / (high - low or 1.0))).clip(0, 255).astype(np.uint8)
    planes = stretched if len(stretched) == 3 else stretched[:1].repeat(3, axis=0)
    return np.ascontiguousarray(np.moveaxis(planes, 0, 2))


def _middle(image: Image) -> NDArray[Any]:
    """(C, rows, columns) of the middle slice, its middle."""
    _, slices, rows, columns = image.pixels.shape
    top, left = max(rows - SIDE, 0) // 2, max(columns - SIDE, 0) // 2
    return image.pixels[:, slices // 2, top : top + SIDE, left : left + SIDE]
