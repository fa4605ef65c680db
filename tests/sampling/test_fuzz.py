"""Random graphs through the public samplers, held against plain Python; `make bounds` checks every index."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.induced import induced_edges
from lightning_gnnopt.sampling.node_table import NodeTable

from .reference import in_edges, random_graph

Edge = tuple[int, int]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Edge], Topology]:
    """Self loops, multi-edges, isolated nodes; up to 700 edges, so that kernels look ahead as far as they ever do."""
    num_nodes = draw(st.integers(1, 60))
    num_edges = draw(st.sampled_from([0, 1, 31, 32, 33, 129, 700]))
    edge_index = random_graph(num_nodes, num_edges, seed=draw(st.integers(0, 2**32)))
    if draw(st.booleans()):  # a hub
        edge_index[1, : num_edges // 2] = num_nodes - 1
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    if draw(st.booleans()):
        graph = Topology(graph.indptr, graph.indices.astype(np.int64), graph.edge_ids)
    return [(source, target) for source, target in edge_index.t().tolist()], graph


def seeds_of(data: st.DataObject, graph: Topology) -> list[int]:
    return data.draw(st.lists(st.integers(0, graph.num_nodes - 1), min_size=1, max_size=40))


def global_edges(batch: Subgraph, n_id: list[int]) -> list[Edge]:
    return [(n_id[row], n_id[col]) for row, col in zip(batch.row.tolist(), batch.col.tolist(), strict=True)]


@settings(deadline=None, max_examples=60)
@given(graphs())
def test_topologies_equal_the_list_of_edges(drawn: tuple[list[Edge], Topology]) -> None:
    edges, graph = drawn
    incoming: list[list[Edge]] = [[] for _ in range(graph.num_nodes)]
    for number, (source, target) in enumerate(edges):
        incoming[target].append((source, number))
    assert graph.indptr.tolist() == np.cumsum([0, *map(len, incoming)]).tolist()
    assert graph.indices.tolist() == [source for column in incoming for source, _ in column]
    assert graph.edge_ids.tolist() == [number for column in incoming for _, number in column]
    assert graph.in_degrees.tolist() == [sum(s != v for s, _ in column) for v, column in enumerate(incoming)]


@settings(deadline=None, max_examples=150)
@given(st.data(), graphs(), st.booleans(), st.booleans(), st.booleans())
def test_hops_of_any_neighbor_sampler(
    data: st.DataObject, drawn: tuple[list[Edge], Topology], replace: bool, disjoint: bool, hashed: bool
) -> None:
    edges, graph = drawn
    degree = Counter(target for _, target in edges)
    seeds = seeds_of(data, graph)
    fanouts = data.draw(st.lists(st.sampled_from([-1, 1, 3, 40]), min_size=1, max_size=3))
    sampler = NeighborSampler(
        graph, fanouts, replace=replace, disjoint=disjoint, dense_limit_bytes=0 if hashed else 2**30
    )
    # The second batch finds the tables that the first one left.
    for key in (SampleKey(1), SampleKey(2)):
        batch = sampler.sample(np.array(seeds), key)
        n_id, trees = batch.n_id.tolist(), [0] * batch.num_nodes if batch.batch is None else batch.batch.tolist()
        numbers = graph.edge_ids[batch.positions].tolist()
        row, col = batch.row.tolist(), batch.col.tolist()

        assert n_id[: len(seeds)] == seeds
        assert [edges[number] for number in numbers] == global_edges(batch, n_id)
        assert [trees[u] for u in row] == [trees[v] for v in col]
        # Each node (of a tree) once; only seeds can stand twice, and an edge leads from the first place.
        places: dict[Edge, int] = {}
        for place, named in enumerate(zip(trees, n_id, strict=True)):
            places.setdefault(named, place)
        assert len(places) == len(n_id) - (0 if disjoint else len(seeds) - len(set(seeds)))
        assert all(places[trees[u], n_id[u]] == u for u in row)
        if disjoint:
            assert trees[: len(seeds)] == list(range(len(seeds)))
        # Each node of each hop but the last has as many in-edges as it must; only `replace` may repeat one.
        hop_of = np.repeat(np.arange(len(fanouts) + 1), batch.num_sampled_nodes).tolist()
        taken = Counter(col)
        for place, (node, hop) in enumerate(zip(n_id, hop_of, strict=True)):
            fanout = fanouts[hop] if hop < len(fanouts) else 0
            few = fanout == -1 or (degree[node] < fanout and not replace) or degree[node] == 0
            assert taken[place] == (degree[node] if few else fanout)
        if not replace:
            assert len(set(zip(col, numbers, strict=True))) == len(numbers)
        assert sum(batch.num_sampled_edges) == len(numbers)
        assert [hop_of[v] for v in col] == np.repeat(np.arange(len(fanouts)), batch.num_sampled_edges).tolist()


@settings(deadline=None, max_examples=100)
@given(st.data(), graphs(), st.booleans(), st.booleans())
def test_edges_of_any_induced_batch(
    data: st.DataObject, drawn: tuple[list[Edge], Topology], replace: bool, disjoint: bool
) -> None:
    edges, graph = drawn
    seeds, key = seeds_of(data, graph), SampleKey(data.draw(st.integers(0, 9)))
    options: dict[str, Any] = {"replace": replace, "disjoint": disjoint}
    plain = NeighborSampler(graph, [2, 3], **options).sample(np.array(seeds), key)
    batch = NeighborSampler(graph, [2, 3], subgraph_type="induced", **options).sample(np.array(seeds), key)

    n_id = batch.n_id.tolist()
    trees = [0] * len(n_id) if batch.batch is None else batch.batch.tolist()
    assert n_id == plain.n_id.tolist()
    assert (batch.num_sampled_nodes, batch.num_sampled_edges, batch.batch_size) == (None, None, len(seeds))
    first: dict[Edge, int] = {}
    for place, named in enumerate(zip(trees, n_id, strict=True)):
        first.setdefault(named, place)
    incoming = [[(s, e) for e, (s, t) in enumerate(edges) if t == node] for node in range(graph.num_nodes)]
    expected = [
        (first[tree, source], place, number)
        for place, (tree, node) in enumerate(zip(trees, n_id, strict=True))
        for source, number in incoming[node]
        if (tree, source) in first
    ]
    numbers = graph.edge_ids[batch.positions].tolist()
    assert list(zip(batch.row.tolist(), batch.col.tolist(), numbers, strict=True)) == expected


@settings(deadline=None, max_examples=60)
@given(st.data(), graphs(), st.booleans(), st.booleans())
def test_edges_of_any_bidirectional_batch(
    data: st.DataObject, drawn: tuple[list[Edge], Topology], replace: bool, disjoint: bool
) -> None:
    _, graph = drawn
    seeds, key = seeds_of(data, graph), SampleKey(data.draw(st.integers(0, 9)))
    options: dict[str, Any] = {"replace": replace, "disjoint": disjoint}
    plain = NeighborSampler(graph, [2, 3], **options).sample(np.array(seeds), key)
    batch = NeighborSampler(graph, [2, 3], subgraph_type="bidirectional", **options).sample(np.array(seeds), key)

    joined = list(zip(plain.row.tolist(), plain.col.tolist(), plain.positions.tolist(), strict=True))
    known = {(u, v) for u, v, _ in joined}
    first = {(u, v): place for place, (u, v, _) in reversed(list(enumerate(joined)))}
    missing = sorted(place for (u, v), place in first.items() if (v, u) not in known)
    expected = joined + [(joined[place][1], joined[place][0], joined[place][2]) for place in missing]
    assert list(zip(batch.row.tolist(), batch.col.tolist(), batch.positions.tolist(), strict=True)) == expected
    assert batch.n_id.tolist() == plain.n_id.tolist()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.booleans(), st.integers(1, 3_000))
def test_tables_number_as_a_dictionary_does(data: st.DataObject, dense: bool, num_keys: int) -> None:
    table = NodeTable(num_keys, dense_limit_bytes=2**30 if dense else 0)
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for _ in range(data.draw(st.integers(1, 4))):
        seeds = generator.integers(num_keys, size=data.draw(st.integers(1, 60)))
        table.start(seeds)
        known: dict[int, int] = {}
        for place, node in enumerate(seeds.tolist()):
            known.setdefault(node, place)
        size = len(seeds)
        for count in data.draw(st.lists(st.sampled_from([0, 1, 33, 900]), max_size=3)):
            nodes = generator.integers(num_keys, size=count)
            new, locals_ = table.number(nodes)
            unknown = [node for node in dict.fromkeys(nodes.tolist()) if node not in known]
            known.update({node: size + place for place, node in enumerate(unknown)})
            size += len(unknown)
            assert new.tolist() == unknown
            assert locals_.tolist() == [known[node] for node in nodes.tolist()]
            assert table.size == size
        everything = np.arange(num_keys)
        assert table.find(everything).tolist() == [known.get(node, -1) for node in everything.tolist()]


@settings(deadline=None, max_examples=60)
@given(st.data(), graphs(), st.booleans())
def test_induced_edges_of_any_set_of_nodes(
    data: st.DataObject, drawn: tuple[list[Edge], Topology], dense: bool
) -> None:
    edges, graph = drawn
    nodes = data.draw(st.lists(st.integers(0, graph.num_nodes - 1), max_size=40, unique=True))
    n_id = np.array(nodes, graph.indices.dtype)
    table = NodeTable(graph.num_nodes, dense_limit_bytes=2**30 if dense else 0)
    table.start(n_id)
    row, col, positions = induced_edges(graph, table, n_id)
    found = sorted(graph.edge_ids[positions].tolist())
    assert found == [number for number, (source, target) in enumerate(edges) if source in nodes and target in nodes]
    assert [(nodes[u], nodes[v]) for u, v in zip(row.tolist(), col.tolist(), strict=True)] == [
        edges[number] for number in graph.edge_ids[positions].tolist()
    ]


def test_the_graphs_are_what_they_say() -> None:
    """A hub of many in-edges, beyond the furthest look ahead; self loops and multi-edges."""
    edge_index = random_graph(5, 700, seed=1)
    incoming = in_edges(edge_index, 5)
    assert min(len(column) for column in incoming) > 100
    assert any(source == v for v, column in enumerate(incoming) for source, _ in column)
