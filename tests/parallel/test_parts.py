"""Cutting a graph, against sets and dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gnnopt.parallel.parts import cut_graph


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    num_nodes, num_parts = draw(st.integers(1, 12)), draw(st.integers(1, 4))
    node = st.integers(0, num_nodes - 1)
    edges = draw(st.lists(st.tuples(node, node), max_size=40))
    owner = draw(st.lists(st.integers(0, num_parts - 1), min_size=num_nodes, max_size=num_nodes))
    return np.array(edges, np.int64).reshape(-1, 2).T, np.array(owner), num_parts


@given(graphs())
def test_each_part_has_the_in_edges_of_its_nodes_and_what_they_need(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    edge_index, owner, num_parts = case
    parts = list(cut_graph(edge_index, owner, num_parts))
    assert [part.rank for part in parts] == list(range(num_parts))
    edges = list(zip(*edge_index.tolist(), strict=True))
    for part in parts:
        inner = [v for v in range(len(owner)) if owner[v] == part.rank]
        assert part.inner.tolist() == inner
        own_edges = [(i, edge) for i, edge in enumerate(edges) if owner[edge[1]] == part.rank]
        halo = sorted({u for _, (u, _) in own_edges if owner[u] != part.rank}, key=lambda u: (owner[u], u))
        assert part.halo.tolist() == halo
        names = inner + halo
        assert part.edge_id.tolist() == [i for i, _ in own_edges]
        assert [(names[u], names[v]) for u, v in part.edge_index.T.tolist()] == [edge for _, edge in own_edges]
        assert part.recv_counts == tuple(sum(owner[u] == q for u in halo) for q in range(num_parts))
        assert part.in_degree.tolist() == [sum(v == w for _, w in edges) for v in names]
        assert part.out_degree.tolist() == [sum(v == u for u, _ in edges) for v in names]
    for part in parts:  # what one sends another is what the other expects, in that order
        sent = np.split(part.inner[part.send_index], np.cumsum(part.send_counts)[:-1])
        for other in parts:
            received = np.split(other.halo, np.cumsum(other.recv_counts)[:-1])
            assert sent[other.rank].tolist() == received[part.rank].tolist()


@pytest.mark.parametrize(
    ("edges", "owner", "message"),
    [
        ([[0], [1]], [0, 2], "`owner` goes from 0 to 2"),
        ([[0], [1]], [-1, 0], "`owner` goes from -1 to 0"),
        ([[0], [2]], [0, 1], "`edge_index` must name nodes from 0 to 1, but goes from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(edges: list[list[int]], owner: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(cut_graph(np.array(edges), np.array(owner), 2))
