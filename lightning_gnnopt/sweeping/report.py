"""SweepReport: the jobs of a sweep as tables and a figure."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.text import Text

from lightning_gnnopt._figures import save_figure
from lightning_gnnopt._frames import data_frame
from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.sweeping.collecting import Job, collect_jobs
from lightning_gnnopt.sweeping.columns import (
    Columns,
    errors,
    job_texts,
    job_values,
    summary_texts,
    summary_values,
    to_csv,
    to_markdown,
    to_rich,
)
from lightning_gnnopt.sweeping.outcome import OUTCOME_FILE
from lightning_gnnopt.sweeping.plots import plot_sweep
from lightning_gnnopt.sweeping.tables import SummaryRow, likely_metric, metric_names, summarize, varying_overrides

if TYPE_CHECKING:
    import pandas as pd

_SEED = ("seed",)
_MOST_PRINTED = 2  # metrics that a terminal has room for


class SweepReport:
    """The jobs of a sweep as tables and a figure. `rich.print` shows the tables.

    Args:
        jobs: Its jobs.
        metric: The metric to show; the test's accuracy by default, or else what comes nearest.
        average_over: Overrides whose values are averaged over, ``("seed",)`` by default.
        foreign: Files that were found and hold no outcome.

    Attributes:
        jobs: Its jobs.
        varying: The overrides in which they differ, in the order of the command line.
        groups: Those of them that are not averaged over.
        metric: The metric to show; None if no job has any.
        metrics: All metrics that any job has.
        summary: Averages, one for each combination of values of `groups`.

    Raises:
        ValueError: If no job has the metric, or such an override.
    """

    def __init__(
        self,
        jobs: Iterable[Job],
        *,
        metric: str | None = None,
        average_over: Collection[str] | None = None,
        foreign: Iterable[Path] = (),
    ) -> None:
        self.jobs = list(jobs)
        self.foreign = list(foreign)
        self.varying: list[str] = varying_overrides(self.jobs)
        self.metrics: list[str] = metric_names(self.jobs)
        if metric is not None and metric not in self.metrics:
            raise ValueError(unknown_name("metric", metric, self.metrics))
        self.metric: str | None = metric or likely_metric(self.metrics)
        for name in average_over or ():
            known = {key for job in self.jobs for key in job.outcome.overrides}
            if name not in known:
                raise ValueError(unknown_name("override", name, known))
        over = _SEED if average_over is None else average_over
        self.averaged: list[str] = [key for key in self.varying if key in over]
        self.groups: list[str] = [key for key in self.varying if key not in over]
        self.summary: list[SummaryRow] = summarize(self.jobs, self.varying, self.averaged)

    @property
    def failed(self) -> list[Job]:
        """The jobs that failed or did not end."""
        return [job for job in self.jobs if job.outcome.status != "ok"]

    @property
    def shown_metrics(self) -> list[str]:
        """The metric to show, and then the others of test and validation."""
        if self.metric is None:
            return []
        others = [name for name in self.metrics if name.startswith(("test/", "val/")) and name != self.metric]
        kind = self.metric.rpartition("/")[2]  # the same on other nodes comes next
        return [self.metric, *sorted(others, key=lambda name: name.rpartition("/")[2] != kind)]

    def to_frame(self) -> pd.DataFrame:
        """Hand out the jobs as a `pandas.DataFrame`, one a row, with all metrics; sizes in bytes.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        names, rows = job_values(self)
        return data_frame(rows, names)

    def plot(self, ax: Any = None) -> tuple[Any, Any]:
        """Draw the metric by the overrides that vary: means, and bars of one standard deviation.

        Args:
            ax: Matplotlib axes to draw on; a new figure by default.

        Returns:
            The figure and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.
            ValueError: If no job has reached the metric.
        """
        return plot_sweep(self, ax)

    def save(self, folder: Path | str) -> list[Path]:
        """Write both tables, and with matplotlib the figure.

        They are `table.csv` (jobs), `summary.csv` (averages), `table.md` (both), `figure.png` and `figure.svg`.

        Args:
            folder: Where; made if it is not there.

        Returns:
            The files.

        Raises:
            OSError: If the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "table.csv": to_csv(job_values(self)),
            "summary.csv": to_csv(summary_values(self)),
            "table.md": self.markdown(),
        }
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        written = [folder / name for name in texts]
        if importlib.util.find_spec("matplotlib") is not None and self.has_figure:
            for ending in ("png", "svg"):
                figure, _ = self.plot()
                path = folder / f"figure.{ending}"
                save_figure(figure, path, dpi=150)
                written.append(path)
        return written

    @property
    def has_figure(self) -> bool:
        """Whether there is anything to draw."""
        return any(self.metric in row.metrics for row in self.summary)

    def markdown(self) -> str:
        """Write both tables and the errors for people."""
        parts = [f"{title}\n\n{to_markdown(columns)}" for title, columns in self._tables(None)]
        if self.failed:
            parts.append("\n".join(f"- {line}" for line in errors(self)) + "\n")
        return "\n".join(parts)

    def __rich__(self) -> Group:
        parts: list[Any] = []
        for title, columns in self._tables(_MOST_PRINTED):
            parts += [to_rich(title, columns), Text()]
        parts += [Text(line, style="red") for line in errors(self)]
        return Group(*parts)

    def _tables(self, most: int | None) -> list[tuple[str, Columns]]:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        title = f"{len(self.jobs)} {'job' if len(self.jobs) == 1 else 'jobs'}{failed}"
        tables = [(title, job_texts(self, most))]
        if self.averaged:
            title = f"Averaged over {', '.join(self.averaged)}: mean ± standard deviation"
            tables.append((title, summary_texts(self, most)))
        return tables


def collect_outcomes(
    *folders: Path | str, metric: str | None = None, average_over: Sequence[str] | None = None
) -> SweepReport:
    """Gather what became of the jobs in folders, as `gnnopt-train` leaves them.

    Args:
        *folders: Folders of multiruns or of single jobs; other files in them do not matter.
        metric: The metric to show; the test's accuracy by default, or else what comes nearest.
        average_over: Overrides whose values are averaged over, ``("seed",)`` by default.

    Returns:
        The jobs as tables and a figure.

    Raises:
        FileNotFoundError: If a folder is not there, or there is no job in them.
        ValueError: If no job has the metric, or such an override.
    """
    jobs, foreign = collect_jobs(folders)
    if not jobs:
        raise FileNotFoundError(
            f"{', '.join(f'`{folder}`' for folder in folders)} must hold jobs of `gnnopt-train`, but there is no"
            f" `{OUTCOME_FILE}` of one in {'it' if len(folders) == 1 else 'them'}."
            " HINT: gnnopt-train -m model=gcn,gat writes one for each job below multirun/."
        )
    return SweepReport(jobs, metric=metric, average_over=average_over, foreign=foreign)
