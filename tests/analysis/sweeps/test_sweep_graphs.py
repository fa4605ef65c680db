"""Sweeps over graphs that grow in size and degree."""

from __future__ import annotations

from typing import Any

import pytest
from torch_geometric.data import Data

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.analysis.records import SweepRecord
from lightning_gnnopt.analysis.sweeps.sweep import graph_sweep, sampling_sweep
from lightning_gnnopt.datasets import load_dataset

from .sweeping import Plain


def test_graphs_grow_in_size_and_degree() -> None:
    seen: list[SweepRecord] = []
    points = graph_sweep(
        NodeClassifier("sage", in_channels=16, out_channels=4, hidden_channels=8),
        num_nodes=[500, 1000],
        avg_degrees=[2, 6.5],
        fixed_num_nodes=600,
        fixed_avg_degree=4,
        batch_size=2000,
        batches=2,
        seed=3,
        graph_options={"num_features": 16, "num_classes": 4},
        num_neighbors=[3, 3],
        on_point=seen.append,
    )
    assert seen == points
    assert [(point.sweep, point.value, point.sampler) for point in points] == [
        (sweep, value, sampler)
        for sweep, value in [("num_nodes", 500), ("num_nodes", 1000), ("avg_degree", 2), ("avg_degree", 6.5)]
        for sampler in ("NeighborSampler", "full")
    ]
    sizes = [(point.graph_nodes, point.graph_edges) for point in points[::2]]
    assert sizes == [(500, 2000), (1000, 4000), (600, 1200), (600, 3900)]
    graph = load_dataset("rmat", seed=3, num_nodes=600, avg_degree=6.5, num_features=16, num_classes=4)
    (alone, _) = sampling_sweep(
        graph,
        NodeClassifier("sage", in_channels=16, out_channels=4, hidden_channels=8),
        batch_sizes=[2000],
        batches=2,
        seed=3,
        num_neighbors=[3, 3],
    )
    last = points[-2]
    assert (last.nodes, last.edges, last.peak_bytes) == (alone.nodes, alone.edges, alone.peak_bytes)
    assert alone.value == int(graph.train_mask.sum())


def test_a_graph_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str, **options: Any) -> Data:
        if options["num_nodes"] > 500:
            raise MemoryError("Unable to allocate 1 TiB")
        return load_dataset(name, **options)

    monkeypatch.setattr("lightning_gnnopt.analysis.sweeps.sweep.load_dataset", load)
    model = NodeClassifier("sage", in_channels=64, out_channels=8, hidden_channels=8)
    points = graph_sweep(model, num_nodes=[1000, 500], avg_degrees=[], batches=1, full_batch=False)
    assert [(point.value, point.error) for point in points] == [
        (1000, "out of memory: Unable to allocate 1 TiB"),
        (500, ""),
    ]


def test_a_sweep_over_no_graph() -> None:
    with pytest.raises(ValueError, match="`num_nodes` and `avg_degrees` are both empty"):
        graph_sweep(Plain(), num_nodes=[], avg_degrees=[])
