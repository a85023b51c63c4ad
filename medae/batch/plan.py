"""The plan of a batch: its cases in their order, in a Parquet file, so that a million of them need no memory."""

import hashlib
import os
import zlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medae.batch.files import from_bytes, to_bytes
from medae.batch.item import Item, printable
from medae.batch.settings import Shard
from medae.errors import UsageError

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("files", pa.list_(pa.binary())),
        ("patient", pa.string()),
        ("target", pa.string()),
        ("series", pa.int32()),
        ("regular_grid", pa.bool_()),
    ]
)
CHUNK = 1 << 12
"""Cases in memory at once."""


@dataclass(frozen=True)
class Plan:
    """A plan on disk. What is read of it is as large as a chunk."""

    path: Path
    count: int
    digest: str
    """Of its content; the same inputs give the same."""

    @classmethod
    def open(cls, path: Path) -> "Plan":
        """Raises UsageError where there is none."""
        try:
            found = pq.read_metadata(path)
        except (OSError, pa.ArrowInvalid):
            raise UsageError("there is no batch in this folder; start one with `medae batch run`") from None
        metadata = found.metadata or {}
        return cls(path, found.num_rows, metadata.get(b"medae.digest", b"").decode())

    def adopt(self, path: Path) -> "Plan":
        """The same under another name, in place of what was there."""
        os.replace(self.path, path)
        return Plan(path, self.count, self.digest)

    def ids(self) -> pa.ChunkedArray:
        return pq.read_table(self.path, columns=["id"])["id"]

    def tables(self) -> Iterator[pa.Table]:
        """The plan by chunks."""
        with pq.ParquetFile(self.path) as file:
            for batch in file.iter_batches(CHUNK):
                yield pa.Table.from_batches([batch])

    def items(self, wanted: NDArray[np.bool_]) -> Iterator[Item]:
        """The wanted cases, in order."""
        start = 0
        for table in self.tables():
            chosen = pa.array(wanted[start : start + len(table)])
            yield from (item_of(row) for row in table.filter(chosen).to_pylist())
            start += len(table)


def item_of(row: dict[str, Any]) -> Item:
    return Item(
        row["id"],
        tuple(from_bytes(line) for line in row["files"]),
        row["patient"],
        row["target"],
        series=row["series"],
        regular_grid=row["regular_grid"],
    )


def write_plan(
    items: Iterable[Item], path: Path, *, keep: Plan | None = None, answered: pa.ChunkedArray | None = None
) -> Plan:
    """Writes a plan of the items, and of those of an earlier plan that were answered and are no longer among them.

    Raises UsageError for two items of one id, and where there is none.
    """
    digest, names = hashlib.sha256(), array("q")

    def all_items() -> Iterator[Item]:
        for item in items:
            names.append(_hash(item.id))
            yield item
        if keep is not None and answered is not None and len(answered):
            known = np.asarray(pc.is_in(keep.ids(), value_set=answered))
            before = (_hash(name) for chunk in keep.ids().chunks for name in chunk.to_pylist())
            known &= ~np.isin(np.fromiter(before, np.int64, keep.count), names)
            for item in keep.items(known):
                names.append(_hash(item.id))
                yield item

    try:
        with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
            for chunk in _chunks(all_items()):
                columns = _columns(chunk)
                digest.update(repr(columns).encode(errors="surrogateescape"))
                arrays = (pa.array(columns[field.name], field.type) for field in SCHEMA)
                writer.write_table(pa.Table.from_arrays(list(arrays), schema=SCHEMA))
            writer.add_key_value_metadata({"medae.digest": digest.hexdigest()})
        plan = Plan(path, len(names), digest.hexdigest())
        if len(np.unique(names)) != len(names):
            _require_unique(plan)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return plan


def _folded(id: str) -> str:
    """As the file system that tells the fewest names apart has it."""
    return printable(id).casefold()


def _hash(id: str) -> int:
    """For ids as good as themselves in an eighth of the memory: of a million, two agree once in 10**8 batches."""
    return hash(_folded(id))


def _require_unique(plan: Plan) -> None:
    """Looks at the ids themselves. Raises UsageError."""
    if len({_folded(name) for chunk in plan.ids().chunks for name in chunk.to_pylist()}) != plan.count:
        raise UsageError(
            f"two of the {plan.count} cases have one id (neither capitals nor signs that a file's name cannot hold "
            "tell ids apart); give each an id of its own"
        )


def known_ids(plan: Plan) -> dict[bytes, str]:
    """What an earlier plan called each case, by its first file; so a case keeps its id when others come or go."""
    table = pq.read_table(plan.path, columns=["id", "files"])
    first = pc.list_element(table["files"], 0)
    return dict(zip(first.to_pylist(), table["id"].to_pylist(), strict=True))


def parts(ids: pa.ChunkedArray, shard: Shard) -> NDArray[np.bool_]:
    """Which of the cases belong to a shard: by a hash of the id alone, so that no two shards need to talk."""
    if shard.parts == 1:
        return np.ones(len(ids), bool)
    found = (
        zlib.crc32(name.encode()) % shard.parts == shard.number for chunk in ids.chunks for name in chunk.to_pylist()
    )
    return np.fromiter(found, bool, len(ids))


def _chunks(items: Iterable[Item]) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _columns(items: list[Item]) -> dict[str, list[Any]]:
    return {
        "id": [item.id for item in items],
        "files": [[to_bytes(file) for file in item.files] for item in items],
        "patient": [item.patient for item in items],
        "target": [item.target for item in items],
        "series": [item.series for item in items],
        "regular_grid": [item.regular_grid for item in items],
    }
