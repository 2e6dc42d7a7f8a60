"""The ledger as a table: CSV for spreadsheets, Parquet for analysis."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from flawmap.errors import DataError, MissingExtra, UsageError
from flawmap.station.ledger import ROWS, Ledger, clean

KINDS = {column.name: column.type.python_type for column in ROWS.columns}
NAMES = list(KINDS)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
GROUP = 10_000  # rows of Parquet written at once


def existing(url: str) -> Ledger:
    """A ledger that is there, to be read only. DataError: there is none."""
    return Ledger(url, create=False)


def export(ledger: Ledger, path: Path) -> int:
    """Writes all rows, whole or not at all; returns how many. UsageError: neither .csv nor .parquet.

    DataError: no such folder, or a row that never came out of a ledger, which `verify` names.
    """
    write = {".csv": _csv, ".parquet": _parquet}.get(path.suffix.lower())
    if write is None:
        raise UsageError(f"{path}: export to .csv or .parquet")
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: there is no such folder")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        count = write(map(_sound, ledger.all()), temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _sound(row: dict[str, Any]) -> dict[str, Any]:
    for name, value in row.items():
        if value is not None and not isinstance(value, KINDS[name]):
            raise DataError(f"row {row['seq']}: its {name} was changed; flawmap ledger verify tells more")
        if isinstance(value, str):
            row[name] = clean(value)
    return row


def _csv(rows: Iterator[dict[str, Any]], path: Path) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        for count, row in enumerate(rows, 1):  # noqa: B007
            writer.writerow([_cell(row[name]) for name in NAMES])
    return count


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if isinstance(value, float):
        return repr(value)
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA) else value


def _parquet(rows: Iterator[dict[str, Any]], path: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra("pyarrow", "tables", "an export to Parquet") from error

    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(name, arrow[kind]) for name, kind in KINDS.items()])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(rows, GROUP)):
            writer.write_table(pa.Table.from_pylist(group, schema))
            count += len(group)
    return count
