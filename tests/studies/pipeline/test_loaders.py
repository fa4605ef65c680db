from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch
import torch_geometric.typing
from torch_geometric.data import Data

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.studies.pipeline import loaders
from lightning_gnnopt.studies.pipeline.loaders import (
    Passes,
    PygBatches,
    for_pyg,
    num_parts,
    our_batches,
    partition,
    pyg_samples_with,
    with_fewer_labels,
)
from lightning_gnnopt.studies.pipeline.settings import Setting


@pytest.fixture(scope="module")
def graph() -> Data:
    return load_dataset("dcsbm", num_nodes=400, num_features=8, avg_degree=6)


def setting(sampler: str = "neighbor") -> Setting:
    return Setting(sampler=sampler, batch_size=50, hidden=8, heads=None, layers=2, rounds=1)


def drawn(graph: Data, sampler: str, num_workers: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    chosen = setting(sampler)
    options: dict[str, Any] = {"fanout": 5, "clusters_per_batch": 2, "passes": 2, "seed": 1}
    parts = partition(graph, chosen, 2, seed=1)
    datamodule = our_batches(graph, chosen, num_workers=num_workers, parts=parts, **options)
    datamodule.setup("fit")
    train, val = datamodule.train_dataloader(), datamodule.val_dataloader()
    return [batch.n_id.clone() for batch in train], [batch.n_id.clone() for batch in val]


@pytest.mark.parametrize("sampler", ["neighbor", "cluster"])
def test_the_same_batches_with_and_without_prefetching(graph: Data, sampler: str) -> None:
    for inline, prefetched in zip(drawn(graph, sampler, 0), drawn(graph, sampler, 1), strict=True):
        assert len(inline) == len(prefetched) > 2
        assert all(torch.equal(one, other) for one, other in zip(inline, prefetched, strict=True))


def test_an_epoch_is_several_passes_that_differ_in_training_only(graph: Data) -> None:
    train, val = drawn(graph, "neighbor", 0)
    assert (len(train), len(val)) == (2 * 4, 2 * 2)  # 200 and 100 nodes
    assert not torch.equal(train[0], train[4])
    assert torch.equal(val[0], val[2])


def test_passes_time_the_wait_for_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loaders.time, "perf_counter", lambda: now[0])

    class Slow(list[int]):
        def __iter__(self) -> Any:
            for item in super().__iter__():
                now[0] += 1.0
                yield item

    passes = Passes(Slow([1, 2, 3]), 2)
    for _ in range(2):
        for _ in passes:
            now[0] += 10.0
    assert (len(passes), passes.num_batches, passes.waits_s) == (6, 3, [6.0, 6.0])


def test_clusters_hold_about_a_batch_of_training_nodes(graph: Data) -> None:
    assert num_parts(graph, setting(), 2) == 8  # 200 / 50 batches of 2
    parts = partition(graph, setting("cluster"), 2, seed=0)
    assert parts is not None
    assert parts.max() == 7
    assert partition(graph, setting(), 2, seed=0) is None


def test_fewer_labels_in_the_same_graph(graph: Data) -> None:
    fewer = with_fewer_labels(graph, 50, seed=3)
    assert (int(fewer.train_mask.sum()), int(fewer.val_mask.sum())) == (50, 25)
    assert bool((graph.train_mask | ~fewer.train_mask).all())
    assert fewer.edge_index is graph.edge_index
    assert torch.equal(fewer.train_mask, with_fewer_labels(graph, 50, seed=3).train_mask)
    assert not torch.equal(fewer.train_mask, with_fewer_labels(graph, 50, seed=4).train_mask)
    assert with_fewer_labels(graph, None, seed=3) is with_fewer_labels(graph, 200, seed=3) is graph


def test_what_pyg_samples_with(monkeypatch: pytest.MonkeyPatch) -> None:
    for pyg_lib, sparse, name in ((True, True, "pyg-lib"), (False, True, "torch-sparse"), (False, False, None)):
        monkeypatch.setattr(torch_geometric.typing, "WITH_PYG_LIB", pyg_lib)
        monkeypatch.setattr(torch_geometric.typing, "WITH_TORCH_SPARSE", sparse)
        assert pyg_samples_with() == name


def test_pyg_gets_degrees_and_dense_features(graph: Data) -> None:
    sparse = Data(**graph.to_dict())
    sparse.x = graph.x.to_sparse_csr()
    found = for_pyg(sparse)
    assert torch.equal(found.x, graph.x)
    assert found.in_degree.sum() == graph.num_edges
    assert "in_degree" not in sparse


def test_pyg_loaders_are_asked_for_the_same_work(graph: Data, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(loaders, "NeighborLoader", lambda data, **options: asked.append(options) or [])
    batches = PygBatches(graph, batch_size=50, fanouts=[5, 5], passes=3, num_workers=2)
    batches.train_dataloader()
    batches.val_dataloader()
    common = {"num_neighbors": [5, 5], "batch_size": 50, "num_workers": 2, "persistent_workers": True}
    assert [{name: options[name] for name in common} for options in asked] == [common, common]
    assert [options["shuffle"] for options in asked] == [True, False]
    assert [int(options["input_nodes"].sum()) for options in asked] == [200, 100]
    clusters: list[dict[str, Any]] = []
    monkeypatch.setattr(loaders, "ClusterLoader", lambda found, **options: clusters.append(options) or [])
    held: Any = object()
    joined = PygBatches(graph, batch_size=50, fanouts=[5], clusters=held, clusters_per_batch=2, passes=1, num_workers=0)
    joined.train_dataloader()
    assert clusters == [{"batch_size": 2, "shuffle": True, "num_workers": 0, "persistent_workers": False}]
    assert pickle.loads(cloudpickle.dumps(joined))._clusters is None
