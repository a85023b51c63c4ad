"""Several output folders of one batch (shards that had a folder each) become one."""

import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from medae.batch import journal, lease, results
from medae.batch.folder import Folder, require_writable, sync, taken
from medae.batch.item import Item
from medae.batch.plan import Plan, write_plan
from medae.batch.run import recorded, recorded_keys
from medae.batch.settings import WHOLE, load_models
from medae.errors import MedaeError, UsageError

logger = logging.getLogger(__name__)


def merge(folders: Sequence[Path], out: Path) -> results.Counts:
    """Answers (linked where the disk is the same, else copied), records, the table of all, and its report.

    Raises UsageError for folders that do not fit together, such as two that answered the same case differently;
    OutputError where `out` does not take what they hold.
    """
    parts = [Folder(folder.absolute()) for folder in folders]
    keys = recorded_keys(folders[0])
    if any(recorded_keys(folder) != keys for folder in folders[1:]):
        raise UsageError("these folders were answered by different models or with different settings")
    require_writable(out)
    whole = Folder(out.absolute())
    whole.segments.mkdir(parents=True, exist_ok=True)
    with taken(), lease.held(whole, WHOLE):
        if journal.segments(whole):
            raise UsageError("there is a batch in the output folder already; merge into a new one")
        plan = write_plan(_items(parts), whole.plan)
        _records(parts, list(keys), whole)
        shutil.copyfile(parts[0].settings, whole.settings)
        counts = results.finish(whole, plan, list(keys)).counts
        _report(whole, plan, keys, counts)
        return counts


def _items(parts: Sequence[Folder]) -> Iterator[Item]:
    """Of all plans, each case where it comes first."""
    seen: set[str] = set()
    for part in parts:
        plan = Plan.open(part.plan)
        for item in plan.items(np.ones(plan.count, bool)):
            if item.id not in seen:
                seen.add(item.id)
                yield item


def _records(parts: Sequence[Folder], packages: Sequence[str], whole: Folder) -> None:
    """Links the answers and writes the records, a segment for each chunk of each plan."""
    seen: dict[tuple[str, str], tuple[str | None, list[str]]] = {}
    number = 0
    for part in parts:
        plan, paths = Plan.open(part.plan), journal.segments(part)
        for package in packages:
            for rows in results.records(plan, paths, package):
                fresh = _fresh(rows, seen)
                if len(fresh):
                    names = list(journal.files_of(fresh))
                    _link(part.out, whole.out, names)
                    journal.write_segment(whole.segments / f"{1:06d}-{number:08d}-merged.arrow", fresh)
                    number += 1


def _fresh(rows: pa.Table, seen: dict[tuple[str, str], tuple[str | None, list[str]]]) -> pa.Table:
    """The rows that no earlier folder has. Raises UsageError where one has another answer."""
    keep = []
    columns = (rows[name].to_pylist() for name in ("id", "package", "digest", "outputs"))
    for number, (id, package, digest, outputs) in enumerate(zip(*columns, strict=True)):
        said = (digest, [output["sha256"] for output in outputs or ()])
        if seen.setdefault((id, package), said) != said:
            raise UsageError("a case has different answers in two of these folders; they are not parts of one batch")
        if seen[id, package] is said:
            keep.append(number)
    return rows.take(pa.array(keep, pa.int64()))


def _link(source: Path, target: Path, names: Sequence[str]) -> None:
    folders = {(target / name).parent for name in names}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        try:
            os.link(source / name, target / name)
        except FileExistsError:
            continue  # of a merge that was interrupted
        except OSError:  # another disk, or one without links
            part = target / f"{name}.{uuid.uuid4().hex}.part"
            shutil.copyfile(source / name, part)
            os.replace(part, target / name)
    sync([target / name for name in names])


def _report(whole: Folder, plan: Plan, keys: Mapping[str, str], counts: results.Counts) -> None:
    """Where the models are that answered: for its pictures, a few cases are answered again."""
    settings = recorded(whole.out)
    if not settings.report:
        return
    try:
        models = load_models(settings)
    except MedaeError as error:
        logger.warning("no report.html, since the models of these folders are not here: %s", error)
        return
    if {model.name: model.key for model in models} != keys:
        logger.warning("no report.html, since the models of these folders have changed")
        return
    from medae.batch import report

    report.write(whole, plan, models, settings, counts)
