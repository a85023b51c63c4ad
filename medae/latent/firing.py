"""What makes each unit of a latent fire most: the parts of a collection's images that a dimension, or an entry of a
book, answers to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappush, heappushpop
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medae.errors import InputError, UsageError
from medae.io.answer import AnswerFile
from medae.latent.embedding import Collection
from medae.latent.sheet import Row, sheet
from medae.latent.space import LatentSpace
from medae.networks import Codes, Latent
from medae.pictures import RGB, display_range, to_rgb
from medae.predictor import prepare
from medae.preparation import Prepared

FRAME = (255, 0, 0)


class Shown(NamedTuple):
    """One place of one image; the first two order them."""

    activation: float
    number: int
    """Of the image: of two alike, the one that came first is kept."""
    picture: RGB


@dataclass
class Unit:
    """What one unit has answered to so far."""

    best: list[Shown] = field(default_factory=list)
    """A heap, the weakest first; one place an image at most."""
    seen: list[float] = field(default_factory=list)
    """Its strongest activation in each image that it is in."""

    def see(self, activation: float, number: int, cut: Callable[[], RGB], most: int) -> None:
        self.seen.append(activation)
        if len(self.best) < most:
            heappush(self.best, Shown(activation, -number, cut()))
        elif activation > self.best[0].activation:
            heappushpop(self.best, Shown(activation, -number, cut()))


def units(
    space: LatentSpace,
    images: Collection,
    *,
    chosen: Sequence[int] = (),
    count: int = 12,
    most: int = 8,
    watch: Callable[[str, str | None], None] = lambda id, reason: None,
) -> AnswerFile:
    """A row a unit: the parts of `most` images to which it answers most strongly, each about as large as what it sees.

    A unit is a dimension of the latent or, of a network with a book, an entry: it answers the more strongly the nearer
    an encoding is to it. chosen: none: the `count` dimensions that vary most over the images, or the entries that most
    images have. Raises UsageError where no image could be read, and for a unit that is not there.
    """
    found: list[Unit] = []
    for number, (name, read) in enumerate(images):
        try:
            prepared = prepare(space.card, read())
            activations = _activations(space, space.encode_prepared(prepared))
        except InputError as error:
            watch(name, str(error))
            continue
        found = found or [Unit() for _ in range(len(activations))]
        _see(found, activations, number, prepared, space, most)
        watch(name, None)
    if not found:
        raise UsageError("none of the images could be read, so there is nothing to show")
    if not all(0 <= number < len(found) for number in chosen):
        raise UsageError(f"this latent has the units 0 to {len(found) - 1}; got {', '.join(map(str, chosen))}")
    book = space.settings.latent == "codes"
    telling = [len(unit.seen) if book else float(np.std(unit.seen)) for unit in found]
    order = np.argsort(telling, kind="stable")[::-1].tolist()
    rows = [_row(number, found[number]) for number in chosen or order[:count] if found[number].best]
    return sheet("units.png", f"{space.card.name}: what makes each unit answer most", rows)


def _activations(space: LatentSpace, latent: Latent) -> Tensor:
    """(units, slices, *places); of an entry that was not chosen, minus infinity."""
    if not isinstance(latent, Codes):
        return latent.point().z.movedim(1, 0)
    near = torch.zeros(latent.indices.shape)
    if latent.encoded is not None:
        near = -(latent.encoded - latent.vectors).square().sum(1).sqrt()
    entries, _ = space.settings.quantiser.book  # type: ignore[attr-defined]
    every = torch.arange(entries).view(-1, *[1] * latent.indices.ndim)
    return torch.where(latent.indices == every, near, -torch.inf)


def _see(
    found: Sequence[Unit], activations: Tensor, number: int, prepared: Prepared, space: LatentSpace, most: int
) -> None:
    strongest, places = activations.flatten(1).max(1)
    for unit, activation, place in zip(found, strongest.tolist(), places.tolist(), strict=True):
        if activation > -np.inf:
            at = np.unravel_index(place, activations.shape[1:])
            unit.see(activation, number, partial(_cut, prepared, at, space), most)


def _cut(prepared: Prepared, at: Sequence[np.intp], space: LatentSpace) -> RGB:
    """About what the place at (slice, *places) of the latent sees; of a flat latent, the whole image."""
    field, pixels = space.field, prepared.image.pixels
    low, high = display_range(prepared.image)
    low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)
    if field.window is not None:
        return to_rgb(pixels[:, pixels.shape[1] // 2], low, high)
    slice_, row, column = (int(index) for index in at[-3:])
    if field.dims == 3:
        slice_ = min(slice_ * field.stride + field.stride // 2, pixels.shape[1] - 1)
    # half of the radius is the encoder's, the other half the decoder's
    side = field.stride + field.radius
    rows, columns = (
        _around(place, side, field.stride, length)
        for place, length in zip((row, column), pixels.shape[2:], strict=True)
    )
    shown = to_rgb(pixels[:, slice_, rows, columns], low, high)
    return _framed(shown, row * field.stride - rows.start, column * field.stride - columns.start, field.stride)


def _framed(shown: RGB, row: int, column: int, side: int) -> RGB:
    """A frame around the place itself, one pixel outside of it; cut off where the image ends."""
    top, left, bottom, right = max(row - 1, 0), max(column - 1, 0), row + side, column + side
    for line in (np.s_[top, left : right + 1], np.s_[top : bottom + 1, left]):
        shown[line] = FRAME
    if bottom < shown.shape[0]:
        shown[bottom, left : right + 1] = FRAME
    if right < shown.shape[1]:
        shown[top : bottom + 1, right] = FRAME
    return shown


def _around(place: int, side: int, stride: int, length: int) -> slice:
    """`side` voxels around the middle of a place, moved into the image."""
    start = max(0, min(place * stride + stride // 2 - side // 2, length - side))
    return slice(start, min(start + side, length))


def _row(number: int, unit: Unit) -> Row:
    best = sorted(unit.best, reverse=True)
    return Row(f"unit {number}", [shown.picture for shown in best], [f"{shown.activation:.2f}" for shown in best])
