"""Lists of cases: CSV or Parquet with a row a case, read in pieces, so that a million rows need no memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from medae.batch.files import File, Url, is_url
from medae.batch.item import Item
from medae.errors import UsageError

COLUMNS = ("id", "path", "image", "patient", "target")
"""Read where they are there; `image` is another word for `path`, as the lists that models are trained on have it. What
other columns hold stays where it is."""

_PIECE = 1 << 14


def read_list(path: Path) -> Iterator[Item]:
    """The cases of a list, in its order; those without an id have an empty one.

    A relative path counts from the list's own folder; that of a folder is one DICOM series.
    Raises UsageError for a list that cannot be read, has no paths, or has a row without one.
    """
    base = os.path.dirname(os.path.abspath(path))
    number = 0
    try:
        for batch in _batches(path):
            found = {name: batch.column(name).to_pylist() for name in batch.schema.names}
            paths = found.get("path") or found["image"]
            nothing = [None] * len(paths)
            columns = (paths, *(found.get(name, nothing) for name in ("id", "patient", "target")))
            for file, id, patient, target in zip(*columns, strict=True):
                number += 1
                if not file:
                    raise UsageError(f"row {number} of a list of cases has no path")
                yield Item(id or "", (_file(file, base),), patient or None, target or None)
    except (OSError, pa.ArrowException) as error:
        # Arrow's own words quote the row
        raise UsageError(
            f"a list of cases cannot be read beyond row {number} ({type(error).__name__}); it is CSV with a line of "
            "column names, in UTF-8, or Parquet"
        ) from None


def _file(text: str, base: str) -> File:
    if text[0] == "/":
        return text
    return Url(text) if is_url(text) else f"{base}/{text}"


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    if path.name.lower().endswith(".parquet"):
        with pyarrow.parquet.ParquetFile(path) as file:
            names = _present(file.schema_arrow.names)
            for batch in file.iter_batches(_PIECE, columns=names):
                yield batch.cast(pa.schema([(name, pa.string()) for name in batch.schema.names]))
        return
    with path.open("rb") as stream:
        head = stream.readline().decode("utf-8-sig", errors="replace")
    import csv

    names = _present(next(csv.reader([head]), []))
    text = {name: pa.string() for name in names}
    convert = pyarrow.csv.ConvertOptions(
        column_types=text, include_columns=names, strings_can_be_null=True, null_values=[""]
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    with pyarrow.csv.open_csv(path, parse_options=parse, convert_options=convert) as reader:
        yield from reader


def _present(names: list[str]) -> list[str]:
    present = [name for name in COLUMNS if name in names]
    if not {"path", "image"} & set(present):
        raise UsageError(f"a list of cases has a column `path` (or `image`); this one has {len(names)} other columns")
    return present
