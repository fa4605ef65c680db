"""How fast batches come, and how little they are waited for.

* Preparation of batches beside PyG's `NeighborLoader`, on a graph like ogbn-products (``benchmarks/preparation.py``).
* The effect of overlap on a device made of threads: the speed-up over running sampling, transfer and computing one
  after the other, over the speed-up of an ideal pipeline (``benchmarks/overlap.py``).
* An epoch of real preparation and of computing there, over the computing alone (``benchmarks/pure_compute.py``).
* Training on the CPU under Lightning beside PyG's loader (``benchmarks/training.py``).
* Hits of caches on the device beside the best static cache's (``benchmarks/cache_rates.py``).
* Copies and bytes per batch, and slicing beside ``torch.index_select`` (``benchmarks/preparation.py``).

``python -m benchmarks.gpu`` does the same on a CUDA device.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from benchmarks.backends import SimulatedBackend
from benchmarks.cache_rates import measure_caches
from benchmarks.harness import Cell, Figure, Measured, run_benchmark
from benchmarks.loading_scale import FULL, QUICK, LoadingScale
from benchmarks.loading_sides import PEERS, products_like
from benchmarks.overlap import measure_effect
from benchmarks.preparation import measure_gather, measure_packing, measure_preparation
from benchmarks.pure_compute import measure_epoch
from benchmarks.training import measure_training

GRID_BYTES_PER_S = 1e6
"""So slow that a transfer of the grid is a few kilobytes, which the simulated device copies in no time of its own."""


def measure(quick: bool) -> Measured:
    """Measure everything.

    Args:
        quick: Whether to take a graph a fiftieth as large, a coarser grid, and fewer rounds.

    Returns:
        The figures, and a row per case.
    """
    return measure_at(QUICK if quick else FULL)


def measure_at(scale: LoadingScale) -> Measured:
    """Measure everything at a scale."""
    graph = products_like(scale.graph)
    with (
        closing(SimulatedBackend(bytes_per_s=GRID_BYTES_PER_S)) as slow,
        closing(SimulatedBackend(carries=False)) as backend,
        closing(SimulatedBackend(bytes_per_s=float("inf"))) as counting,
    ):
        parts = [
            measure_preparation(graph, scale),
            measure_effect(scale, backend=slow),
            measure_epoch(graph, scale, backend=backend),
            measure_training(graph, scale),
            measure_caches(scale, streams=counting.streams),
            measure_packing(graph, scale, backend=counting),
            measure_gather(graph, scale),
        ]
    return joined(parts)


def joined(parts: Sequence[Measured]) -> Measured:
    """Put the figures and rows of some parts one behind the other."""
    figures: list[Figure] = [figure for part, _ in parts for figure in part]
    rows: list[Mapping[str, Cell]] = [row for _, part in parts for row in part]
    return figures, rows


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    return run_benchmark("loading", measure, description=(__doc__ or "").split("\n")[0], peers=tuple(PEERS), argv=argv)


if __name__ == "__main__":
    sys.exit(main())
