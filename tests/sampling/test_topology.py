from __future__ import annotations

import pickle
import re
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from lightning_gnnopt.sampling import Topology, topology

from .reference import in_edges, multigraphs, random_graph


def assert_equals_reference(graph: Topology, edge_index: Tensor, num_nodes: int) -> None:
    expected = in_edges(edge_index, num_nodes)
    assert graph.indptr.tolist() == np.cumsum([0, *map(len, expected)]).tolist()
    assert graph.indices.tolist() == [source for edges in expected for source, _ in edges]
    assert graph.edge_ids is not None
    assert graph.edge_ids.tolist() == [number for edges in expected for _, number in edges]
    assert graph.in_degrees.tolist() == [sum(s != v for s, _ in edges) for v, edges in enumerate(expected)]
    assert (graph.num_nodes, graph.num_edges) == (num_nodes, edge_index.size(1))


@settings(deadline=None)
@given(multigraphs())
def test_edges_stand_by_destination_in_the_given_order(graph: tuple[Tensor, int]) -> None:
    edge_index, num_nodes = graph
    built = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    assert_equals_reference(built, edge_index, num_nodes)
    assert (built.indptr.dtype, built.indices.dtype, built.in_degrees.dtype) == (np.int64, np.int32, np.int32)


def test_a_larger_graph_equals_the_reference() -> None:
    edge_index = random_graph(300, 5_000)
    assert_equals_reference(Topology.from_edge_index(edge_index, 300, edge_ids=True), edge_index, 300)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_and_stride_is_taken(dtype: torch.dtype) -> None:
    edge_index = random_graph(100, 400)
    transposed = edge_index.to(dtype).t().contiguous().t()  # columns lie in memory one after the other
    assert_equals_reference(Topology.from_edge_index(transposed, 100, edge_ids=True), edge_index, 100)


def test_ids_take_32_bits_only_while_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    edge_index = random_graph(10, 20)
    narrow = Topology.from_edge_index(edge_index, 10, edge_ids=True)
    assert narrow.indices.dtype == narrow.edge_ids.dtype == np.int32

    monkeypatch.setattr(topology, "_INT32_MAX", 10)  # enough for the nodes, not for the edges
    mixed = Topology.from_edge_index(edge_index, 10, edge_ids=True)
    assert (mixed.indices.dtype, mixed.edge_ids.dtype) == (np.int32, np.int64)

    monkeypatch.setattr(topology, "_INT32_MAX", 9)
    wide = Topology.from_edge_index(edge_index, 10, edge_ids=True)
    assert (wide.indices.dtype, wide.edge_ids.dtype) == (np.int64, np.int64)
    for built in (narrow, mixed, wide):
        assert_equals_reference(built, edge_index, 10)
    # 11 offsets of 8 bytes; 20 sources and 20 edge numbers of 4 or 8
    assert [built.nbytes for built in (narrow, mixed, wide)] == [88 + 160, 88 + 240, 88 + 320]


def test_edge_ids_are_kept_on_request_only() -> None:
    graph = Topology.from_edge_index(random_graph(10, 20), 10)
    assert graph.edge_ids is None
    assert graph.nbytes == 88 + 80


def test_a_graph_without_nodes_or_edges() -> None:
    none = torch.empty(2, 0, dtype=torch.long)
    assert Topology.from_edge_index(none, 0).indptr.tolist() == [0]
    isolated = Topology.from_edge_index(none, 3, edge_ids=True)
    assert_equals_reference(isolated, none, 3)


def test_repr_counts() -> None:
    assert repr(Topology.from_edge_index(random_graph(10, 2_000), 10)) == "Topology(num_nodes=10, num_edges=2,000)"


def test_it_travels_to_another_process() -> None:
    edge_index = random_graph(10, 20)
    graph = Topology.from_edge_index(edge_index, 10, edge_ids=True)
    assert_equals_reference(pickle.loads(pickle.dumps(graph)), edge_index, 10)


@pytest.mark.parametrize(
    ("edges", "found"),
    [([[0, 1], [1, 3]], "3"), ([[3, 1], [1, 0]], "3"), ([[0, -1], [1, 1]], "-1"), ([[0, -2], [-5, 1_000]], "-5")],
)
def test_ids_outside_the_graph_are_refused(edges: list[list[int]], found: str) -> None:
    message = (
        f"`edge_index` must hold node ids from 0 to 2 (3 nodes), but found {found}."
        " HINT: set `data.num_nodes`, or give every node a row in `x`, or drop the edges that point outside the graph."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Topology.from_edge_index(torch.tensor(edges), num_nodes=3)


@pytest.mark.parametrize(
    ("edge_index", "found"),
    [
        (torch.zeros(2, 4), "torch.float32 of shape (2, 4)"),
        (torch.zeros(2, 4, dtype=torch.bool), "torch.bool of shape (2, 4)"),
        (torch.zeros(2, 4, dtype=torch.complex64), "torch.complex64 of shape (2, 4)"),
        (torch.zeros(4, 2, dtype=torch.long), "torch.int64 of shape (4, 2)"),
        (torch.zeros(2, dtype=torch.long), "torch.int64 of shape (2,)"),
    ],
)
def test_what_is_no_edge_index_is_refused(edge_index: Tensor, found: str) -> None:
    message = f"`edge_index` must be an integer tensor of shape (2, E), but got {found}. HINT: row 0 holds the edges'"
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology.from_edge_index(edge_index, num_nodes=5)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("edge_ids", [False, True])
def test_sorting_takes_no_memory_beside_the_result(dtype: torch.dtype, edge_ids: bool) -> None:
    edge_index = random_graph(1_000, 200_000).to(dtype)
    Topology.from_edge_index(edge_index[:, :10], 1_000, edge_ids=edge_ids)  # compiling takes memory too
    tracemalloc.start()
    graph = Topology.from_edge_index(edge_index, 1_000, edge_ids=edge_ids)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert graph.nbytes == 8 * 1_001 + 4 * 200_000 * (2 if edge_ids else 1)
    assert graph.nbytes <= peak_bytes < graph.nbytes + 20_000
    assert all(array.flags.owndata for array in graph.arrays.values())
