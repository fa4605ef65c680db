"""The edges of a graph between given nodes, and the reverses of sampled edges."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.node_table import NodeTable, slot_of
from lightning_gnnopt.sampling.topology import Topology

_NO_TREES = np.empty(0, np.int32)


def induced_edges(
    topology: Topology, table: NodeTable, n_id: NDArray[np.integer], batch: NDArray[np.int32] | None = None
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.integer]]:
    """Find all edges of the graph between a batch's nodes.

    Args:
        topology: The graph.
        table: Has numbered the nodes, or for disjoint trees the keys ``tree * num_nodes + node``.
        n_id: Global ids of the nodes in the order of their local ids, shape ``(N,)``; a node that stands twice gets
            its in-edges at both places, and as a source it is the place that `table` knows.
        batch: The tree each node stands in, shape ``(N,)``; None if the trees are not disjoint.

    Returns:
        Local sources and local destinations, int32, and positions in the CSC order, each of shape ``(E,)``, grouped by
        destination in the order of `n_id`.
    """
    trees = _NO_TREES if batch is None else batch
    arguments = (topology.indptr, topology.indices, n_id, trees, topology.num_nodes, *table.arrays)
    num_edges = int(_count_induced(*arguments))
    row, col = np.empty(num_edges, np.int32), np.empty(num_edges, np.int32)
    positions = np.empty(num_edges, topology.position_dtype)
    _fill_induced(*arguments, row, col, positions)
    return row, col, positions


@njit(nogil=True, cache=True)
def _count_induced(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    n_id: NDArray[np.integer],
    trees: NDArray[np.int32],
    num_nodes: int,
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
) -> int:
    count = 0
    for i in range(len(n_id)):
        offset = np.int64(trees[i]) * num_nodes if len(trees) > 0 else 0
        for p in range(indptr[n_id[i]], indptr[n_id[i] + 1]):
            slot = slot_of(keys, entries, base, offset + np.int64(indices[p]))
            count += 1 if np.int64(entries[slot]) >= base else 0
    return count


@njit(nogil=True, cache=True)
def _fill_induced(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    n_id: NDArray[np.integer],
    trees: NDArray[np.int32],
    num_nodes: int,
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    col: NDArray[np.int32],
    positions: NDArray[np.integer],
) -> None:
    at = 0
    for i in range(len(n_id)):
        offset = np.int64(trees[i]) * num_nodes if len(trees) > 0 else 0
        for p in range(indptr[n_id[i]], indptr[n_id[i] + 1]):
            entry = np.int64(entries[slot_of(keys, entries, base, offset + np.int64(indices[p]))])
            if entry >= base:
                row[at] = entry - base
                col[at] = i
                positions[at] = p
                at += 1


def missing_reverses(row: NDArray[np.int32], col: NDArray[np.int32], num_nodes: int) -> NDArray[np.int64]:
    """Find edges to reverse so that with every pair of nodes joined one way they are joined both ways.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        num_nodes: Number of local ids.

    Returns:
        Places of edges, ascending: for each pair ``(u, v)`` that is joined but ``(v, u)`` is not, its first edge.
    """
    pairs, first = np.unique(row.astype(np.int64) * num_nodes + col, return_index=True)
    reverses = (pairs % num_nodes) * num_nodes + pairs // num_nodes
    return np.sort(first[~np.isin(reverses, pairs)])
