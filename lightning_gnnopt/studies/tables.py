"""Tables of the studies: rows of numbers by graph, model and setting, for people and for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

Values = Mapping[str, float | None]

_MIB = 2.0**20
_FORMATS: Mapping[str, Callable[[float], str]] = MappingProxyType(
    {
        "%": lambda value: f"{100 * value:.1f}",
        "ms": lambda value: f"{1000 * value:,.2f}",
        "MiB": lambda value: f"{value / _MIB:,.1f}",
        "x": lambda value: f"{value:,.2f}",
        "": lambda value: f"{value:,.0f}",
    }
)
"""How a value is written, by the unit of its column; values themselves are shares, seconds, bytes and numbers."""


@dataclass(frozen=True)
class StudyRow:
    """One profile, or one graph, in a table.

    Attributes:
        data: Name of the graph.
        model: Name of the model; ``""`` where a row is about the graph alone.
        setting: Name of the setting; ``""`` where a row is about the graph alone.
        values: Shares (0 to 1), seconds, bytes and numbers, by column; None where there is none.
        error: Why there are none, or ``""``.
    """

    data: str
    model: str
    setting: str
    values: Values
    error: str = ""


@dataclass(frozen=True)
class StudyTable:
    """A table of a study.

    Attributes:
        name: Short name, such as ``"edge_steps"``.
        title: What it shows.
        columns: Units of the columns, by name: ``"%"``, ``"ms"``, ``"MiB"``, ``"x"`` (a ratio) or ``""`` (a number).
        rows: Its rows.
    """

    name: str
    title: str
    columns: Mapping[str, str]
    rows: Sequence[StudyRow] = field(default_factory=tuple)

    def markdown(self) -> str:
        """Write it for people; where a profile failed, its error stands in the place of its first number."""
        keys = [key for key in ("data", "model", "setting") if any(getattr(row, key) for row in self.rows)]
        names = [
            f"{name.replace('_', ' ')} [{unit}]" if unit else name.replace("_", " ")
            for name, unit in self.columns.items()
        ]
        lines = ["| " + " | ".join(["graph" if key == "data" else key for key in keys] + names) + " |"]
        lines.append("|" + "---|" * len(keys) + "---:|" * len(names))
        for row in self.rows:
            cells = [_cell(row.values.get(name), unit) for name, unit in self.columns.items()]
            if row.error:
                cells = [_escaped(row.error)] + ["-"] * (len(cells) - 1)
            lines.append("| " + " | ".join([_escaped(getattr(row, key)) for key in keys] + cells) + " |")
        return f"### {self.title}\n\n" + "\n".join(lines) + "\n"


def to_csv(tables: Iterable[StudyTable]) -> str:
    """Write all numbers of all tables, one a line, in seconds, bytes and shares of 1."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "graph", "model", "setting", "column", "value", "error"])
    for table in tables:
        for row in table.rows:
            for column in table.columns:
                value = row.values.get(column)
                writer.writerow(
                    [table.name, row.data, row.model, row.setting, column, "" if value is None else value, row.error]
                )
    return out.getvalue()


def _cell(value: float | None, unit: str) -> str:
    return "-" if value is None else _FORMATS[unit](value)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
