"""Preparation of batches: sampling and slicing to a ready batch, beside PyG's `NeighborLoader`.

Both slice ``x`` and ``y``; PyG's batches also hold the ids of their edges, as its samplers return them anyway. Each
library tries several numbers of workers, and the best of each are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import torch

from benchmarks.backends import Backend
from benchmarks.harness import Cell, Figure, Measured, alternate, median, ratios
from benchmarks.loading_scale import LoadingScale
from benchmarks.loading_sides import (
    PEERS,
    LoadingGraph,
    Preparation,
    best_side,
    missing_peers,
    one_torch_thread,
    our_side,
    pyg_side,
)
from lightning_gnnopt.loading.dense_features import DenseFeatures

REACHES = {"torch-sparse": 15.0, "pyg-lib": 5.0}


def measure_preparation(graph: LoadingGraph, scale: LoadingScale, *, backend: Backend | None = None) -> Measured:
    """Prepare batches with both libraries, in turn.

    Args:
        graph: The graph.
        scale: How much to measure.
        backend: The device on which batches are ready; None for host memory.

    Returns:
        The figures, and a row per side.
    """
    missing = missing_peers()
    sides: dict[str, Callable[[], Preparation]] = {}
    sizes = {"batch_size": scale.batch_size}
    for num in scale.workers:
        loader = graph.loader(
            scale.fanouts, num_workers=num, streams=None if backend is None else backend.streams, **sizes
        )
        sides[f"ours, {num} workers"] = our_side(loader, batches=scale.batches, arrive=partial(_arrived, backend))
        for peer in (peer for peer in PEERS if peer not in missing):
            make = partial(
                graph.pyg_loader,
                scale.fanouts,
                num_workers=num,
                pin_memory=backend is not None and backend.accelerator != "cpu",
                **sizes,
            )
            sides[f"PyG with {peer}, {num} workers"] = pyg_side(
                make, peer, num_workers=num, batches=scale.batches, arrive=partial(_moved, backend)
            )
    runs = alternate(sides, rounds=scale.rounds, warmup=0)  # each run warms up before its clock starts
    seconds = {name: [run.batch_s for run in of_side] for name, of_side in runs.items()}
    ours = best_side(seconds, "ours")
    figures = [Figure.of_runs("preparation of a batch, best of ours", seconds[ours], unit="s")]
    for peer in PEERS:
        if peer not in missing:
            over = ratios(seconds[best_side(seconds, f"PyG with {peer}")], seconds[ours])
            name = f"preparation, PyG with {peer} over ours, best of each"
            figures.append(Figure.of_runs(name, over, unit="x", reach=REACHES[peer], sense=">="))
    best = {ours} | {best_side(seconds, f"PyG with {peer}") for peer in PEERS if peer not in missing}
    rows = [_row(graph, name, of_side, is_best=name in best) for name, of_side in runs.items()]
    rows += [
        {"part": "preparation", "side": f"PyG with {name}", "note": f"not measured: {why}"}
        for name, why in missing.items()
    ]
    return figures, rows


def _arrived(backend: Backend | None, batch: Any) -> Any:
    if backend is not None:
        backend.synchronize()
    return batch


def _moved(backend: Backend | None, batch: Any) -> Any:
    return batch if backend is None else _arrived(backend, backend.move(batch))


def _row(graph: LoadingGraph, name: str, runs: Sequence[Preparation], *, is_best: bool) -> Mapping[str, Cell]:
    return {
        "part": "preparation",
        "side": name,
        "graph": graph.label,
        "batch_ms": 1000 * median([run.batch_s for run in runs]),
        "nodes_per_batch": round(statistics.mean(run.nodes / run.batches for run in runs)),
        "edges_per_batch": round(statistics.mean(run.edges / run.batches for run in runs)),
        "note": "best of its library" if is_best else None,
    }


def measure_packing(graph: LoadingGraph, scale: LoadingScale, *, backend: Backend) -> Measured:
    """Count how batches travel to a device."""
    loader = graph.loader(scale.fanouts, batch_size=scale.batch_size, num_workers=1, streams=backend.streams)
    with closing(iter(loader)) as batches:
        for _ in range(scale.batches):
            next(batches)
    backend.synchronize()
    stats = loader.stats
    copies, packed = stats.copies / stats.batches, stats.moved_bytes / stats.nbytes
    figures = [
        Figure(name="copies to the device per batch", value=copies, unit="copies", reach=1.0, sense="<="),
        Figure(name="bytes that travel over bytes of the batch", value=packed, unit="x"),
    ]
    mib = {"moved_mib": stats.moved_bytes / stats.batches / 2**20, "batch_mib": stats.nbytes / stats.batches / 2**20}
    return figures, [{"part": "transfer", "side": "ours, packed", **mib}]


def measure_gather(graph: LoadingGraph, scale: LoadingScale) -> Measured:
    """Slice the rows of sampled batches only, beside ``torch.index_select``, both on one thread into reused memory."""
    loader = graph.loader(scale.fanouts, batch_size=scale.batch_size, num_workers=0)
    with closing(iter(loader)) as batches:  # several, so that none is found in the caches
        wide = [next(batches).n_id.clone() for _ in range(scale.batches)]
    narrow = [ids.int().numpy() for ids in wide]
    rows = max(map(len, wide))
    x = graph.data.x
    store, out = DenseFeatures(x), torch.empty(rows, x.shape[1])

    def gather() -> None:
        for ids in narrow:
            store.gather(ids, out[: len(ids)])

    def index_select() -> None:
        for ids in wide:
            torch.index_select(x, 0, ids, out=out[: len(ids)])

    sides = {"ours": _timed(gather), "torch.index_select": _timed(index_select)}
    with one_torch_thread():
        runs = alternate(sides, rounds=max(3, scale.rounds))
    nbytes = sum(map(len, wide)) * store.row_bytes
    over = ratios(runs["torch.index_select"], runs["ours"])
    figures = [
        Figure.of_runs("slicing, torch.index_select over ours", over, unit="x"),
        Figure.of_runs("slicing, ours", [nbytes / seconds / 1e9 for seconds in runs["ours"]], unit="GB/s"),
    ]
    measured: list[Mapping[str, Cell]] = [
        {
            "part": "slicing",
            "side": name,
            "batch_ms": 1000 * median(of_side) / len(wide),
            "nodes_per_batch": round(statistics.mean(map(len, wide))),
            "gb_per_s": nbytes / median(of_side) / 1e9,
        }
        for name, of_side in runs.items()
    ]
    return figures, measured


def _timed(work: Callable[[], None]) -> Callable[[], float]:
    """Make a side that does some work and returns the seconds that it took."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run
