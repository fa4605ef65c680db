"""Tables in files: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints


def write_csv(rows: Sequence[Any], names: Sequence[str], path: Path) -> None:
    """Write rows, a column for each attribute."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)


def write_parquet(rows: Sequence[Any], names: Sequence[str], path: Path) -> Iterator[Path]:
    """Write rows as Parquet if pyarrow is installed; the file, if it was."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        return
    pyarrow.parquet.write_table(pyarrow.table({name: [getattr(row, name) for row in rows] for name in names}), path)
    yield path


def read_csv(path: Path, kind: type[Any]) -> Iterator[Any]:
    """Read rows of a dataclass.

    Raises:
        ValueError: If the file has other columns, or a cell cannot be read.
    """
    hints = get_type_hints(kind)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if list(reader.fieldnames or []) != list(hints):
            raise ValueError(
                f"`{path}` must have the columns {list(hints)}, but has {reader.fieldnames}."
                " HINT: it was written by another version; profile again."
            )
        for row in reader:
            yield kind(**{name: _cell(row[name], hints[name], path) for name in hints})


def _cell(text: str, hint: Any, path: Path) -> Any:
    options = getattr(hint, "__args__", (hint,))
    if type(None) in options and text == "":
        return None
    kind = options[0]
    if kind is bool:
        if text not in ("True", "False"):
            raise ValueError(f"`{path}` must hold True or False where it has {text!r}. HINT: profile again.")
        return text == "True"
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"`{path}` holds {text!r} where a {kind.__name__} is expected.") from error
