"""What AsyncValidation promises: training beside validation takes as long as the longer of the two.

* The speed-up over validation within training, as a part of what theory allows; what the hooks take of the training
  thread; and how much slower steps are while the other process works (``benchmarks/async_effect.py``).
* A snapshot of 10 million parameters with Adam's state (``benchmarks/async_snapshot.py``).
* The other process's start and memory (``benchmarks/async_process.py``).

Each of the two processes has a core of its own, where there are two, and torch has one thread. Times of runs begin
when the validation process is up, and end with the last verdict; its start is told separately. With ``--quick`` it
takes a minute on two cores, and else a quarter of an hour.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.async_effect import measure_effect
from benchmarks.async_process import measure_process
from benchmarks.async_scale import FULL, QUICK, AsyncScale
from benchmarks.async_snapshot import measure_snapshot
from benchmarks.harness import Cell, Figure, Measured, run_benchmark

PARTS: tuple[Callable[[AsyncScale], Measured], ...] = (measure_effect, measure_snapshot, measure_process)


def measure(quick: bool) -> Measured:
    """Measure everything.

    Args:
        quick: Whether to take fewer graphs, models, shares and epochs.

    Returns:
        The figures, and a row per case.
    """
    return measure_at(QUICK if quick else FULL)


def measure_at(scale: AsyncScale) -> Measured:
    """Measure everything at a scale."""
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for measure_part in PARTS:
        of_part, its_rows = measure_part(scale)
        figures += of_part
        rows += its_rows
    return figures, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("async_validation", measure, description=(__doc__ or "").split("\n")[0], argv=argv)


if __name__ == "__main__":
    sys.exit(main())
