"""A profile in the terminal."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from lightning_gnnopt.analysis.reporting.tables import Table, memory_tables, notes, sweep_tables, time_tables

if TYPE_CHECKING:
    from lightning_gnnopt.analysis.conclusions.advice import Advice
    from lightning_gnnopt.analysis.reporting.report import BottleneckReport

_MOST = 10  # rows of a table
_MOST_NOTES = 5
_LONGEST = 24  # characters of a name


def render_report(report: BottleneckReport) -> Group:
    """Render a report for a terminal of 100 columns or more: sentence, advice, tables, notes."""
    parts: list[RenderableType] = [Text(report.title, style="bold underline"), Text(report.verdict, style="bold")]
    if report.advice:
        parts += [Text(), Text("Advice", style="bold")]
        parts += [_advice(number, advice) for number, advice in enumerate(report.advice, 1)]
    tables = [*time_tables(report, _MOST), *memory_tables(report, _MOST), *sweep_tables(report)]
    for table in tables:
        parts += [Text(), Text(table.title, style="bold"), rich_table(table)]
    found = notes(report)
    if found:
        parts += [Text(), Text("Notes", style="bold")]
        parts += [Padding(Text(f"- {note}"), (0, 0, 0, 1)) for note in found[:_MOST_NOTES]]
        if len(found) > _MOST_NOTES:
            parts.append(Padding(Text(f"- and {len(found) - _MOST_NOTES} more"), (0, 0, 0, 1)))
    return Group(*parts)


def _advice(number: int, advice: Advice) -> RenderableType:
    text = Text(f"{number}. {advice.finding}")
    if advice.remedy:
        text.append(f" {advice.remedy}", style="green")
    return Padding(text, (0, 0, 0, 1))


def rich_table(table: Table) -> RichTable:
    """Render one table; names in it are never read as markup."""
    heads = any(table.columns)
    made = RichTable(
        box=box.SIMPLE_HEAD if heads else None, show_edge=False, show_header=heads, padding=(0, 1, 0, 0)
    )  # fmt: skip
    for place, head in enumerate(table.columns):
        if place in table.texts:
            # The first column names the row, and gives way last.
            made.add_column(Text(head), overflow="ellipsis", no_wrap=place == 0)
        else:
            made.add_column(Text(head), justify="right", no_wrap=True)
    for row in table.rows:
        made.add_row(*(Text(_short(cell)) for cell in row))
    return made


def _short(cell: str) -> str:
    """Cut long names at their front: what tells layers apart is at the end."""
    return re.sub(r"\S+", lambda word: word[0] if len(word[0]) <= _LONGEST else f"…{word[0][1 - _LONGEST :]}", cell)
