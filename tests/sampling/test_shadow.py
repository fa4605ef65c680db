from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.utils import k_hop_subgraph

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.shadow import ShadowSampler

from .reference import multigraphs, random_graph

N, E = 200, 1_500


def assert_same_bits(a: Subgraph, b: Subgraph) -> None:
    for name in ("n_id", "row", "col", "positions", "batch"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_a_batch_is_a_union_of_induced_subgraphs(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3))
    replace, key = data.draw(st.booleans()), SampleKey(data.draw(st.integers(0, 99)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)

    batch = ShadowSampler(graph, fanouts, replace=replace).sample(np.array(seeds), key)

    assert batch.n_id[: len(seeds)].tolist() == seeds
    assert batch.batch[: len(seeds)].tolist() == list(range(len(seeds)))
    assert (batch.batch_size, batch.num_sampled_nodes, batch.num_sampled_edges) == (len(seeds), None, None)
    place = {(int(tree), int(v)): i for i, (tree, v) in enumerate(zip(batch.batch, batch.n_id, strict=True))}
    assert len(place) == len(batch.n_id)  # a node stands once in a tree
    expected = [
        (place[tree, u], place[tree, v], number)
        for number, (u, v) in enumerate(edge_index.t().tolist())
        for tree in range(len(seeds))
        if (tree, u) in place and (tree, v) in place
    ]
    ids = graph.edge_ids[batch.positions].tolist()
    assert sorted(zip(batch.row.tolist(), batch.col.tolist(), ids, strict=True)) == sorted(expected)
    # it is what a disjoint neighbour sampler induces, edge for edge
    trees = NeighborSampler(graph, fanouts, replace=replace, disjoint=True, subgraph_type="induced")
    assert_same_bits(batch, trees.sample(np.array(seeds), key))
    for tree, seed in enumerate(seeds):  # no node is further than the hops reach
        near = k_hop_subgraph(seed, len(fanouts), edge_index, num_nodes=num_nodes)[0].tolist()
        found = sorted(batch.n_id[batch.batch == tree].tolist())
        assert found == near if all(fanout == -1 for fanout in fanouts) else set(found) <= set(near)


@pytest.mark.parametrize("by_source", [True, False])
def test_a_hubs_edges_are_found_in_any_order(by_source: bool) -> None:
    """Node 0 has 2,000 in-edges, far more than a tree has nodes, and of each source two in a row or far apart."""
    sources = torch.arange(1, 1_001)
    sources = sources.repeat_interleave(2) if by_source else torch.cat([sources, sources.flip(0)])
    hub = torch.stack([sources, torch.zeros_like(sources)])
    others = random_graph(1_001, 4_000)
    if by_source:
        others = others[:, (others[0] * 2_000 + others[1]).argsort()]
        others = others[:, others[1] != 0]
    graph = Topology.from_edge_index(torch.cat([hub, others], dim=1), 1_001)
    sampler = ShadowSampler(graph, [5, 2])
    assert graph.rows_sorted == by_source
    other = NeighborSampler(graph, [5, 2], disjoint=True, subgraph_type="induced")
    for i in range(20):
        seeds = np.array([0, i + 1, 0, 7])
        batch = sampler.sample(seeds, SampleKey(i))
        assert_same_bits(batch, other.sample(seeds, SampleKey(i)))
        assert np.count_nonzero(batch.col == 0) >= 10  # five sources, by two edges each


def test_it_feeds_any_number_of_layers_and_travels_to_another_process() -> None:
    sampler = ShadowSampler(Topology.from_edge_index(random_graph(N, E), N), [5, 3])
    copy = pickle.loads(pickle.dumps(sampler))
    one, other = (s.sample(np.array([3, 1, 3]), SampleKey(1)) for s in (sampler, copy))
    assert sampler.num_hops is None
    assert np.array_equal(one.positions, other.positions)
    assert repr(sampler) == "ShadowSampler(Topology(num_nodes=200, num_edges=1,500), num_neighbors=[5, 3])"
    with pytest.raises(ValueError, match="`num_neighbors` must hold one fan-out per hop, but it is empty"):
        ShadowSampler(sampler.topology, [])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pygs_node_loader_takes_it(num_workers: int) -> None:
    edge_index, seeds = random_graph(N, E), torch.tensor([7, 0, 33])
    sampler = ShadowSampler(Topology.from_edge_index(edge_index, N, edge_ids=True), [-1, -1])
    data = Data(x=torch.arange(N), edge_index=edge_index)
    batches = list(NodeLoader(data, sampler, input_nodes=seeds, batch_size=2, num_workers=num_workers))
    assert torch.cat([batch.n_id[: batch.batch_size] for batch in batches]).equal(seeds)
    for batch in batches:
        assert batch.batch[: batch.batch_size].tolist() == list(range(batch.batch_size))
        assert batch.batch[batch.edge_index[0]].equal(batch.batch[batch.edge_index[1]])
        assert batch.n_id[batch.edge_index].equal(edge_index[:, batch.e_id])
        assert batch.x.equal(batch.n_id)
