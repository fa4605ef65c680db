"""Epochs in which a graph's batches are sampled, sliced, transferred and computed on, beside their computing alone.

A batch's kernel takes 1.5 times as long as one worker takes to prepare a batch, so that one worker can keep up. The
epoch runs from the request of its first batch, which nothing can hide, to the end of its last kernel. On the simulated
device copies take their time and no core, as a copy engine's do; what they take of the memory's bandwidth is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial

from benchmarks.backends import Backend
from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios
from benchmarks.loading_scale import LoadingScale
from benchmarks.loading_sides import LoadingGraph

COMPUTE_OVER_PREPARATION = 1.5
_SKIPPED = 3  # batches, before preparation is timed


def measure_epoch(graph: LoadingGraph, scale: LoadingScale, *, backend: Backend) -> Measured:
    """Compare epochs with real preparation of batches to their computing alone.

    Args:
        graph: The graph.
        scale: How much to measure.
        backend: The device.

    Returns:
        A figure per number of workers, and a row per side.
    """
    compute_s = COMPUTE_OVER_PREPARATION * preparation_s(graph, scale, backend=backend)
    kernel = backend.kernel(compute_s)
    workers = [num for num in scale.workers if num > 0]

    def pure() -> float:
        start = time.perf_counter()
        for _ in range(scale.epoch_batches):
            kernel()
        backend.synchronize()
        return time.perf_counter() - start

    sides: dict[str, Callable[[], float]] = {"computing alone": pure}
    for num in workers:
        sides[f"ours, {num} workers"] = partial(_epoch, graph, scale, backend, kernel, num)
    runs = alternate(sides, rounds=scale.epoch_rounds, warmup=0)  # each side warms up for itself
    figures = [
        Figure.of_runs(
            f"epoch over computing alone, {num} workers",
            ratios(runs[f"ours, {num} workers"], runs["computing alone"]),
            unit="x",
            reach=1.03,
            sense="<=",
        )
        for num in workers
    ]
    rows: list[Mapping[str, Cell]] = [
        {
            "part": "epoch",
            "side": name,
            "graph": graph.label,
            "batch_ms": 1000 * median(of_side) / scale.epoch_batches,
            "note": f"{scale.epoch_batches} kernels of {1000 * compute_s:.1f} ms",
        }
        for name, of_side in runs.items()
    ]
    return figures, rows


def preparation_s(graph: LoadingGraph, scale: LoadingScale, *, backend: Backend) -> float:
    """Measure the seconds that one worker takes to prepare a batch for the device, when nothing is computed there."""
    loader = graph.loader(
        scale.fanouts,
        batch_size=scale.batch_size,
        num_batches=_SKIPPED + max(8, scale.batches),
        num_workers=1,
        streams=backend.streams,
    )
    with closing(iter(loader)) as batches:
        for _ in range(_SKIPPED):
            next(batches)
        before = loader.stats.copy()
        for batch in batches:
            del batch
        counted = loader.stats - before
    backend.synchronize()
    return (counted.sample_s + counted.slice_s) / counted.batches


def _epoch(
    graph: LoadingGraph, scale: LoadingScale, backend: Backend, kernel: Callable[[], None], num_workers: int
) -> float:
    loader = graph.loader(
        scale.fanouts,
        batch_size=scale.batch_size,
        num_batches=scale.epoch_batches,
        num_workers=num_workers,
        streams=backend.streams,
    )
    loader.warm_up()
    backend.synchronize()
    start = time.perf_counter()
    for batch in loader:
        kernel()
        del batch
    backend.synchronize()
    return time.perf_counter() - start
