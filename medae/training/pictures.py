"""Pictures of a validation: one PNG, a row a case, its input, target and output side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medae.image import Image
from medae.io import encode_png
from medae.io.answer import AnswerFile
from medae.pictures import RGB, display_range, overlay_labels, to_rgb
from medae.tasks import Segmentation, TaskConfig

SIDE = 256
"""Pixels of an image at most, along each side: its middle is shown."""

GAP = 4


def strip(cases: Sequence[Mapping[str, Image]], task: TaskConfig, name: str) -> AnswerFile:
    """A PNG of the middle slices. A restored image is shown on its input's scale; labels lie over it."""
    rows = [_row(images, task) for images in cases]
    width = max(row.shape[1] for row in rows)
    wide = [np.pad(row, ((0, GAP), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return AnswerFile(name, "image/png", encode_png(np.concatenate(wide)))


def _row(images: Mapping[str, Image], task: TaskConfig) -> RGB:
    source = images["input"]
    shown = _shown(source, source)
    row = [shown]
    for name in ("target", "output"):
        if name in images:
            row.append(_of_answer(images[name], source, shown, task))
    return np.concatenate([np.pad(one, ((0, 0), (0, GAP), (0, 0)), constant_values=255) for one in row], axis=1)


def _of_answer(answer: Image, source: Image, shown: RGB, task: TaskConfig) -> RGB:
    if isinstance(task, Segmentation):
        return overlay_labels(shown, _middle(answer)[0], task.labels)
    return _shown(answer, answer if task.kind == "anomaly" else source)


def _shown(image: Image, scale: Image) -> RGB:
    return to_rgb(_middle(image), *display_range(scale))


def _middle(image: Image) -> NDArray[Any]:
    """(C, rows, columns) of the middle slice, its middle."""
    _, slices, rows, columns = image.pixels.shape
    top, left = max(rows - SIDE, 0) // 2, max(columns - SIDE, 0) // 2
    return image.pixels[:, slices // 2, top : top + SIDE, left : left + SIDE]
