from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader

from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.cluster import ClusterSampler
from lightning_gnnopt.sampling.partition import partition_nodes

from .reference import multigraphs, random_graph

N, E = 200, 3_000


def make_sampler(**options: Any) -> ClusterSampler:
    return ClusterSampler(Topology.from_edge_index(random_graph(N, E), N, edge_ids=True), num_parts=10, **options)


def assert_same_bits(a: Subgraph, b: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_batch_is_the_clusters_of_its_seeds(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    parts = data.draw(st.lists(st.integers(0, 4), min_size=num_nodes, max_size=num_nodes))
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)

    batch = ClusterSampler(graph, parts=np.array(parts)).sample(np.array(seeds), SampleKey(0))

    clusters = {parts[seed] for seed in seeds}
    others = sorted((parts[v], v) for v in range(num_nodes) if parts[v] in clusters and v not in seeds)
    assert batch.n_id.tolist() == seeds + [v for _, v in others]
    place = {v: i for i, v in reversed(list(enumerate(batch.n_id.tolist())))}
    expected = sorted(
        (place[u], i, number)
        for number, (u, v) in enumerate(edge_index.t().tolist())
        for i, node in enumerate(batch.n_id.tolist())
        if node == v and u in place
    )
    ids = graph.edge_ids[batch.positions].tolist()
    assert sorted(zip(batch.row.tolist(), batch.col.tolist(), ids, strict=True)) == expected
    assert (batch.batch_size, batch.num_sampled_nodes, batch.num_sampled_edges) == (len(seeds), None, None)
    assert batch.edge_norm is batch.node_norm is batch.batch is None


def test_it_makes_its_own_partition() -> None:
    sampler = make_sampler(method="fennel", seed=3, clusters_per_batch=2)
    assert np.array_equal(sampler.seed_groups, partition_nodes(sampler.topology, 10, method="fennel", seed=3))
    assert (sampler.seed_groups.dtype, sampler.groups_per_batch, sampler.num_hops) == (np.int32, 2, None)
    assert repr(sampler) == (
        "ClusterSampler(Topology(num_nodes=200, num_edges=3,000), num_parts=10, clusters_per_batch=2)"
    )


def test_a_batch_depends_on_its_seeds_alone_in_any_thread_and_process() -> None:
    sampler = make_sampler()
    seeds = [np.random.default_rng(i).integers(0, N, 5) for i in range(64)]
    alone = [sampler.sample(s, SampleKey(0)) for s in seeds]
    copy = pickle.loads(pickle.dumps(sampler))
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda s: sampler.sample(s, SampleKey(1)), seeds))
    for s, one, other in zip(seeds, alone, together, strict=True):
        assert_same_bits(one, other)
        assert_same_bits(one, copy.sample(s, SampleKey(2)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pygs_node_loader_takes_it(num_workers: int) -> None:
    sampler = make_sampler()
    edge_index = random_graph(N, E)
    data = Data(x=torch.arange(N), edge_index=edge_index, edge_attr=torch.arange(E) * 10)
    seeds = torch.tensor([7, 0, 33])
    loader = NodeLoader(data, sampler, input_nodes=seeds, batch_size=2, num_workers=num_workers)
    batches = list(loader)
    assert [batch.batch_size for batch in batches] == [2, 1]
    assert torch.cat([batch.n_id[: batch.batch_size] for batch in batches]).equal(seeds)
    for batch in batches:
        clusters = np.unique(sampler.seed_groups[batch.n_id[: batch.batch_size]])
        assert sorted(batch.n_id.tolist()) == np.flatnonzero(np.isin(sampler.seed_groups, clusters)).tolist()
        assert batch.x.equal(batch.n_id)
        assert batch.n_id[batch.edge_index].equal(edge_index[:, batch.e_id])
        assert batch.edge_attr.equal(10 * batch.e_id)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`num_parts` or `parts` must be given, but got neither. HINT: `num_parts` makes a partition;"),
        ({"num_parts": 2, "parts": np.zeros(4, np.int64)}, "`num_parts` or `parts` must be given, but got both."),
        ({"parts": np.zeros(3, np.int64)}, "`parts` must be integers of shape (4,), one cluster per node, but got"),
        ({"parts": np.zeros(4)}, "but got float64 of shape (4,). HINT: `partition_nodes` returns such an array."),
        ({"parts": np.array([0, -1, 0, 0])}, "from 0 to 2**31 - 2, but found -1."),
        ({"parts": np.array([0, 2**40, 0, 0])}, "from 0 to 2**31 - 2, but found 1099511627776."),
        ({"num_parts": 9}, "`num_parts` must be from 1 to the number of nodes, 4, but got 9."),
        ({"num_parts": 2, "clusters_per_batch": 0}, "`clusters_per_batch` must be at least 1, but got 0."),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    graph = Topology.from_edge_index(torch.tensor([[0], [1]]), num_nodes=4)
    with pytest.raises(ValueError, match=re.escape(message)):
        ClusterSampler(graph, **arguments)


def test_seeds_that_are_no_nodes_are_refused() -> None:
    with pytest.raises(ValueError, match="`seeds` must be node ids from 0 to 199, but found 200"):
        make_sampler().sample(np.array([200]), SampleKey(0))
