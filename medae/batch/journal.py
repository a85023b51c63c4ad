"""The journal of a batch: what is done, in segments that are on disk whole or not at all.

A case's answers are written under random names into a staging folder. A commit then makes them durable (one sync of
the file system for all of them, since one a file would cost more than the work), renames them into their places, makes
that durable, and last writes the segment: temporary, sync, rename. So whatever a segment says is done lies in its
place, whole; and what no segment says, is done again. Nothing is ever changed in a segment. Where a case was done
twice, on purpose, the later run's record counts.
"""

import hashlib
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from medae.batch.folder import Folder, sync, taken
from medae.batch.item import Item
from medae.batch.work import STAGES, Kept, Outcome
from medae.io.answer import AnswerFile, sync_one

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("package", pa.string()),
        ("key", pa.string()),
        ("status", pa.string()),
        ("digest", pa.string()),
        ("size", pa.int64()),
        ("time", pa.int64()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("percentile", pa.float64()),
        ("p_value", pa.float64()),
        ("decision", pa.string()),
        ("gate", pa.string()),
        ("gate_percentile", pa.float64()),
        ("gate_reasons", pa.list_(pa.string())),
        ("vector", pa.list_(pa.float32())),
        ("outputs", pa.list_(pa.struct([("name", pa.string()), ("sha256", pa.string())]))),
        ("seconds", pa.struct([(stage, pa.float64()) for stage in STAGES])),
        ("code", pa.string()),
        ("reason", pa.string()),
        ("medae", pa.string()),
        ("device", pa.string()),
    ]
)
COMMIT_SECONDS = 5.0
"""Uncommitted work is at most about this old."""


@dataclass(frozen=True)
class Staged:
    """Writes answers under random names; a commit puts them into their places."""

    staging: Path
    several: bool
    """Whether there are several models: each then has a folder of its own."""
    fan_out: bool
    """Whether there are so many cases that one folder would be slow: 256 folders then, by the id's hash."""
    durable: bool = False
    """Whether each file is synced here: where the commit happens on another machine."""

    def __call__(self, files: Sequence[AnswerFile], item: Item, package: str) -> list[Kept]:
        """Raises OutputError."""
        parts = ["answers", *([package] if self.several else []), *([_bucket(item.id)] if self.fan_out else [])]
        folder = "/".join(parts)
        return [
            Kept(f"{folder}/{file.name}", hashlib.sha256(file.data).hexdigest(), self._write(file.data))
            for file in files
        ]

    def _write(self, data: bytes) -> str:
        name = uuid.uuid4().hex
        with taken():
            descriptor = os.open(self.staging / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                if self.durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        return name


def _bucket(id: str) -> str:
    return f"{zlib.crc32(id.encode()) & 0xFF:02x}"


class Journal:
    """Reads what is committed, and commits."""

    def __init__(self, folder: Folder, staging: Path, keys: Mapping[str, str], batch: int) -> None:
        """staging: where the answers wait. keys: what decides each model's. batch: cases between two commits."""
        self._folder = folder
        self._staging = staging
        self._keys = keys
        self._batch = batch
        self._pending: list[Outcome] = []
        self._cases = 0
        self._since = time.monotonic()
        self._run = 1 + max((int(path.name.split("-")[0]) for path in segments(folder)), default=0)
        self._count = 0
        self.committed = 0

    @property
    def pending(self) -> int:
        """Cases that wait for a commit."""
        return self._cases

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """One case. Raises OutputError where a commit was due and the disk did not take it."""
        if not self._cases:
            self._since = time.monotonic()
        self._pending += outcomes
        self._cases += 1
        self.tick()

    def tick(self) -> None:
        """Commit if it is time to."""
        old = time.monotonic() - self._since >= COMMIT_SECONDS
        if self._cases and (old or self._cases >= self._batch):
            self.commit()

    def commit(self) -> None:
        """All that is pending: its answers into their places, then its records. Raises OutputError."""
        if not self._pending:
            return
        name = f"{self._run:06d}-{self._count:08d}-{uuid.uuid4().hex[:8]}.arrow"
        with taken():
            self._place([kept for outcome in self._pending for kept in outcome.kept])
            write_segment(self._folder.segments / name, records(self._pending, self._keys))
        self._count += 1
        self.committed += self._cases
        self._pending, self._cases = [], 0

    def _place(self, files: Sequence[Kept]) -> None:
        staging, out = self._staging, self._folder.out
        sync([staging / file.staged for file in files])
        folders = {(out / file.name).parent for file in files}
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            os.replace(staging / file.staged, out / file.name)
        sync(sorted(folders))


def records(outcomes: Sequence[Outcome], keys: Mapping[str, str]) -> pa.Table:
    """Rows of SCHEMA."""
    return pa.Table.from_pylist([_row(outcome, keys) for outcome in outcomes], schema=SCHEMA)


def _row(outcome: Outcome, keys: Mapping[str, str]) -> dict[str, Any]:
    summary, mark = outcome.summary, outcome.fingerprint
    gate = summary.get("gate") or {}
    provenance = summary.get("provenance", {})
    return {
        "id": outcome.item.id,
        "package": outcome.package,
        "key": keys[outcome.package],
        "status": outcome.status,
        "digest": mark.digest if mark else None,
        "size": mark.size if mark else None,
        "time": mark.time if mark else None,
        "scores": list(summary.get("scores", {}).items()),
        **{name: summary.get(name) for name in ("percentile", "p_value", "decision")},
        "gate": gate.get("verdict"),
        "gate_percentile": gate.get("percentile"),
        "gate_reasons": list(gate["reasons"]) if gate else None,
        "vector": outcome.vector,
        "outputs": [{"name": kept.name, "sha256": kept.sha256} for kept in outcome.kept],
        "seconds": {stage: outcome.stages.get(stage) for stage in STAGES},
        "code": outcome.code or None,
        "reason": outcome.reason or None,
        **{name: provenance.get(name) for name in ("medae", "device")},
    }


def write_segment(path: Path, rows: pa.Table) -> None:
    """Whole or not at all, and on disk. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "xb") as file:
            with pa.ipc.new_file(file, SCHEMA) as writer:
                writer.write_table(rows)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync_one(path.parent)
    finally:
        part.unlink(missing_ok=True)


def segments(folder: Folder) -> list[Path]:
    """In the order in which they count."""
    return sorted(folder.segments.glob("[0-9]*.arrow"))


def read(paths: Sequence[Path], columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of segments, mapped from their files."""
    names = list(columns or SCHEMA.names)
    tables = []
    for path in paths:
        with pa.memory_map(str(path)) as file:
            tables.append(pa.ipc.open_file(file).read_all().select(names))
    if not tables:
        return pa.schema([SCHEMA.field(name) for name in names]).empty_table()
    return pa.concat_tables(tables)


def sweep(folder: Folder) -> None:
    """Drop what a run that was killed had not committed; only while no other process is at work."""
    shutil.rmtree(folder.staging, ignore_errors=True)
    for part in folder.own.rglob("*.part"):
        part.unlink(missing_ok=True)


def files_of(rows: pa.Table) -> Iterator[str]:
    """The names of all answers that some rows speak of."""
    for outputs in rows["outputs"].to_pylist():
        yield from (output["name"] for output in outputs or ())
