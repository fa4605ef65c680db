"""The tables of a sweep as columns of text: for files, and for a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.sweeping.overrides import show_value

if TYPE_CHECKING:
    from lightning_gnnopt.sweeping.report import SweepReport

_MOST_NAMED = 8  # jobs with the same error
Columns = tuple[list[str], list[list[Any]]]
"""Names of columns, and rows of cells."""


def job_values(report: SweepReport) -> Columns:
    """List the jobs with all that is known of them: numbers as they are, None where there is none."""
    names = ["job", *report.varying, *report.metrics, "seconds", "peak_bytes", "status", "error"]
    rows = []
    for job in report.jobs:
        outcome = job.outcome
        given = [outcome.overrides.get(key) for key in report.varying]
        measured = [outcome.metrics.get(name) for name in report.metrics]
        rows.append([job.name, *given, *measured, outcome.seconds, outcome.peak_bytes, outcome.status, job.error])
    return names, rows


def summary_values(report: SweepReport) -> Columns:
    """List the averages with all that is known of them: numbers as they are, None where there is none."""
    keys = report.groups
    names = [*keys, "n", "failed"]
    names += [f"{name} {part}" for name in report.metrics for part in ("mean", "std", "n")]
    names += ["seconds mean", "seconds std", "peak_bytes max"]
    rows = []
    for row in report.summary:
        cells = [row.overrides.get(key) for key in keys] + [row.n, row.failed]
        for name in report.metrics:
            stat = row.metrics.get(name)
            cells += [None, None, 0] if stat is None else [stat.mean, stat.std, stat.n]
        cells += [None, None] if row.seconds is None else [row.seconds.mean, row.seconds.std]
        rows.append([*cells, row.peak_bytes])
    return names, rows


def to_csv(columns: Columns) -> str:
    """Write a table for programs; a cell without a value is empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns[0])
    writer.writerows(
        [show_value(cell) if isinstance(cell, list | dict) else cell for cell in row] for row in columns[1]
    )
    return text.getvalue()


def job_texts(report: SweepReport, most: int | None = None) -> Columns:
    """List the jobs for people.

    Args:
        report: The sweep.
        most: Number of metrics to show; all of test and validation by default.
    """
    shown = report.shown_metrics[:most]
    names = ["job", *short_keys(report.varying), *shown, "seconds", "peak memory", "status"]
    rows = []
    for job in report.jobs:
        outcome = job.outcome
        cells = [job.name]
        cells += [_given(outcome.overrides, key) for key in report.varying]
        cells += [_number(outcome.metrics.get(name)) for name in shown]
        cells += [_number(outcome.seconds, "{:.1f}"), _size(outcome.peak_bytes)]
        rows.append([*cells, "did not end" if outcome.status == "running" else outcome.status])
    return names, rows


def summary_texts(report: SweepReport, most: int | None = None) -> Columns:
    """List the averages for people: mean and standard deviation.

    Args:
        report: The sweep.
        most: Number of metrics to show; all of test and validation by default.
    """
    shown = report.shown_metrics[:most]
    rows = []
    for row in report.summary:
        cells = [_given(row.overrides, key) for key in report.groups]
        cells += [str(row.n), str(row.failed)]
        cells += [str(row.metrics.get(name, "-")) for name in shown]
        rows.append([*cells, "-" if row.seconds is None else f"{row.seconds.mean:.1f}", _size(row.peak_bytes)])
    return [*short_keys(report.groups), "n", "failed", *shown, "seconds", "peak memory"], rows


def errors(report: SweepReport) -> list[str]:
    """Say why jobs failed, each reason once."""
    by_error: dict[str, list[str]] = {}
    for job in report.failed:
        by_error.setdefault(job.error or "", []).append(job.name)
    return [_plain(f"{_names(names)}: {error}") for error, names in by_error.items()]


def short_keys(keys: Sequence[str]) -> list[str]:
    """Shorten each key to its last part, where that is still a name of its own.

    Examples:
        >>> short_keys(["model", "data.batch_size", "model.dropout", "other.dropout"])
        ['model', 'batch_size', 'model.dropout', 'other.dropout']
    """
    last = [key.rpartition(".")[2] for key in keys]
    return [short if last.count(short) == 1 else key for short, key in zip(last, keys, strict=True)]


def to_markdown(columns: Columns) -> str:
    """Write a table for people."""
    lines = [_markdown_line(columns[0]), "|" + "---|" * len(columns[0])]
    return "\n".join([*lines, *map(_markdown_line, columns[1])]) + "\n"


def to_rich(title: str, columns: Columns) -> Table:
    """Render a table for a terminal; nothing in it is read as markup."""
    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in columns[0]:
        table.add_column(Text(_plain(name)), overflow="fold")
    for row in columns[1]:
        table.add_row(*(Text(_plain(cell)) for cell in row))
    return table


def _given(overrides: Any, key: str) -> str:
    value = overrides.get(key, "")
    return f"{value:.4g}" if isinstance(value, float) else show_value(value)


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _number(value: float | None, form: str = "{:.4g}") -> str:
    return "-" if value is None else form.format(value)


def _size(nbytes: float | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in cells) + " |"


def _plain(text: str) -> str:
    """Keep a terminal from obeying what came out of a file."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
