"""Writes the study's tables and figures: at the end of a multirun, or when asked to."""

from __future__ import annotations

from pathlib import Path

import rich
from rich import box
from rich.markup import escape
from rich.table import Table

from lightning_gnnopt.studies.pipeline.report import PipelineReport
from lightning_gnnopt.studies.pipeline.tables import LEAST, Row, Summary, three

_BUSY = 0.25  # cores that others keep busy from which on a cell is pointed out


def collect(folder: Path | str) -> PipelineReport:
    """Write the tables and figures of what a folder holds beside it, and print what was found.

    Args:
        folder: Of the study.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there is no cell in the folder.
        OSError: If it cannot be written to.
    """
    report = PipelineReport.load(folder)
    report.save(folder)
    rich.print(_summary(report.summaries))
    if report.failed:
        rich.print(_failures(report.failed))
    clearly = sum(row.clearly_slower for row in report.summaries)
    print(f"Below {LEAST:g} of the baseline's speed: {clearly} of {sum(row.cells for row in report.summaries)} sides.")
    differ = {row.setting for row in report.rows if row.losses_equal is False}
    print(
        f"{report.num_cells - len(report.failed)} cells, {len(report.failed)} without numbers, {len(differ)} in which"
        f" the sides' losses differ. Written to {folder}."
    )
    busy = {row.setting for row in report.rows if (row.other_cores or 0.0) > _BUSY}
    if busy:
        print(
            f"In {len(busy)} cells other processes kept more than {_BUSY:g} cores busy: their times say little."
            " HINT: remove their folders and run the study again on an idle machine."
        )
    return report


def _summary(summaries: list[Summary]) -> Table:
    # 80 columns are enough for it
    table = Table(
        title="Speed-up of an epoch: min / median / max",
        title_justify="left",
        box=box.SIMPLE,
        pad_edge=False,
        padding=0,
    )
    for name in ("side, sampler", "measured", "thesis", "effect", "below 1"):
        table.add_column(name, no_wrap=True)
    for row in summaries:
        table.add_row(
            f"{row.side}, {row.sampler}",
            three(row.least, row.median, row.most),
            "-" if row.thesis is None else three(*row.thesis),
            f"{row.effect:.2f}",
            f"{row.slower} of {row.cells}",
        )
    return table


def _failures(rows: list[Row]) -> Table:
    table = Table("cell", "error", title="Cells without numbers", title_justify="left")
    for row in rows:
        table.add_row("/".join(map(str, row.setting)), escape(row.error))
    return table
