"""The table of results as CSV."""

import csv
from pathlib import Path
from typing import Any

from medae.batch import results
from medae.batch.folder import Folder, taken
from medae.errors import UsageError


def export_csv(out: Path, target: Path) -> int:
    """Writes the table of a batch; lists are joined by spaces. Returns the number of rows.

    Raises UsageError where there is no table yet, OutputError where the file cannot be written.
    """
    folder = Folder(out.absolute())
    if not folder.results.is_dir():
        raise UsageError("there is no table of results in this folder yet; `medae batch run` writes it when it ends")
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
    return " ".join(value) if isinstance(value, list) else value
