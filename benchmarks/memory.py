"""What MemoryControl promises: exact predictions, no step over the budget, and next to no time.

* Predictions of unseen batches, and the time to learn a changed model (``benchmarks/memory_exact.py``).
* Runs under budgets of 50, 70 and 90 % of what they would take (``benchmarks/memory_budget.py``).
* One prediction and one pruning (``benchmarks/memory_speed.py``), and control's share of an epoch
  (``benchmarks/memory_share.py``).
* Accuracy with half of the edges, and `split` beside the run without a limit (``benchmarks/memory_accuracy.py``).
* Predictors on peaks that others measured on a GPU (``benchmarks/memory_published.py``).

Everything runs on the CPU: for seven minutes on two cores, with ``--quick`` for 40 seconds. Bytes are
those of tensors, as torch's allocator reports them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

from benchmarks.harness import Cell, Figure, Measured, run_benchmark
from benchmarks.memory_accuracy import measure_accuracy, measure_split
from benchmarks.memory_budget import measure_budget
from benchmarks.memory_exact import measure_exact, measure_relearning
from benchmarks.memory_published import measure_published
from benchmarks.memory_scale import FULL, QUICK, MemoryScale
from benchmarks.memory_share import measure_share
from benchmarks.memory_speed import measure_speed

PARTS: tuple[Callable[[MemoryScale], Measured], ...] = (
    measure_exact,
    measure_relearning,
    measure_budget,
    measure_speed,
    measure_share,
    measure_accuracy,
    measure_split,
    measure_published,
)


def measure(quick: bool) -> Measured:
    """Measure everything.

    Args:
        quick: Whether to take fewer graphs, models and batches.

    Returns:
        The figures, and a row per case.
    """
    return measure_at(QUICK if quick else FULL)


def measure_at(scale: MemoryScale) -> Measured:
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
    return run_benchmark("memory", measure, description=(__doc__ or "").split("\n")[0], argv=argv)


if __name__ == "__main__":
    sys.exit(main())
