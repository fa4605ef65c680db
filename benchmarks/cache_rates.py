"""Hit rates of a cache of features on the device, beside the best that a static cache of that size can reach.

A tenth of the rows is cached. Hits do not depend on what the features are, so each graph gets 100 random float32
columns. They are counted over epochs of training that no policy has seen; the best cache is known only afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch_geometric.data import Data

from benchmarks.harness import Cell, Figure, Measured
from benchmarks.loading_scale import LoadingScale
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading import GraphDataModule, PrefetchLoader
from lightning_gnnopt.loading.caching import CachePolicy
from lightning_gnnopt.loading.streams import DeviceStreams

BUDGET = 0.1  # of the rows
REAL_GRAPH = "facebook-cornell5"
FEATURES = 100
FANOUTS = (15, 10)
SMALL_BATCH, LARGE_BATCH = 128, 1024
LARGE_GRAPH = 100_000  # nodes, from which on batches are large; on a smaller graph one would reach all of it
POLICIES: tuple[CachePolicy, ...] = ("degree", "presample", "vip")
FORESEEING: tuple[CachePolicy, ...] = ("presample", "vip")


@dataclass(frozen=True, kw_only=True)
class CacheRun:
    """What was counted with one policy.

    Attributes:
        hit_rate: Share of the rows asked for that were on the device.
        best_rate: What the best static cache of as many rows would have reached.
        moved_bytes: Bytes that travelled per batch.
    """

    hit_rate: float
    best_rate: float
    moved_bytes: float

    @property
    def of_best(self) -> float:
        """Its hit rate over the best one."""
        return self.hit_rate / self.best_rate if self.best_rate else 0.0


def measure_caches(scale: LoadingScale, *, streams: DeviceStreams) -> Measured:
    """Count hits with each policy on each graph.

    Args:
        scale: How much to measure.
        streams: The device.

    Returns:
        The figures, and a row per graph and policy.
    """
    rmat = load_dataset("rmat", num_nodes=scale.cache_nodes, num_features=1)
    figures, rows = measure_graph(rmat, scale, streams=streams)
    try:
        real = load_dataset(REAL_GRAPH, download=False)
    except (RuntimeError, OSError) as error:
        # Its words name a folder, which is no business of a report.
        why = f"{type(error).__name__}: its files are not where GNNOPT_DATA says"
        return figures, [*rows, {"part": "cache", "graph": REAL_GRAPH, "side": "-", "note": f"not measured: {why}"}]
    more_figures, more_rows = measure_graph(real, scale, streams=streams)
    return [*figures, *more_figures], [*rows, *more_rows]


def measure_graph(data: Data, scale: LoadingScale, *, streams: DeviceStreams) -> Measured:
    """Count hits with each policy on one graph.

    Args:
        data: The graph; its features are not looked at.
        scale: How much to measure.
        streams: The device.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(data.num_nodes, FEATURES, generator=generator)
    graph = Data(x=x, y=data.y, edge_index=data.edge_index, train_mask=data.train_mask)
    batch_size = LARGE_BATCH if data.num_nodes >= LARGE_GRAPH else SMALL_BATCH
    without = _without_cache(graph, scale, streams, batch_size)
    runs = {policy: count_hits(graph, scale, policy, streams=streams, batch_size=batch_size) for policy in POLICIES}
    name: str = data.name
    best = max(runs[policy].of_best for policy in FORESEEING)
    figures = [
        Figure(
            name=f"hit rate over the best static cache's, {name}, better of {' and '.join(FORESEEING)}",
            value=best,
            unit="x",
            reach=0.95,
            sense=">=",
        )
    ]
    common: Mapping[str, Cell] = {
        "part": "cache",
        "graph": f"{name}, {graph.num_nodes:,} nodes, {graph.num_edges:,} edges",
    }
    note = f"{BUDGET:.0%} of the rows, batches of {batch_size}, fan-outs {'/'.join(map(str, FANOUTS))}"
    rows = [{**common, "side": "no cache", "moved_mib": without / 2**20, "note": note}]
    rows += [
        {
            **common,
            "side": policy,
            "moved_mib": run.moved_bytes / 2**20,
            "hit_rate": run.hit_rate,
            "best_rate": run.best_rate,
            "effect": run.of_best,
        }
        for policy, run in runs.items()
    ]
    return figures, rows


def count_hits(
    graph: Data, scale: LoadingScale, policy: CachePolicy, *, streams: DeviceStreams, batch_size: int
) -> CacheRun:
    """Draw epochs of training with a cache and count its hits."""
    rows = int(BUDGET * graph.num_nodes)
    cache_bytes = rows * graph.x.shape[1] * graph.x.element_size()
    datamodule = _datamodule(graph, scale, streams, batch_size, cache=cache_bytes, cache_policy=policy)
    loader = datamodule.train_dataloader()
    cached = datamodule.cached_features
    assert cached is not None
    cached.reset_counts()  # of what was drawn to warm up
    moved_bytes = _draw(loader, scale)
    return CacheRun(hit_rate=cached.hit_rate, best_rate=cached.best_hit_rate, moved_bytes=moved_bytes)


def _without_cache(graph: Data, scale: LoadingScale, streams: DeviceStreams, batch_size: int) -> float:
    return _draw(_datamodule(graph, scale, streams, batch_size).train_dataloader(), scale)


def _datamodule(
    graph: Data, scale: LoadingScale, streams: DeviceStreams, batch_size: int, **options: Any
) -> GraphDataModule:
    datamodule = GraphDataModule(
        graph,
        num_neighbors=FANOUTS,
        batch_size=batch_size,
        num_workers=scale.cache_workers,
        device=streams,
        seed=0,
        **options,
    )
    datamodule.setup("fit")
    return datamodule


def _draw(loader: PrefetchLoader, scale: LoadingScale) -> float:
    """Draw all epochs; return the bytes that travelled per batch."""
    for _ in range(scale.cache_epochs):
        for batch in loader:
            del batch
    return loader.stats.moved_bytes / loader.stats.batches
