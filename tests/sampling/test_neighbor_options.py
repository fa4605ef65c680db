"""What a `NeighborSampler` can be asked for beyond its fan-outs: replacement, disjoint trees, other edges."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology

from .reference import (
    GOLDEN,
    SIGNIFICANCE,
    WORD,
    bounded,
    draw_positions,
    fold,
    in_edges,
    mix64,
    multigraphs,
    random_graph,
    star,
    state_of,
    uniform_p_value,
)

N, E = 60, 700
Pair = tuple[int, int]


@dataclass
class Trees:
    nodes: list[Pair]
    edges: list[Pair] = field(default_factory=list)
    edge_ids: list[int] = field(default_factory=list)
    num_nodes: list[int] = field(default_factory=list)
    num_edges: list[int] = field(default_factory=list)


def draw(degree: int, fanout: int, state: int, *, replace: bool, last: bool) -> list[int]:
    """Positions of the in-edges that a node draws, or takes from the end."""
    if last:
        return list(range(degree))[-fanout:] if fanout > 0 else list(range(degree))
    if replace and degree and fanout >= 0:
        words = [mix64((state + (k + 1) * GOLDEN) % WORD) for k in range(fanout)]
        return [bounded(word >> 32, degree, word) for word in words]
    return draw_positions(degree, fanout, state) if 0 <= fanout < degree else list(range(degree))


def sample_trees(
    candidates: Callable[[int, int], list[Pair]],
    seeds: Sequence[int],
    fanouts: Sequence[int],
    word: int,
    *,
    disjoint: bool = True,
    replace: bool = False,
    last: bool = False,
) -> Trees:
    """Sample with lists and a dict.

    `candidates` gives the pairs (source, edge number) that a node of a tree may draw from; nodes are pairs
    (tree, node), of tree 0 if the trees are not disjoint.
    """
    frontier = [(tree if disjoint else 0, node) for tree, node in enumerate(seeds)]
    batch = Trees(list(frontier), num_nodes=[len(seeds)])
    local: dict[Pair, int] = {}
    for place, pair in enumerate(frontier):
        local.setdefault(pair, place)
    first = 0
    for hop, fanout in enumerate(fanouts):
        hop_key, before, new = mix64(word ^ hop), len(batch.edges), []
        for place, (tree, target) in enumerate(frontier):
            available = candidates(tree, target)
            state = state_of(hop_key, place, fanout, replace=replace)
            for position in draw(len(available), fanout, state, replace=replace, last=last):
                source, number = available[position]
                if (tree, source) not in local:
                    local[tree, source] = len(batch.nodes) + len(new)
                    new.append((tree, source))
                batch.edges.append((local[tree, source], first + place))
                batch.edge_ids.append(number)
        frontier, first = new, len(batch.nodes)
        batch.nodes += new
        batch.num_nodes.append(len(new))
        batch.num_edges.append(len(batch.edges) - before)
    return batch


def edges_of(batch: Subgraph) -> list[Pair]:
    return list(zip(batch.row.tolist(), batch.col.tolist(), strict=True))


def assert_equals_reference(batch: Subgraph, graph: Topology, expected: Trees, *, disjoint: bool = True) -> None:
    assert batch.n_id.tolist() == [node for _, node in expected.nodes]
    if disjoint:
        assert batch.batch.tolist() == [tree for tree, _ in expected.nodes]
        assert batch.batch.dtype == np.int32
    else:
        assert batch.batch is None
    assert edges_of(batch) == expected.edges
    assert graph.edge_ids[batch.positions].tolist() == expected.edge_ids
    assert batch.num_sampled_nodes == expected.num_nodes
    assert batch.num_sampled_edges == expected.num_edges
    assert (batch.edge_norm, batch.node_norm) == (None, None)


def draw_case(data: st.DataObject) -> tuple[Tensor, int, Topology, list[int], list[int], SampleKey]:
    edge_index, num_nodes = data.draw(multigraphs())
    seeds = data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=6))
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 2, 3, 5]), min_size=1, max_size=3))
    key = SampleKey(*data.draw(st.tuples(*[st.integers(0, 99)] * 4)))
    return edge_index, num_nodes, Topology.from_edge_index(edge_index, num_nodes, edge_ids=True), seeds, fanouts, key


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_batches_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    """Disjoint trees or one batch, with and without replacement, by a dense and by a hashed table."""
    edge_index, num_nodes, graph, seeds, fanouts, key = draw_case(data)
    disjoint, replace = data.draw(st.booleans()), data.draw(st.booleans())
    incoming = in_edges(edge_index, num_nodes)
    word = fold(key)
    expected = sample_trees(lambda _, v: incoming[v], seeds, fanouts, word, disjoint=disjoint, replace=replace)
    for limit in (0, 2**30):
        sampler = NeighborSampler(graph, fanouts, disjoint=disjoint, replace=replace, dense_limit_bytes=limit)
        for _ in range(2):  # the second batch finds what the first left in the table
            assert_equals_reference(sampler.sample(np.array(seeds), key), graph, expected, disjoint=disjoint)


def test_disjoint_trees_of_a_larger_graph_equal_the_reference() -> None:
    edge_index = random_graph(N, E)
    graph = Topology.from_edge_index(edge_index, N, edge_ids=True)
    seeds = np.random.default_rng(0).integers(0, N, 500)  # every node many times
    batch = NeighborSampler(graph, [4, 3, 2], disjoint=True).sample(seeds, SampleKey(5))
    incoming = in_edges(edge_index, N)
    expected = sample_trees(lambda _, v: incoming[v], seeds.tolist(), [4, 3, 2], fold(SampleKey(5)))
    assert_equals_reference(batch, graph, expected)
    assert batch.batch[batch.row].tolist() == batch.batch[batch.col].tolist()
    pairs = list(zip(batch.batch.tolist(), batch.n_id.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_the_trees_of_one_seed_drawn_twice_differ() -> None:
    batch = NeighborSampler(star(50), [5], disjoint=True).sample(np.array([0, 0]), SampleKey(0))
    first, second = (sorted(batch.n_id[batch.batch == tree].tolist()) for tree in (0, 1))
    assert len(first) == len(second) == 6
    assert first != second


@pytest.mark.parametrize(("degree", "fanout"), [(7, 3), (3, 40), (2_000, 15)])
def test_draws_with_replacement_are_fair_and_independent(degree: int, fanout: int) -> None:
    """Single draws, and two of one node against each other; significance 1e-4."""
    sampler, seeds = NeighborSampler(star(degree), [fanout], replace=True), np.zeros(60_000 // fanout, np.int64)
    batch = sampler.sample(seeds, SampleKey(1))
    assert np.bincount(batch.col).tolist() == [fanout] * len(seeds)
    assert uniform_p_value(np.bincount(batch.positions, minlength=degree)) > SIGNIFICANCE
    if degree < 10:
        drawn = batch.positions.reshape(len(seeds), fanout)
        assert uniform_p_value(np.bincount(drawn[:, 0] * degree + drawn[:, 1], minlength=degree**2)) > SIGNIFICANCE


def test_with_replacement_every_node_with_an_in_edge_has_as_many_as_asked() -> None:
    edge_index = random_graph(N, 90)
    graph = Topology.from_edge_index(edge_index, N)
    batch = NeighborSampler(graph, [4], replace=True).sample(np.arange(N), SampleKey(0))
    degrees = np.bincount(edge_index[1], minlength=N)
    assert np.bincount(batch.col, minlength=N).tolist() == [4 if degree else 0 for degree in degrees]
    everything = NeighborSampler(graph, [-1], replace=True).sample(np.arange(N), SampleKey(0))
    assert np.bincount(everything.col, minlength=N).tolist() == degrees.tolist()


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_induced_subgraphs_hold_all_edges_between_their_nodes(data: st.DataObject) -> None:
    edge_index, num_nodes, graph, seeds, fanouts, key = draw_case(data)
    disjoint, limit = data.draw(st.booleans()), data.draw(st.sampled_from([0, 2**30]))
    options: dict[str, Any] = {"disjoint": disjoint, "dense_limit_bytes": limit}
    drawn = NeighborSampler(graph, fanouts, **options).sample(np.array(seeds), key)
    sampler = NeighborSampler(graph, fanouts, subgraph_type="induced", **options)
    for _ in range(2):
        batch = sampler.sample(np.array(seeds), key)

        assert batch.n_id.tolist() == drawn.n_id.tolist()
        trees = batch.batch.tolist() if disjoint else [0] * batch.num_nodes
        nodes = list(zip(trees, batch.n_id.tolist(), strict=True))
        incoming, edges, edge_ids = in_edges(edge_index, num_nodes), [], []
        for place, (tree, target) in enumerate(nodes):
            for source, number in incoming[target]:
                if (tree, source) in nodes:
                    edges.append((nodes.index((tree, source)), place))  # the first of a seed's places
                    edge_ids.append(number)
        assert edges_of(batch) == edges
        assert graph.edge_ids[batch.positions].tolist() == edge_ids
        assert (batch.num_sampled_nodes, batch.num_sampled_edges) == (None, None)
        assert batch.batch_size == len(seeds)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_bidirectional_subgraphs_add_the_reverses_that_are_missing(data: st.DataObject) -> None:
    _, _, graph, seeds, fanouts, key = draw_case(data)
    disjoint = data.draw(st.booleans())
    drawn = NeighborSampler(graph, fanouts, disjoint=disjoint).sample(np.array(seeds), key)
    sampler = NeighborSampler(graph, fanouts, disjoint=disjoint, subgraph_type="bidirectional")
    batch = sampler.sample(np.array(seeds), key)

    edges, positions = edges_of(drawn), drawn.positions.tolist()
    joined = set(edges)
    for (row, col), position in list(zip(edges, positions, strict=True)):
        if (col, row) not in joined:
            joined.add((col, row))
            edges.append((col, row))
            positions.append(position)
    assert batch.n_id.tolist() == drawn.n_id.tolist()
    assert edges_of(batch) == edges
    assert batch.positions.tolist() == positions
    assert {(col, row) for row, col in edges} == set(edges)
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == (None, None)
    assert batch.batch_size == len(seeds)
    if disjoint:
        assert batch.batch.tolist() == drawn.batch.tolist()


@pytest.mark.parametrize("subgraph_type", ["directional", "bidirectional", "induced"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_hashed_table_numbers_as_a_dense_one(subgraph_type: Any, weighted: bool) -> None:
    """Batches of many sizes, one after another: the hash table grows while it is in use."""
    graph = Topology.from_edge_index(random_graph(2_000, 30_000), 2_000, edge_ids=True)
    weight = np.random.default_rng(0).random(30_000) if weighted else None
    dense, hashed = (
        NeighborSampler(graph, [5, 4], subgraph_type=subgraph_type, edge_weight=weight, dense_limit_bytes=limit)
        for limit in (2**30, 0)
    )
    for i in range(12):
        seeds = np.random.default_rng(i).integers(0, 2_000, 3**i % 997 + 1)
        one, other = dense.sample(seeds, SampleKey(i)), hashed.sample(seeds, SampleKey(i))
        for name in ("n_id", "row", "col", "positions"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
        assert one.num_sampled_nodes == other.num_sampled_nodes


def test_how_many_layers_a_batch_feeds() -> None:
    hops = {kind: NeighborSampler(star(3), [2, 2], subgraph_type=kind).num_hops for kind in ("induced", "directional")}
    assert hops == {"induced": None, "directional": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subgraph_type": "reduced"}, "Unknown subgraph_type 'reduced'. Did you mean 'induced'?"),
        ({"temporal_strategy": "last"}, "`temporal_strategy` is 'last', but there are no times to go by."),
        (
            {"edge_weight": np.ones(3), "node_time": np.ones(4), "disjoint": True},
            "`edge_weight` cannot be combined with `node_time` or `edge_time`, but both were given. HINT: draw by",
        ),
        ({"node_time": np.ones(4)}, "`disjoint` must be True for temporal sampling, but got False"),
        ({"edge_time": np.ones(3)}, "HINT: pass `disjoint=True`."),
        (
            {"edge_time": np.ones(3), "disjoint": True, "subgraph_type": "induced"},
            "`subgraph_type` must not be 'induced' with `edge_time`: it brings in all edges between a tree's nodes",
        ),
        (
            {"edge_time": np.ones(2), "disjoint": True},
            "`edge_time` must hold one number for each of the graph's 3 edges, but its shape is (2,).",
        ),
        (
            {"node_time": torch.ones(3), "disjoint": True},
            "`node_time` must hold 4 integers or floats, but got float32 of shape (3,).",
        ),
        (
            {"node_time": np.ones(4), "edge_time": np.ones(3), "disjoint": True},
            "One of `node_time` and `edge_time` must be given, but got both.",
        ),
        (
            {"node_time": np.ones(4), "disjoint": True, "temporal_strategy": "first"},
            "Unknown temporal_strategy 'first'.",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    edge_index = torch.tensor([[1, 2, 3], [0, 0, 0]])
    graph = Topology.from_edge_index(edge_index, 4, edge_ids=True)
    with pytest.raises(ValueError, match=re.escape(message)):
        NeighborSampler(graph, [2], **options)
