"""Batches of random walks, and the norms of what they visit."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.sampling import SampleKey, Topology
from lightning_gnnopt.sampling.saint import inclusion_norms
from lightning_gnnopt.sampling.saint_walk import SaintWalkSampler

from . import reference
from .reference import multigraphs, random_graph
from .saint_reference import Sets, all_of, chance, check_induced, check_norms, walks_from


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_walks_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    length, key = data.draw(st.integers(1, 4)), SampleKey(*data.draw(st.tuples(*[st.integers(0, 99)] * 4)))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    batch = SaintWalkSampler(graph, length, coverage=0).sample(np.array(seeds), key)

    incoming, word = reference.in_edges(edge_index, num_nodes), reference.fold(key)
    walks = []
    for i, seed in enumerate(seeds):
        walk, state = [seed], reference.mix64(word ^ i)
        for _ in range(length):
            sources = [u for u, _ in incoming[walk[-1]]]
            if sources:
                draw, state = reference.uniform_below(state, len(sources))
                walk.append(sources[draw])
            else:
                walk.append(walk[-1])
        walks.append(walk)
    assert batch.n_id.tolist() == list(dict.fromkeys(v for step in zip(*walks, strict=True) for v in step))
    check_induced(batch, edge_index, graph)
    assert batch.edge_norm is batch.node_norm is None


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_walks_are_counted_by_what_they_visit(data: st.DataObject) -> None:
    """In so many walks chances are known to 0.02; a node or a pair that no walk meets is not counted."""
    edge_index, num_nodes = data.draw(multigraphs(max_nodes=6, max_edges=12))
    length = data.draw(st.integers(1, 3))
    roots = data.draw(st.sets(st.integers(0, num_nodes - 1), min_size=1))
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    sampler = SaintWalkSampler(graph, length, roots=np.array(sorted(roots)), coverage=2**15, seed=7)

    sets: Sets = {}
    for root in roots:
        for visited, p in walks_from(edge_index, root, length).items():
            sets[visited] = sets.get(visited, 0) + p / len(roots)
    nodes = [chance(sets, v) for v in range(num_nodes)]
    pairs = [edge_index[:, e].tolist() for e in graph.edge_ids.tolist()]
    edges = [chance(sets, u, v) if u != v else 0.0 for u, v in pairs]  # a self loop's weight needs no count
    for counts, expected in ((sampler._node_visits, nodes), (sampler._edge_visits, edges)):
        assert (counts / sampler._num_walks).tolist() == pytest.approx(expected, abs=0.02)
        assert np.array_equal(counts > 0, np.array(expected) > 0)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_norms_of_one_walk_and_of_deterministic_walks_are_exact(data: st.DataObject) -> None:
    """Of one walk whatever it does; of several if nothing but the roots is random, and these cover the graph or not."""
    edge_index, num_nodes = data.draw(multigraphs(max_nodes=6, max_edges=12))
    length = data.draw(st.integers(1, 3))
    sets: Sets = {}
    for root in range(num_nodes):
        for visited, p in walks_from(edge_index, root, length).items():
            sets[visited] = sets.get(visited, 0) + p / num_nodes
    row, col = edge_index.numpy()
    visit = np.array([chance(sets, v) for v in range(num_nodes)])
    both = np.array([chance(sets, *pair) for pair in edge_index.t().tolist()])
    is_root = np.ones(num_nodes, np.bool_)
    seen = both > 0  # of the others the weight is infinite
    edge_norm, node_norm = inclusion_norms(row[seen], col[seen], visit, both[seen], 1, is_root, num_nodes)
    assert node_norm.tolist() == pytest.approx((1 / visit).tolist(), rel=1e-5)
    assert edge_norm.tolist() == pytest.approx((visit[col] / np.where(seen, both, 1))[seen].tolist(), rel=1e-5)
    # all nodes are roots: every node and edge is in every batch
    edge_norm, node_norm = inclusion_norms(row, col, visit, both, num_nodes, is_root, num_nodes)
    assert set(edge_norm.tolist()) | set(node_norm.tolist()) <= {1.0}
    # nothing but roots: pairs of distinct nodes are hypergeometric
    for draws in range(2, num_nodes):
        alone, none = np.full(num_nodes, 1 / num_nodes), np.zeros(len(row))
        edge_norm, node_norm = inclusion_norms(row, col, alone, none, draws, is_root, num_nodes)
        assert node_norm.tolist() == pytest.approx([num_nodes / draws] * num_nodes, rel=1e-5)
        expected = np.where(row == col, 1, (num_nodes - 1) / (draws - 1))
        assert edge_norm.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_norms_of_several_walks_are_near_the_chances() -> None:
    """All sets of three of ten roots and all their walks are gone through: parallel walks are nearly independent."""
    edge_index = random_graph(12, 30, seed=3)
    graph = Topology.from_edge_index(edge_index, 12)
    roots = np.arange(1, 11)
    sampler = SaintWalkSampler(graph, 2, roots=roots, coverage=100_000)
    sets: Sets = {}
    triples = list(combinations(roots.tolist(), 3))
    for triple in triples:
        for visited, p in all_of(walks_from(edge_index, root, 2) for root in triple).items():
            sets[visited] = sets.get(visited, 0) + p / len(triples)
    for i in range(20):
        check_norms(sampler.sample(np.array([1, 5, 9]), SampleKey(0, batch=i)), sets, rel=0.1)
