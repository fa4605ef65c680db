"""What a benchmark found, as a table and as a file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.figure import Figure

Cell = str | int | float | None
_FILE_WIDTH = 120
_VERDICTS = {True: "[green]met[/]", False: "[bold red]missed[/]", None: ""}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The outcome of one benchmark.

    Attributes:
        command: What to type to get it again.
        machine: What it ran on.
        versions: What it ran with.
        figures: The numbers that the benchmark is about.
        rows: What lies behind them, one flat row per case.

    Examples:
        >>> figure = Figure(name="speed-up", value=1.5, unit="x", reach=1.85, sense=">=")
        >>> Report(command="python -m benchmarks.x", machine={}, versions={}, figures=(figure,), rows=()).met
        False
    """

    command: str
    machine: Mapping[str, Cell]
    versions: Mapping[str, str]
    figures: tuple[Figure, ...]
    rows: tuple[Mapping[str, Cell], ...]

    @property
    def met(self) -> bool:
        """Whether no figure misses what it has to reach."""
        return all(figure.met is not False for figure in self.figures)

    def as_dict(self) -> dict[str, Any]:
        """Lay the report out as in the JSON file."""
        return {
            "command": self.command,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "figures": [figure.as_dict() for figure in self.figures],
            "rows": [dict(row) for row in self.rows],
        }

    def table(self) -> Table:
        """Render the report as one table: the rows, and under them the figures.

        Rows that name their ``part`` of the benchmark stand part by part, each with the columns it needs.
        """
        described = (f"{name} {_text(value)}" for part in (self.machine, self.versions) for name, value in part.items())
        table = Table(title=self.command, caption=", ".join(described), show_header=False, title_justify="left")
        for part in dict.fromkeys(row.get("part") for row in self.rows):
            table.add_row(_rows([row for row in self.rows if row.get("part") == part]))
            table.add_section()
        table.add_row(self._figures())
        return table

    def print(self, console: Console | None = None) -> None:
        """Print the table.

        Args:
            console: Where to; standard output by default, with at least 120 columns where that is no terminal.
        """
        if console is None:
            console = Console()
            console = console if console.is_terminal else Console(width=max(console.width, _FILE_WIDTH))
        console.print(self.table())

    def write_json(self, path: str | Path) -> None:
        """Write the report to a file, which is whole at any time: the old one, or the new one.

        Args:
            path: The file; its folder is made if need be.

        Raises:
            ValueError: If a row holds a number that JSON does not have (NaN, infinity).
        """
        path = Path(path)
        text = json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _figures(self) -> Table:
        table = Table(box=None, header_style="bold")
        table.add_column("figure", overflow="fold")
        for name in ("value", "lowest", "highest"):
            table.add_column(name, justify="right")
        table.add_column("unit")
        table.add_column("reach", justify="right")
        table.add_column("")
        for figure in self.figures:
            spread = (_text(min(figure.runs)), _text(max(figure.runs))) if figure.runs else ("", "")
            reach = "" if figure.reach is None else f"{figure.sense} {_text(figure.reach)}"
            table.add_row(figure.name, _text(figure.value), *spread, figure.unit, reach, _VERDICTS[figure.met])
        return table


def _rows(rows: Sequence[Mapping[str, Cell]]) -> Table:
    names = list(dict.fromkeys(name for row in rows for name in row))  # a row may lack what others have
    if any(row.get("part") is not None for row in rows):
        names = [name for name in names if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, header_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in names))
    return table


def _text(value: Cell) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value
