"""Writes the study's tables and figures: at the end of a multirun, or when asked to."""

from __future__ import annotations

from pathlib import Path

import rich

from lightning_gnnopt.studies.bottleneck.report import StudyReport
from lightning_gnnopt.studies.collecting import findings_table


def collect(folder: Path | str) -> StudyReport:
    """Write the tables and figures of what a folder holds beside it, and print what was found.

    Args:
        folder: Of the study.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If there is no profile in the folder.
        OSError: If it cannot be written to.
    """
    report = StudyReport.load(folder)
    report.save(folder)
    rich.print(findings_table(report.findings, title="The study"))
    failed = [cell for cell in report.cells if cell.error]
    print(f"{len(report.cells) - len(failed)} profiles, {len(failed)} settings without one. Written to {folder}.")
    return report
