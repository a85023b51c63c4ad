"""The pictures of the worst and the best cases, kept while an evaluation goes on; those of all others are dropped."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medae import pictures
from medae.image import Image
from medae.io import encode_png
from medae.metrics.detection import NORMAL
from medae.package import ModelPackage
from medae.tasks import Anomaly, Segmentation

SIDE = 512
"""Pixels of a picture at most, along each side."""


class Row(Protocol):
    """One case's numbers, or the reason why it has none."""

    @property
    def id(self) -> str: ...
    @property
    def label(self) -> str | None: ...
    @property
    def values(self) -> Mapping[str, float]: ...
    @property
    def reason(self) -> str | None: ...


RowT = TypeVar("RowT", bound=Row)


class Panel(NamedTuple):
    """One picture, as the page embeds it."""

    caption: str
    data_uri: str


class Shown(NamedTuple):
    """One case in pictures."""

    row: Row
    value: float
    caption: str
    """Its numbers, and which slice is shown where there are several."""
    wide: bool
    """Whether its pictures stand better below each other."""
    panels: Sequence[Panel]


@dataclass
class Group:
    """The `count` cases at one end of the headline's order, out of those that `takes` names."""

    title: str
    highest: bool
    count: int
    takes: frozenset[str] | None = None
    """Kinds of `kind_of`; None: all."""
    cases: list[Shown] = field(default_factory=list)

    def wants(self, row: Row, value: float) -> bool:
        if self.takes is not None and kind_of(row) not in self.takes:
            return False
        return len(self.cases) < self.count or self._better(value, self.cases[-1].value)

    def add(self, shown: Shown) -> None:
        self.cases = sorted([*self.cases, shown], key=lambda case: case.value, reverse=self.highest)[: self.count]

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.highest else value < than


def kind_of(row: Row) -> str:
    """normal, abnormal, or unknown without a label."""
    if row.label is None:
        return "unknown"
    return NORMAL if row.label == NORMAL else "abnormal"


class Gallery:
    """Shown every case once; remembers few."""

    def __init__(self, package: ModelPackage) -> None:
        self._package = package
        task = package.card.task
        if isinstance(task, Anomaly):
            self._headline = task.score_name
            self._groups = [
                Group("Abnormal, but scored low: missed first", False, 4, frozenset({"abnormal"})),
                Group("Normal, but scored high: false alarms first", True, 4, frozenset({NORMAL})),
                Group("Abnormal and scored high", True, 4, frozenset({"abnormal"})),
                Group("Scored high, of unknown kind", True, 4, frozenset({"unknown"})),
            ]
        else:
            self._headline = "dice" if isinstance(task, Segmentation) else "psnr"
            self._groups = [Group("Worst", False, 4), Group("Best", True, 3)]

    def see(self, row: Row, images: Mapping[str, Image]) -> None:
        """images: input, output and, where there is one, target."""
        value = row.values.get(self._headline, math.nan)
        wanted = [] if math.isnan(value) else [group for group in self._groups if group.wants(row, value)]
        if wanted:
            shown = self._show(row, value, images)
            for group in wanted:
                group.add(shown)

    def groups(self) -> list[Group]:
        """Those with something in them; a case stands in the first that has it."""
        seen: set[int] = set()
        for group in self._groups:
            group.cases = [case for case in group.cases if id(case) not in seen]
            seen |= {id(case) for case in group.cases}
        found = [group for group in self._groups if group.cases]
        return [replace(found[0], title="All, worst first")] if [group.title for group in found] == ["Worst"] else found

    def ordered(self, rows: Iterable[RowT]) -> list[RowT]:
        """What deserves a look first: the worst, or the highest scores."""
        sign = -1 if isinstance(self._package.card.task, Anomaly) else 1

        def key(row: RowT) -> float:
            value = row.values.get(self._headline, math.nan)
            return math.inf if math.isnan(value) else sign * value

        return sorted(rows, key=key)

    def _show(self, row: Row, value: float, images: Mapping[str, Image]) -> Shown:
        upright = {name: pictures.upright(image) for name, image in images.items()}
        at = self._telling_slice(upright)
        grid = upright["input"]
        drawn = {name: pictures.square_pixels(rgb, grid) for name, rgb in self._drawn(upright, at).items()}
        height, width = next(iter(drawn.values())).shape[:2]
        panels = [Panel(caption, _data_uri(rgb)) for caption, rgb in drawn.items()]
        return Shown(row, value, self._caption(row, at, grid.geometry.shape[0]), width > 2 * height, panels)

    def _caption(self, row: Row, at: int, slices: int) -> str:
        names = [self._headline] if isinstance(self._package.card.task, Anomaly) else list(row.values)
        said = ", ".join(f"{name} {row.values[name]:.4g}" for name in names)
        return said + (f"; slice {at + 1} of {slices}" if slices > 1 else "")

    def _telling_slice(self, images: Mapping[str, Image]) -> int:
        """The one with the most labelled voxels or the highest map; the middle one of a restoration."""
        task = self._package.card.task
        if isinstance(task, Segmentation):
            weight = sum(np.count_nonzero(images[name].pixels, axis=(0, 2, 3)) for name in ("target", "output"))
        elif isinstance(task, Anomaly):
            weight = images["output"].pixels.sum(axis=(0, 2, 3))
        else:
            weight = np.zeros(images["output"].geometry.shape[0])
        each: NDArray[np.float64] = np.asarray(weight, float)
        return int(each.argmax()) if each.max() > each.min() else len(each) // 2

    def _drawn(self, images: Mapping[str, Image], at: int) -> dict[str, pictures.RGB]:
        task = self._package.card.task
        names = {"input": "input", "output": "answer", "target": "target"}
        # one scale for all pictures of a case: a restoration must not look better for being stretched
        scale = images["target" if task.kind == "restoration" else "input"]
        low, high = pictures.display_range(scale)
        shown = {name: pictures.to_rgb(image.pixels[:, at], low, high) for name, image in images.items()}
        if isinstance(task, Segmentation):
            for name in ("output", "target"):
                shown[name] = pictures.overlay_labels(shown["input"], images[name].pixels[0, at], task.labels)
        elif isinstance(task, Anomaly):
            calibration = self._package.calibration
            maximum = calibration.map_maximum if calibration else 1.0
            shown["output"] = pictures.overlay_map(shown["input"], images["output"].pixels[0, at], maximum)
            names["output"] = f"residual, 0 to {maximum:.3g}"
        return {caption: shown[name] for name, caption in names.items() if name in shown}


def picture_panel(caption: str, rgb: pictures.RGB) -> Panel:
    """A picture of at most SIDE pixels, as a page embeds it."""
    return Panel(caption, _data_uri(rgb))


def _data_uri(rgb: pictures.RGB) -> str:
    from PIL import Image as Pillow

    picture = Pillow.fromarray(rgb)
    picture.thumbnail((SIDE, SIDE))  # smaller, never larger
    data = encode_png(np.asarray(picture))
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
