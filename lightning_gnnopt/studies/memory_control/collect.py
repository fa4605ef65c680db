"""Writes the study's tables and figures: at the end of a multirun, or when asked to."""

from __future__ import annotations

from pathlib import Path

import rich

from lightning_gnnopt.studies.collecting import findings_table
from lightning_gnnopt.studies.memory_control.report import MemoryReport


def collect(folder: Path | str) -> MemoryReport:
    """Write the tables and figures of what a folder holds beside it, and print what was found.

    Args:
        folder: Of the study.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there is no cell in the folder.
        ValueError: If a file is no cell.
        OSError: If it cannot be written to.
    """
    report = MemoryReport.load(folder)
    report.save(folder)
    rich.print(findings_table(report.findings, title="Memory control"))
    failed = report.failed
    print(f"{len(report.cells) - len(failed)} cells, {len(failed)} without a result. Written to {folder}.")
    for cell in failed:
        print(f"  {cell.name}: {cell.error}")
    return report
