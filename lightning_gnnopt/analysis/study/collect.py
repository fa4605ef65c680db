"""Writes the study's tables and figures: at the end of a multirun, or when asked to."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import rich
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table
from typing_extensions import override

from lightning_gnnopt.analysis.study.report import StudyReport


class CollectStudy(Callback):
    """Hydra callback: writes the tables and figures once all jobs are through."""

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        collect(config.dir)


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
    table = Table("the thesis", "measured here", "agrees", title="The study", title_justify="left")
    for row in report.findings:
        table.add_row(row.claim, row.measured, {True: "yes", False: "no", None: "-"}[row.agrees])
    rich.print(table)
    failed = [cell for cell in report.cells if cell.error]
    print(f"{len(report.cells) - len(failed)} profiles, {len(failed)} settings without one. Written to {folder}.")
    if importlib.util.find_spec("matplotlib") is None:
        print("Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.")
    return report
