"""The table of results: results.parquet, an Arrow dataset with a part for each model and one row a case.

It is made of the journal, in the order of the plan: the same records give the same bytes, whatever order and however
many interruptions they were made in (but for the seconds that the stages took).
"""

import hashlib
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from numpy.typing import NDArray

import medae
from medae.batch import journal, lease
from medae.batch.folder import Folder, taken
from medae.batch.plan import CHUNK, Plan, parts
from medae.batch.settings import WHOLE, Shard
from medae.batch.work import STAGES
from medae.calibration import benjamini_hochberg
from medae.io.answer import AnswerFile, write_files

_BEFORE_SCORES = ("id", "patient", "target", "status")
_AFTER_SCORES = (
    *(
        "percentile",
        "p_value",
        "p_adjusted",
        "decision",
        "gate",
        "gate_percentile",
        "gate_reasons",
        "vector",
        "outputs",
    ),
    *("output_digests", "input_digest", *(f"seconds_{stage}" for stage in STAGES), "code", "reason", "medae", "device"),
)


PART = 16
"""Chunks of a file of the table."""


class Latest(NamedTuple):
    """Of each case of a plan, the record that counts."""

    at: NDArray[np.int64]
    """Its row in the journal; -1 where there is none."""
    rows: pa.Table
    """Of the journal, with the columns that were asked for."""

    def column(self, name: str) -> pa.ChunkedArray:
        """By case; null where there is no record."""
        return self.rows[name].take(pa.array(self.at, mask=self.at < 0))


def latest(ids: pa.ChunkedArray, rows: pa.Table, package: str) -> Latest:
    """rows: of the whole journal in its order, with id and package."""
    mine = np.flatnonzero(np.asarray(pc.equal(rows["package"], package)))[::-1]  # the latest first: index_in takes it
    if not len(mine):
        return Latest(np.full(len(ids), -1), rows)
    found = pc.index_in(ids, value_set=rows["id"].take(pa.array(mine)))
    places = np.asarray(pc.fill_null(found, -1)).astype(np.int64)
    return Latest(np.where(places < 0, -1, mine[places]), rows)


def is_not_done(status: pa.ChunkedArray) -> pa.ChunkedArray:
    """Which records are of cases that failed."""
    return pc.not_equal(status, "done")


@dataclass
class Counts:
    """How a batch stands."""

    total: int
    done: int = 0
    failed: int = 0
    fault: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """How often each code stands in the table."""

    @property
    def left(self) -> int:
        return self.total - self.done - self.failed - self.fault


def count(plan: Plan, rows: pa.Table, packages: Sequence[str], shard: Shard = WHOLE) -> Counts:
    """Of a shard's cases: one counts as failed where any model failed on it, as left where any has not answered."""
    ids = plan.ids()
    if shard.parts > 1:
        ids = ids.filter(pa.array(parts(ids, shard)))
    worst = np.zeros(len(ids), np.int64)
    order = ("done", "failed", "fault")
    codes: Counter[str] = Counter()
    for package in packages:
        found = latest(ids, rows, package)
        status = pc.fill_null(pc.index_in(found.column("status"), value_set=pa.array(order)), 3)
        worst = np.maximum(worst, np.asarray(status))
        for code in pc.value_counts(found.column("code").drop_null()).to_pylist():
            codes[code["values"]] += code["counts"]
    each = np.bincount(worst, minlength=4).tolist()
    return Counts(len(ids), each[0], each[1], each[2], codes)


class Finished(NamedTuple):
    """How a batch stands when a run of it has ended."""

    counts: Counts
    written: bool
    """Whether the table is another than before."""


def finish(folder: Folder, plan: Plan, packages: Sequence[str], shard: Shard = WHOLE) -> Finished:
    """Brings the table up to date with what is done by now, and says how the batch stands. Raises OutputError.

    Shards that share a folder leave the table to the one that answers the last case: were it written anew at the end
    of each, a thousand of them would write it a thousand times.
    """
    counts = standing(folder, plan, packages)
    if counts.left and _others_answered(folder, shard):
        return Finished(counts, False)
    if _is_current(folder, _made_of(plan, journal.segments(folder), packages)):
        return Finished(counts, False)
    with taken(), lease.alone(folder):
        paths = journal.segments(folder)  # those who waited find what others wrote
        source, counts = _made_of(plan, paths, packages), standing(folder, plan, packages)
        if _is_current(folder, source):
            return Finished(counts, False)
        write(folder, plan, packages)
        write_files([AnswerFile(folder.table.name, "application/json", source)], folder.own)
        return Finished(counts, True)


def standing(folder: Folder, plan: Plan, packages: Sequence[str], shard: Shard = WHOLE) -> Counts:
    """How the batch, or a shard of it, stands by its journal."""
    rows = journal.read(journal.segments(folder), ["id", "package", "status", "code"])
    return count(plan, rows, packages, shard)


def _others_answered(folder: Folder, shard: Shard) -> bool:
    """Whether there are answers of other shards: some that have a folder of their own have none."""
    return shard.parts > 1 and not parts(journal.read(journal.segments(folder), ["id"])["id"], shard).all()


def _made_of(plan: Plan, paths: Sequence[Path], packages: Sequence[str]) -> bytes:
    """All that the table follows from; a segment never changes, and its name never comes again."""
    names = hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest()
    made_of = {"plan": plan.digest, "segments": names, "packages": list(packages), "medae": medae.__version__}
    return json.dumps(made_of).encode() + b"\n"


def _is_current(folder: Folder, source: bytes) -> bool:
    try:
        return folder.results.is_dir() and folder.table.read_bytes() == source
    except OSError:
        return False


def drop_superseded(folder: Folder, plan: Plan, packages: Sequence[str]) -> None:
    """Remove answers that no record which counts speaks of: those of cases that were answered again, under other names.

    Raises OutputError.
    """
    paths = journal.segments(folder)
    kept = {name for each in packages for rows in records(plan, paths, each) for name in journal.files_of(rows)}
    with taken():
        for path in paths:
            rows = journal.read([path])
            of_ours = rows.filter(pc.is_in(rows["package"], value_set=pa.array(packages)))
            for name in set(journal.files_of(of_ours)) - kept:
                (folder.out / name).unlink(missing_ok=True)


def write(folder: Folder, plan: Plan, packages: Sequence[str]) -> None:
    """results.parquet, whole or not at all."""
    made = folder.own / f"{uuid.uuid4().hex}.part"
    try:
        for package in packages:
            part = made / f"package={package}"
            part.mkdir(parents=True)
            rows = tables(folder, plan, package)
            for number in range(-(-plan.count // (CHUNK * PART))):
                first = next(rows)
                with pq.ParquetWriter(part / f"part-{number:05d}.parquet", first.schema, compression="zstd") as writer:
                    for table in (first, *islice(rows, PART - 1)):
                        writer.write_table(table)
        _swap(made, folder.results)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _swap(made: Path, place: Path) -> None:
    old = made.with_suffix(".old.part")
    if place.exists():
        os.rename(place, old)
    os.rename(made, place)
    shutil.rmtree(old, ignore_errors=True)


def tables(folder: Folder, plan: Plan, package: str) -> Iterator[pa.Table]:
    """The rows of one model, in the order of the plan and by its chunks."""
    paths = journal.segments(folder)
    found = latest(plan.ids(), journal.read(paths, ["id", "package", "p_value"]), package)
    adjusted, names = _adjusted(found), score_names(paths)
    start = 0
    for table, rows in zip(plan.tables(), records(plan, paths, package), strict=True):
        done = np.flatnonzero(found.at[start : start + len(table)] >= 0)
        yield _table(table.take(pa.array(done)), rows, adjusted[start + done], names)
        start += len(table)


def records(plan: Plan, paths: Sequence[Path], package: str) -> Iterator[pa.Table]:
    """What counts of one model's records, in the order of the plan and by its chunks."""
    ends = np.cumsum([len(journal.read([path], ["id"])) for path in paths])
    at = latest(plan.ids(), journal.read(paths, ["id", "package"]), package).at
    for start in range(0, plan.count, CHUNK):
        chunk = at[start : start + CHUNK]
        yield _rows_at(paths, ends, chunk[chunk >= 0])


def score_names(paths: Sequence[Path]) -> list[str]:
    """Of all scores in some segments."""
    names: set[str] = set()
    for path in paths:
        for chunk in journal.read([path], ["scores"])["scores"].chunks:
            names |= set(pc.unique(chunk.keys).to_pylist())
    return sorted(names)


def _adjusted(found: Latest) -> NDArray[np.float64]:
    """The Benjamini-Hochberg p-values among all cases of the batch; NaN where there is none."""
    p_values = np.asarray(found.column("p_value").to_numpy(), float)
    adjusted = np.full(len(p_values), np.nan)
    known = np.isfinite(p_values)
    if known.any():
        adjusted[known] = benjamini_hochberg(p_values[known])
    return adjusted


def _rows_at(paths: Sequence[Path], ends: NDArray[np.int64], at: NDArray[np.int64]) -> pa.Table:
    """Rows of the journal by their numbers, in that order; of each segment only these are copied."""
    if not len(at):
        return journal.SCHEMA.empty_table()
    order = np.argsort(at, kind="stable")
    sorted_at = at[order]
    of = np.searchsorted(ends, sorted_at, side="right")
    pieces = []
    for segment in np.unique(of).tolist():
        start = ends[segment - 1] if segment else 0
        pieces.append(journal.read([paths[segment]]).take(pa.array(sorted_at[of == segment] - start)))
    back = np.empty(len(at), np.int64)
    back[order] = np.arange(len(at))
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(back))


def _table(plan: pa.Table, rows: pa.Table, adjusted: NDArray[np.float64], scores: Sequence[str]) -> pa.Table:
    given = [dict(pairs or ()) for pairs in rows["scores"].to_pylist()]
    outputs = rows["outputs"].to_pylist()
    seconds = rows["seconds"].to_pylist()
    columns: dict[str, Any] = {name: plan[name] for name in ("id", "patient", "target")}
    columns |= {name: rows[name] for name in rows.column_names if name not in ("id", "scores", "outputs", "seconds")}
    columns |= {name: pa.array([each.get(name) for each in given], pa.float64()) for name in scores}
    columns |= {
        "p_adjusted": pa.array(adjusted, pa.float64(), mask=np.isnan(adjusted)),
        "outputs": pa.array([[each["name"] for each in row or ()] for row in outputs], pa.list_(pa.string())),
        "output_digests": pa.array([[each["sha256"] for each in row or ()] for row in outputs], pa.list_(pa.string())),
        "input_digest": rows["digest"],
    }
    columns |= {f"seconds_{stage}": pa.array([row[stage] for row in seconds], pa.float64()) for stage in STAGES}
    return pa.table({name: columns[name] for name in (*_BEFORE_SCORES, *scores, *_AFTER_SCORES)})


def read(folder: Folder) -> "pyarrow.dataset.Dataset":
    """The table as a dataset, with the model in its column `package`."""
    return pyarrow.dataset.dataset(folder.results, format="parquet", partitioning="hive")
