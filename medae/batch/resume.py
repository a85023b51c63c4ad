"""What is left to do: the plan less the journal, and whether what was done still stands."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medae.batch.folder import Folder
from medae.batch.item import Item
from medae.batch.journal import read, segments
from medae.batch.plan import Plan, parts
from medae.batch.results import Latest, latest
from medae.batch.settings import BatchSettings, Model
from medae.batch.sources import fingerprint, stamp
from medae.errors import InputError, UsageError
from medae.io import DEFAULT_LIMITS

COLUMNS = ("id", "package", "key", "status", "digest", "size", "time")


@dataclass(frozen=True)
class Left:
    """The work of one process."""

    plan: Plan
    models: tuple[str, ...]
    wanted: NDArray[np.bool_]
    """(models, cases)"""

    @property
    def cases(self) -> int:
        return int(np.count_nonzero(self.wanted.any(axis=0)))

    def items(self) -> Iterator[Item]:
        """The cases in the plan's order, each with the models that have not answered it."""
        count: NDArray[np.int64] = np.count_nonzero(self.wanted, axis=0)
        some, complete = count > 0, count == len(self.models)
        for place, item in zip(np.flatnonzero(some).tolist(), self.plan.items(some), strict=True):
            if complete[place]:
                yield item
            else:
                names = (name for name, wanted in zip(self.models, self.wanted[:, place], strict=True) if wanted)
                yield item._replace(packages=tuple(names))


def left(folder: Folder, plan: Plan, models: Sequence[Model], settings: BatchSettings, *, again: bool = False) -> Left:
    """What this process has to do: its shard of the plan, without what is done. again: also what had failed.

    Raises UsageError where something was done with another model, setting or input, unless it is to be scored again.
    """
    ids = plan.ids()
    rows = read(segments(folder), COLUMNS)
    mine = parts(ids, settings.part)
    wanted = np.empty((len(models), len(ids)), bool)
    for number, model in enumerate(models):
        found = latest(ids, rows, model.name)
        known = found.at >= 0
        same = _is(found, "key", model.key)
        done = known & same & _is(found, "status", "done")
        if not settings.rescore and (other := np.count_nonzero(known & ~same)):
            raise UsageError(
                f"{other} cases in this output folder were answered by another version of the model {model.name} or "
                "with other settings; give another --out, or --rescore to answer them again"
            )
        changed = _changed(plan, found, known & same & mine, settings) if known.any() else ~known
        if not settings.rescore and (other := np.count_nonzero(changed & done)):
            raise UsageError(
                f"{other} inputs that were answered have changed since; give --rescore to answer them again, or "
                "another --out"
            )
        finished = done if again else known & same
        wanted[number] = mine & ~(finished & ~changed)
    return Left(plan, tuple(model.name for model in models), wanted)


def _is(found: Latest, column: str, value: str) -> NDArray[np.bool_]:
    equal: NDArray[np.bool_] = np.asarray(pc.fill_null(pc.equal(found.column(column), value), False))
    return equal


def _changed(plan: Plan, found: Latest, known: NDArray[np.bool_], settings: BatchSettings) -> NDArray[np.bool_]:
    """Which inputs are not what was read: by size and time or, to verify, by digest; not those that are gone."""
    changed = np.zeros(len(known), bool)
    size, time = (np.asarray(pc.fill_null(found.column(name), -1)) for name in ("size", "time"))
    known = known & (size >= 0)  # of what could not be read, nothing is known
    digests = found.column("digest").filter(pa.array(known)).to_pylist() if settings.verify else None
    for number, (place, item) in enumerate(zip(np.flatnonzero(known).tolist(), plan.items(known), strict=True)):
        try:
            if digests is not None:
                changed[place] = fingerprint(item.files, DEFAULT_LIMITS, settings.allow).digest != digests[number]
                continue
            now = stamp(item.files)
        except InputError:
            continue
        changed[place] = (now.size, now.time) != (size[place], time[place])
    return changed
