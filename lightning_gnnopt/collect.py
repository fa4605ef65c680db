"""Gather the jobs of a sweep into a table: ``python -m lightning_gnnopt.collect`` or ``gnnopt-collect``."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import rich

from lightning_gnnopt._cli import run
from lightning_gnnopt.sweeping import SweepReport, collect_outcomes

_MOST_FOREIGN = 3


def collect(
    folders: Sequence[Path | str],
    *,
    metric: str | None = None,
    average_over: Sequence[str] | None = None,
    output: Path | str | None = None,
) -> SweepReport:
    """Print the tables of the jobs in folders, and write tables and figure.

    Args:
        folders: Of multiruns or single jobs.
        metric: The metric to show; the test's accuracy by default, or else what comes nearest.
        average_over: Overrides whose values are averaged over, ``("seed",)`` by default.
        output: Where to write; the first of the folders by default.

    Returns:
        The report.

    Raises:
        FileNotFoundError: If a folder is not there, or there is no job in them.
        ValueError: If no job has the metric or such an override, or if nothing can be written.
    """
    report = collect_outcomes(*folders, metric=metric, average_over=average_over)
    rich.print(report)
    target = Path(folders[0] if output is None else output)
    try:
        written = report.save(target)
    except OSError as error:
        raise ValueError(
            f"The tables cannot be written to `{target}`: {error}. HINT: --output names another folder."
        ) from error
    print(f"Written to {target}: {', '.join(path.name for path in written)}.")
    if report.has_figure and importlib.util.find_spec("matplotlib") is None:
        print("Figures need matplotlib, which is not installed. HINT: pip install 'lightning-gnnopt[plots]'.")
    if report.foreign:
        names = ", ".join(map(str, report.foreign[:_MOST_FOREIGN]))
        more = f" and {len(report.foreign) - _MOST_FOREIGN} more" if len(report.foreign) > _MOST_FOREIGN else ""
        print(f"Left out, as they hold no outcome that this version reads: {names}{more}.")
    return report


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gnnopt-collect",
        description="Gather the jobs of gnnopt-train into a table of jobs, one of averages over seeds, and a figure."
        " Jobs that failed, or that did not end, are listed with the reason.",
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="of a multirun, or any folder above some")
    parser.add_argument("--metric", help="what to show, such as val/loss (default: test/acc, or what comes nearest)")
    parser.add_argument(
        "--average-over",
        "--group-by",
        nargs="+",
        metavar="KEY",
        help="overrides whose values make a group that is averaged (default: seed)",
    )
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: the first FOLDER)")
    return parser


def main() -> None:
    """Run the command line."""
    given = _parser().parse_args()
    run(lambda: collect(given.folders, metric=given.metric, average_over=given.average_over, output=given.output))


if __name__ == "__main__":
    main()
