"""What the scripts in this folder share: sides in turn, medians, one table, one JSON file.

A benchmark is a module with a function ``measure(quick) -> (figures, rows)`` and a ``main`` that hands it to
:func:`run_benchmark`; ``benchmarks/README.md`` shows one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.figure import Figure, Sense
from benchmarks.report import Cell, Report
from benchmarks.rounds import alternate, median, ratio, ratios
from lightning_gnnopt._machine import machine, other_cpu_s, versions

__all__ = ["Cell", "Figure", "Measured", "Report", "Sense", "alternate", "median", "ratio", "ratios", "run_benchmark"]

_BUSY_SHARE = 0.1  # of all cores; the system itself takes some percent

Measured = tuple[Sequence[Figure], Sequence[Mapping[str, Cell]]]


def run_benchmark(
    name: str,
    measure: Callable[[bool], Measured],
    *,
    description: str | None = None,
    peers: Iterable[str] = (),
    argv: Sequence[str] | None = None,
) -> int:
    """Be the command line of a benchmark: measure, print the table, write the JSON file.

    Args:
        name: The module's name in this package.
        measure: Takes whether to be quick, and returns the figures and the rows behind them.
        description: What ``--help`` says first.
        peers: Packages compared with, by their names on PyPI; their versions are noted where they are installed.
        argv: The arguments; those of the process by default.

    Returns:
        The exit status: 0, also where a figure is missed; with ``--strict`` 1 then.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute on two cores")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write what was found to this file")
    parser.add_argument("--strict", action="store_true", help="exit with status 1 if a figure misses its reach")
    args = parser.parse_args(argv)
    if args.json is not None and args.json.is_dir():
        parser.error(f"`--json` must name a file, but {args.json} is a folder.")  # now, not after the measuring
    start_s, start_other_s = time.perf_counter(), other_cpu_s()
    figures, rows = measure(args.quick)
    other_cores = max(0.0, (other_cpu_s() - start_other_s) / (time.perf_counter() - start_s))
    report = Report(
        # Built from what changes the numbers: where they were written to is nobody's business.
        command=f"python -m benchmarks.{name}{' --quick' if args.quick else ''}",
        machine={**machine(), "other_cores": round(other_cores, 2)},
        versions=versions(peers),
        figures=tuple(figures),
        rows=tuple(rows),
    )
    report.print()
    if other_cores > _BUSY_SHARE * (os.cpu_count() or 1):
        sys.stderr.write(
            f"Warning: other processes kept {other_cores:.2f} of {os.cpu_count()} cores busy meanwhile, which distorts"
            " times and ratios. HINT: run it again on a quiet machine.\n"
        )
    if args.json is not None:
        report.write_json(args.json)
    return int(args.strict and not report.met)
