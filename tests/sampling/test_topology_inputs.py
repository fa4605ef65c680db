"""Graphs in every form that PyG keeps them in become the same topology, or are refused."""

from __future__ import annotations

import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.transforms import ToSparseTensor

from lightning_gnnopt.sampling import Topology

from .reference import in_edges, multigraphs, random_graph


@pytest.fixture(autouse=True)
def _no_beta_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        yield


def assert_same(a: Topology, b: Topology) -> None:
    for name in ("indptr", "indices", "edge_ids"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype, name
            assert left.tolist() == right.tolist(), name


def sources_of(graph: Topology) -> list[list[int]]:
    return [graph.indices[start:end].tolist() for start, end in zip(graph.indptr[:-1], graph.indptr[1:], strict=True)]


class FakeSparseTensor:
    """What is used of torch_sparse's `SparseTensor`, which does not install everywhere."""

    def __init__(self, rowptr: list[int], col: list[int], num_nodes: int) -> None:
        self.parts, self.num_nodes = (torch.tensor(rowptr), torch.tensor(col), None), num_nodes

    def csr(self) -> tuple[Tensor, Tensor, None]:
        return self.parts

    def sparse_sizes(self) -> tuple[int, int]:
        return self.num_nodes, self.num_nodes


@settings(deadline=None)
@given(multigraphs(), st.booleans(), st.booleans())
def test_an_edge_index_sorted_by_destination_is_the_same_graph(
    graph: tuple[Tensor, int], keep: bool, cached: bool
) -> None:
    edge_index, num_nodes = graph
    ordered = edge_index[:, edge_index[1].argsort(stable=True)].contiguous()
    known = EdgeIndex(ordered, sort_order="col", sparse_size=(num_nodes, num_nodes) if cached else None)
    if cached and known.numel():
        known.get_indptr()
    expected = Topology.from_edge_index(ordered, num_nodes, edge_ids=keep)
    assert_same(Topology.from_edge_index(known, num_nodes, edge_ids=keep), expected)


@pytest.mark.parametrize("sort_order", [None, "row"])
@pytest.mark.parametrize("is_undirected", [False, True])
def test_any_other_edge_index_object_is_sorted(sort_order: str | None, is_undirected: bool) -> None:
    edges = random_graph(30, 100)
    edges = torch.cat([edges, edges.flip(0)], dim=1)
    edges = edges[:, edges[0].argsort()].contiguous()
    known = EdgeIndex(edges, sort_order=sort_order, is_undirected=is_undirected)
    known.fill_cache_()
    expected = Topology.from_edge_index(edges, 32, edge_ids=True)
    assert_same(Topology.from_edge_index(known, 32, edge_ids=True), expected)


def test_the_columns_of_an_adj_t_are_copied() -> None:
    adj_t = FakeSparseTensor([0, 1, 2], [1, 0], 2)
    graph = Topology.from_data(Data(adj_t=adj_t, num_nodes=2))
    adj_t.parts[0].zero_()
    assert graph.indptr.tolist() == [0, 1, 2]


def test_the_columns_of_an_edge_index_are_copied() -> None:
    known = EdgeIndex([[0, 2, 1], [0, 1, 1]], sort_order="col", sparse_size=(3, 3))
    graph = Topology.from_edge_index(known, 3)
    known.get_indptr().zero_()
    assert graph.indptr.tolist() == [0, 1, 3, 3]


def test_from_data_reads_the_edge_index_first() -> None:
    edge_index = random_graph(20, 60)
    data = Data(edge_index=edge_index, num_nodes=20)
    expected = Topology.from_edge_index(edge_index, 20, edge_ids=True)
    assert_same(Topology.from_data(data, edge_ids=True), expected)
    both = ToSparseTensor(remove_edge_index=False)(data.clone())
    assert_same(Topology.from_data(both), Topology.from_edge_index(both.edge_index, 20))
    assert Topology.from_data(data).edge_ids is None


@settings(deadline=None)
@given(multigraphs(), st.sampled_from([torch.sparse_csr, torch.sparse_coo, torch.sparse_csc, "torch_sparse"]))
def test_every_adj_t_is_the_same_graph(graph: tuple[Tensor, int], layout: Any) -> None:
    """Simple graphs: a sparse matrix has no room for two edges between the same nodes."""
    edge_index, num_nodes = graph
    edge_index = torch.unique(edge_index, dim=1)
    expected = [sorted(source for source, _ in edges) for edges in in_edges(edge_index, num_nodes)]
    if layout == "torch_sparse":
        indptr = np.cumsum([0, *map(len, expected)]).tolist()
        adj_t: Any = FakeSparseTensor(indptr, [source for sources in expected for source in sources], num_nodes)
    else:
        values = torch.arange(edge_index.size(1), dtype=torch.float) + 1
        dense = torch.sparse_coo_tensor(edge_index.flip(0), values, (num_nodes, num_nodes)).coalesce()
        adj_t = dense if layout == torch.sparse_coo else dense.to_sparse(layout=layout)
    built = Topology.from_data(Data(adj_t=adj_t, num_nodes=num_nodes), edge_ids=True)

    assert sources_of(built) == expected
    if layout != "torch_sparse":
        values = adj_t.values()[torch.from_numpy(built.edge_ids.astype(np.int64))] - 1
        numbers = values.long()
        assert edge_index[0, numbers].tolist() == built.indices.tolist()
        assert edge_index[1, numbers].tolist() == np.repeat(np.arange(num_nodes), np.diff(built.indptr)).tolist()


@pytest.mark.parametrize("layout", [None, torch.sparse_coo])
def test_from_data_takes_what_to_sparse_tensor_makes(layout: Any) -> None:
    edge_index = torch.unique(random_graph(20, 60), dim=1)
    data = ToSparseTensor(layout=layout)(Data(edge_index=edge_index, num_nodes=20))
    assert "edge_index" not in data
    ordered = edge_index[:, edge_index[1].argsort(stable=True)]
    assert_same(Topology.from_data(data, edge_ids=True), Topology.from_edge_index(ordered, 20, edge_ids=True))


@settings(deadline=None)
@given(multigraphs(), st.sampled_from([np.array, list, torch.tensor, np.uint8, np.int32, np.int64]))
def test_from_csc_takes_its_own_columns_back(graph: tuple[Tensor, int], as_type: Any) -> None:
    edge_index, num_nodes = graph
    built = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    parts = [built.indptr.tolist(), built.indices.tolist(), built.edge_ids.tolist()]
    if as_type is torch.tensor:
        parts = [torch.tensor(part, dtype=torch.long) for part in parts]
    elif as_type is np.array:
        parts = [np.array(part, np.int64)[::1] for part in parts]
    elif as_type is not list:
        parts = [np.array(part).astype(as_type) for part in parts]
    assert_same(Topology.from_csc(*parts), built)


def test_from_csc_copies_no_array_of_the_right_type() -> None:
    built = Topology.from_edge_index(random_graph(10, 20), 10, edge_ids=True)
    again = Topology.from_csc(built.indptr, built.indices, built.edge_ids)
    assert all(again.arrays[name] is built.arrays[name] for name in built.arrays)
    strided = Topology.from_csc(np.repeat(built.indptr, 2)[::2], built.indices)
    assert strided.indptr.flags.c_contiguous
    assert strided.edge_ids is None


@pytest.mark.parametrize(
    ("indptr", "indices", "edge_ids", "message"),
    [
        ([], [0], None, "`indptr` must go from 0 to the number of edges, 1, but it is empty."),
        ([1, 1], [0], None, "`indptr` must go from 0 to the number of edges, 1, but goes from 1 to 1."),
        ([0, 2], [0], None, "`indptr` must go from 0 to the number of edges, 1, but goes from 0 to 2. HINT: `indices["),
        ([0, 2, 1, 2], [0, 1], None, "`indptr` must never decrease, but entry 2 is 1 after 2. HINT: it is the running"),
        ([0, 1, 2], [0, 2], None, "`indices` must hold node ids from 0 to 1 (2 nodes), but entry 1 is 2. HINT: `ind"),
        ([0, 1, 2], [-1, 0], None, "`indices` must hold node ids from 0 to 1 (2 nodes), but entry 0 is -1."),
        ([0], [], [1], "`edge_ids` must hold one number from 0 on for each of the 0 edges, but got 1."),
        ([0, 2], [0, 0], [3, -4], "for each of the 2 edges, but got -4 among them. HINT: they are the edges' columns"),
        ([0.0, 1.0], [0], None, "`indptr` must be a one-dimensional array of integers, but got float64 of shape (2,)."),
        ([0, 1], [True], None, "`indices` must be a one-dimensional array of integers, but got bool of shape (1,)."),
        ([0, 1], [[0]], None, "but got int64 of shape (1, 1). HINT: `from_edge_index` takes a list of edges."),
        ([0, 1], [0], [0.5], "`edge_ids` must be a one-dimensional array of integers, but got float64 of shape (1,)."),
    ],
)
def test_columns_that_a_kernel_cannot_trust_are_refused(indptr: Any, indices: Any, edge_ids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology.from_csc(indptr, indices, edge_ids)


def test_an_edge_index_that_is_not_sorted_as_it_says_is_refused() -> None:
    lying = EdgeIndex([[0, 0, 0, 0], [0, 2, 99, 1]], sort_order="col")
    message = "`edge_index` says that it is sorted by destination, but destination 3 is 1 after 99. HINT: `EdgeIndex"
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology.from_edge_index(lying, 3)


@pytest.mark.parametrize(
    ("edges", "size", "found"),
    [
        ([[0, 0], [0, 3]], None, "3"),
        ([[0, 0], [0, 5]], (2, 2), "5"),
        ([[0, 0], [-1, 1]], None, "-1"),
    ],
)
def test_a_sorted_edge_index_outside_the_graph_is_refused(edges: Any, size: Any, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"from 0 to 2 (3 nodes), but found {found}. HINT: set")):
        Topology.from_edge_index(EdgeIndex(edges, sort_order="col", sparse_size=size), 3)


@pytest.mark.parametrize("source", [9, -1])
def test_sources_of_a_sorted_edge_index_are_checked_too(source: int) -> None:
    with pytest.raises(ValueError, match=re.escape(f"(3 nodes), but entry 1 is {source}.")):
        Topology.from_edge_index(EdgeIndex([[0, source], [0, 1]], sort_order="col"), 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(x=torch.zeros(3, 1)), "`data` must have an `edge_index` or an `adj_t`, but has ['x']. HINT: a graph"),
        (HeteroData(), "`data` must be a homogeneous graph, but got a `HeteroData`. HINT: `HeteroTopology.from_data("),
        (
            Data(adj_t=torch.zeros(3, 3), num_nodes=3),
            "`adj_t` must be a sparse matrix, but its layout is torch.strided",
        ),
        (
            Data(adj_t=torch.zeros(3, 3).to_sparse(), num_nodes=4),
            "`adj_t` must have one row and one column for each of the graph's 4 nodes, but its shape is (3, 3). HINT:",
        ),
        (
            Data(adj_t=FakeSparseTensor([0, 1, 1], [2], 2), num_nodes=2),
            "`indices` must hold node ids from 0 to 1 (2 nodes), but entry 0 is 2.",
        ),
        (
            Data(edge_index=torch.tensor([[0], [3]]), num_nodes=3),
            "`edge_index` must hold node ids from 0 to 2 (3 nodes)",
        ),
    ],
)
def test_data_without_a_usable_graph_is_refused(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Topology.from_data(data)


@pytest.mark.parametrize("size", [(2, 2), (9, 9), (3, 3), None])
def test_sizes_that_do_not_fit_the_graph_are_no_matter_while_the_ids_do(size: Any) -> None:
    graph = Topology.from_edge_index(EdgeIndex([[1, 0], [0, 2]], sort_order="col", sparse_size=size), 3)
    assert (graph.indptr.tolist(), graph.indices.tolist()) == ([0, 1, 1, 2], [1, 0])
