"""The edges of PyG's graphs, in whichever of its forms they are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric import EdgeIndex

from lightning_gnnopt.sampling.checks import first_decrease

if TYPE_CHECKING:
    from torch import Tensor
    from torch_geometric.data import Data


class Compressed(NamedTuple):
    """Edges that are already grouped by destination, not yet checked.

    Attributes:
        indptr: Shape ``(N + 1,)``.
        indices: Sources, shape ``(E,)``.
    """

    indptr: NDArray[np.integer]
    indices: NDArray[np.integer]


class Edges(NamedTuple):
    """A list of edges, not yet checked.

    Attributes:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
    """

    row: NDArray[np.integer]
    col: NDArray[np.integer]


def edges_of_index(edge_index: Tensor, num_nodes: int) -> Edges | Compressed:
    """Take apart an `edge_index`; a PyG `EdgeIndex` that is sorted by destination is compressed already.

    Raises:
        ValueError: If it is not an integer tensor of shape ``(2, E)``, or an `EdgeIndex` is not sorted as it says.
    """
    if isinstance(edge_index, EdgeIndex):
        compressed = _sorted_by_destination(edge_index, num_nodes)
        if compressed is not None:
            return compressed
        edge_index = edge_index.as_tensor()
    ids_COO = edge_index.detach().cpu().numpy()
    if ids_COO.ndim != 2 or len(ids_COO) != 2 or ids_COO.dtype.kind not in "iu":
        raise ValueError(
            "`edge_index` must be an integer tensor of shape (2, E), but got"
            f" {edge_index.dtype} of shape {tuple(edge_index.shape)}."
            " HINT: row 0 holds the edges' sources, row 1 their destinations."
        )
    return Edges(*ids_COO)


def _sorted_by_destination(edge_index: EdgeIndex, num_nodes: int) -> Compressed | None:
    """Use the order and the compressed columns of an `EdgeIndex` if it has them and they fit the graph."""
    ids_COO = edge_index.as_tensor().detach().cpu().numpy()
    col, known = ids_COO[1], edge_index.num_cols
    if not edge_index.is_sorted_by_col or col.size == 0:
        return None
    # PyG believes what it was told, and would write outside its arrays if that were not so.
    place = int(first_decrease(col))
    if place >= 0:
        raise ValueError(
            f"`edge_index` says that it is sorted by destination, but destination {place:,} is {col[place]:,} after"
            f" {col[place - 1]:,}. HINT: `EdgeIndex.validate()` checks what it says; without `sort_order` the edges"
            " are sorted here."
        )
    # Ids outside the graph take the way of every other tensor, which ends in the right error.
    if col[0] < 0 or not col[-1] < (num_nodes if known is None else known) <= num_nodes:
        return None
    (colptr, row), _ = edge_index.get_csc()
    indptr = _numpy(colptr)
    missing = np.full(num_nodes + 1 - len(indptr), indptr[-1])
    return Compressed(np.concatenate([indptr, missing]), _numpy(row))


def edges_of_data(data: Data) -> tuple[Edges | Compressed, int]:
    """Find the edges of a PyG `Data` in its `edge_index` or, without one, its `adj_t`.

    Returns:
        The edges and the number of nodes.

    Raises:
        ValueError: If there is neither, an `adj_t` is not a square sparse matrix of the graph's size, or see
            :func:`edges_of_index`.
    """
    if hasattr(data, "edge_types"):
        raise ValueError(
            "`data` must be a homogeneous graph, but got a `HeteroData`."
            " HINT: `HeteroTopology.from_data(data)` takes it, `data.to_homogeneous()` turns it into one."
        )
    num_nodes = data.num_nodes
    if data.edge_index is not None:
        return edges_of_index(data.edge_index, num_nodes), num_nodes
    adj_t = data.get("adj_t")
    if adj_t is None:
        raise ValueError(
            f"`data` must have an `edge_index` or an `adj_t`, but has {sorted(data.keys())}."
            " HINT: a graph without edges has an `edge_index` of shape (2, 0)."
        )
    sizes = adj_t.sparse_sizes() if hasattr(adj_t, "sparse_sizes") else adj_t.shape
    if tuple(sizes) != (num_nodes, num_nodes):
        raise ValueError(
            f"`adj_t` must have one row and one column for each of the graph's {num_nodes:,} nodes, but its shape is"
            f" {tuple(sizes)}. HINT: set `data.num_nodes` before `ToSparseTensor()`."
        )
    return _edges_of_transposed(adj_t), num_nodes


def _edges_of_transposed(adj_t: Any) -> Edges | Compressed:
    """Take apart a transposed adjacency matrix: its rows are destinations, its columns sources."""
    if hasattr(adj_t, "csr"):  # a `SparseTensor` of torch_sparse, which need not be installed
        rowptr, source, _ = adj_t.csr()
        return Compressed(_numpy(rowptr), _numpy(source))
    if adj_t.layout == torch.sparse_csr:
        return Compressed(_numpy(adj_t.crow_indices()), _numpy(adj_t.col_indices()))
    if adj_t.layout == torch.sparse_csc:
        by_source = _numpy(adj_t.ccol_indices())
        source = np.repeat(np.arange(len(by_source) - 1), np.diff(by_source))
        return Edges(source, _numpy(adj_t.row_indices()))
    if adj_t.layout == torch.sparse_coo:
        target, source = _numpy(adj_t._indices())  # `indices()` would refuse what is not coalesced
        return Edges(source, target)
    raise ValueError(
        f"`adj_t` must be a sparse matrix, but its layout is {adj_t.layout}."
        " HINT: `ToSparseTensor()` makes one, `dense_to_sparse` an `edge_index`."
    )


def _numpy(tensor: Tensor) -> NDArray[np.integer]:
    array: NDArray[np.integer] = tensor.detach().cpu().numpy()
    return array
