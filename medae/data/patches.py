"""Patches: random cut-outs of prepared cases, as a torch dataset.

Every draw is a function of (seed, epoch, index), so neither the number of loader workers nor a resumed training changes
what the network sees. The sampler says which epoch an index belongs to; a persistent worker, which holds a copy of the
data set from the first epoch, needs no message.

Axes: C channels, S slices, R rows, W columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from medae.data.augment import AugmentSettings, Pair
from medae.errors import SettingsError

_CENTRES = 20_000
"""So many foreground voxels per label and case are remembered."""

_ORDER = 2**63
"""The index whose draws belong to the epoch as a whole."""


def generator_at(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The chances of one sample: Philox (Salmon 2011) is a function of key and counter, so nothing is kept.

    `index` is the counter's highest word, which leaves 2**192 draws before it meets its neighbour.
    """
    counter = np.array([0, 0, 0, index], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=counter))


@dataclass(frozen=True, eq=False)
class PreparedCase:
    """What patches are cut from: one case on the network's grid."""

    image: NDArray[np.float32]
    """(C, S, R, W)"""
    target: NDArray[Any] | None = None
    """(1, S, R, W) whole numbers: labels; (C, S, R, W) real numbers: the clean image; None: the image itself, or what
    a corruption makes of it."""


class Patches(Dataset[dict[str, Tensor]]):
    """`length` patches per epoch; item (epoch, index) -> {"image": (C, *size)} and, where there is one, "target".

    size: (rows, columns), cut from single slices, or (slices, rows, columns).
    foreground: this part of the patches holds, anywhere in it, a random voxel of a random label of its case.
    A case smaller than the patch is mirrored at its borders, target and all: what the mirror shows is what it shows,
    where labels of background would teach that half a nucleus is none.
    Every voxel of all cases is as likely as any other to choose its case; per epoch the shares are exact, not random.
    Labels come as int64, all else as float32.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        size: tuple[int, ...],
        length: int,
        seed: int,
        augment: AugmentSettings | None = None,
        foreground: float = 0.0,
    ) -> None:
        if not cases:
            raise SettingsError("there is no case to cut patches from; check the data's splits")
        if len(size) not in (2, 3) or min(size) < 1 or length < 1 or seed < 0:
            raise SettingsError(
                f"a patch has 2 or 3 sizes of at least 1, an epoch at least one patch, a seed is not negative; "
                f"got size {size}, length {length}, seed {seed}"
            )
        self.dims = len(size)
        self.size = (1, *size) if self.dims == 2 else size
        self.cases = [_at_least(case, self.size) for case in cases]
        self.length, self.seed, self.augment, self.foreground = length, seed, augment, foreground
        self._centres = [_centres(case.target) if foreground > 0 else [] for case in self.cases]
        shares = np.cumsum([case.image[0].size for case in cases], dtype=np.float64)
        self._shares = shares / shares[-1]

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, at: tuple[int, int]) -> dict[str, Tensor]:
        epoch, index = at
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = generator_at(self.seed, epoch, index)
        number = self._case_of(epoch, index, rng)
        sample = self._cut(self.cases[number], self._start(number, rng))
        if self.augment is not None:
            sample = self.augment(sample, rng)
        return {name: _tensor(values) for name, values in sample._asdict().items() if values is not None}

    def _case_of(self, epoch: int, index: int, rng: np.random.Generator) -> int:
        # one draw from each of `length` equal strata, in a random order
        stratum = _order(self.seed, epoch, self.length)[index]
        at = (stratum + rng.random()) / self.length
        return min(int(np.searchsorted(self._shares, at, side="right")), len(self.cases) - 1)

    def _start(self, number: int, rng: np.random.Generator) -> list[int]:
        shape = self.cases[number].image.shape[1:]
        labels = self._centres[number]
        if labels and rng.random() < self.foreground:
            voxels = labels[rng.integers(len(labels))]
            centre = voxels[rng.integers(len(voxels))]
            # anywhere around the voxel, not only centred: else the middle of a patch is always foreground
            wanted = [int(at) - int(rng.integers(need)) for at, need in zip(centre, self.size, strict=True)]
            return [min(max(at, 0), have - need) for at, have, need in zip(wanted, shape, self.size, strict=True)]
        return [int(rng.integers(have - need + 1)) for have, need in zip(shape, self.size, strict=True)]

    def _cut(self, case: PreparedCase, start: Sequence[int]) -> Pair:
        box = (slice(None), *(slice(at, at + need) for at, need in zip(start, self.size, strict=True)))

        def cut(values: NDArray[Any]) -> NDArray[Any]:
            return values[box][:, 0] if self.dims == 2 else values[box]

        return Pair(cut(case.image), None if case.target is None else cut(case.target))


class PatchSampler(Sampler[tuple[int, int]]):
    """(epoch, index) for every patch of one epoch; assign `epoch` before iterating over the loader.

    There is no `set_epoch`: Fabric's loader would call it with its own count, which starts at 0 again when a training
    is resumed. Indices need no shuffling, because patches are random already.
    """

    def __init__(self, length: int, epoch: int = 0) -> None:
        self.length = length
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return ((epoch, index) for index in range(self.length))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return generator_at(seed, epoch, _ORDER).permutation(length)


def _at_least(case: PreparedCase, size: tuple[int, ...]) -> PreparedCase:
    missing = [max(need - have, 0) for need, have in zip(size, case.image.shape[1:], strict=True)]
    if not any(missing):
        return case
    width = [(0, 0), *((amount // 2, amount - amount // 2) for amount in missing)]
    target = None if case.target is None else np.pad(case.target, width, mode="reflect")
    return PreparedCase(np.pad(case.image, width, mode="reflect"), target)


def _centres(target: NDArray[Any] | None) -> list[NDArray[np.int32]]:
    """(n, 3) voxels of each label that the case has; every k-th where there are too many."""
    if target is None or target.dtype.kind == "f":
        return []
    found = []
    for label in np.unique(target[target > 0]).tolist():
        voxels = np.argwhere(target[0] == label).astype(np.int32)
        found.append(voxels[:: -(-len(voxels) // _CENTRES)])
    return found


def _tensor(values: NDArray[Any]) -> Tensor:
    kind = np.float32 if values.dtype.kind == "f" else np.int64
    # a copy: the loader keeps patches, and a view would keep, or share, the whole case
    return torch.from_numpy(np.array(values, kind, order="C"))
