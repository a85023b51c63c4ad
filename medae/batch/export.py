"""The table of results as CSV."""

import csv
from pathlib import Path
from typing import Any

from medae.batch import results
from medae.batch.folder import Folder, taken
from medae.batch.plan import Plan
from medae.batch.run import recorded_keys


def export_csv(out: Path, target: Path) -> int:
    """Writes the table of a batch, of all that is done by now; lists are joined by spaces. Returns the number of rows.

    Raises UsageError where there is no batch, OutputError where the file cannot be written.
    """
    folder = Folder(out.absolute())
    results.finish(folder, Plan.open(folder.plan), list(recorded_keys(out)))
    table = results.read(folder)
    names = ["package", *(name for name in table.schema.names if name != "package")]
    count = 0
    # what a name holds need not be text everywhere
    with taken(), target.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for batch in table.to_batches(columns=names):
            columns = [batch.column(name).to_pylist() for name in names]
            writer.writerows([_cell(value) for value in row] for row in zip(*columns, strict=True))
            count += len(batch)
    return count


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value
