"""The edges of a graph between given nodes, and the reverses of sampled edges."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.node_table import NodeTable, prefetch_slot, slot_of
from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


def induced_edges(
    topology: Topology, table: NodeTable, n_id: NDArray[np.integer]
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.integer]]:
    """Find all edges of the graph between a batch's nodes.

    Args:
        topology: The graph.
        table: Has numbered the nodes.
        n_id: Global ids of the nodes in the order of their local ids, shape ``(N,)``; a node that stands twice gets
            its in-edges at both places, and as a source it is the place that `table` knows.

    Returns:
        Local sources and local destinations, int32, and positions in the CSC order, each of shape ``(E,)``, grouped by
        destination in the order of `n_id`.
    """
    arguments = (topology.indptr, topology.indices, n_id, *table.arrays)
    none = np.empty(0, np.int32)
    num_edges = int(edges_between(*arguments, none, none, np.empty(0, topology.position_dtype)))
    row, col = np.empty(num_edges, np.int32), np.empty(num_edges, np.int32)
    positions = np.empty(num_edges, topology.position_dtype)
    edges_between(*arguments, row, col, positions)
    return row, col, positions


@njit(nogil=True, cache=True)
def edges_between(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    n_id: NDArray[np.integer],
    keys: NDArray[np.int64],
    entries: NDArray[np.uint32],
    base: int,
    row: NDArray[np.int32],
    col: NDArray[np.int32],
    positions: NDArray[np.integer],
) -> int:
    """Write the edges between numbered nodes; return how many there are. With empty outputs they are only counted."""
    n, at = len(n_id), 0
    for i in range(n):
        if i + 8 < n:
            prefetch(indptr, n_id[i + 8])
        if i + 4 < n:
            prefetch(indices, indptr[n_id[i + 4]])
        end = indptr[n_id[i] + 1]
        for p in range(indptr[n_id[i]], end):
            if p + AHEAD < end:
                prefetch_slot(keys, entries, np.int64(indices[p + AHEAD]))
            entry = np.int64(entries[slot_of(keys, entries, base, np.int64(indices[p]))])
            if entry >= base:
                if len(row) > 0:
                    row[at], col[at], positions[at] = entry - base, i, p
                at += 1
    return at


def tree_edges(
    topology: Topology, n_id: NDArray[np.integer], batch: NDArray[np.int32], num_trees: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.integer]]:
    """Find all edges of the graph within each of a batch's disjoint trees.

    A tree's nodes are looked up in a list sorted by id; where a node's in-edges stand by source and are many more than
    the tree's nodes, these are looked up among them instead of going through all.

    Args:
        topology: The graph.
        n_id: Global ids of the nodes, shape ``(N,)``; each is in a tree once.
        batch: The tree each node stands in, shape ``(N,)``.
        num_trees: Number of trees.

    Returns:
        As of :func:`induced_edges`.
    """
    order = np.argsort(batch.astype(np.int64) * topology.num_nodes + n_id)
    starts = np.zeros(num_trees + 1, np.int64)  # the nodes of tree t are ids[starts[t]:starts[t + 1]]
    np.cumsum(np.bincount(batch, minlength=num_trees), out=starts[1:])
    rows_sorted = topology.rows_sorted
    arguments = (topology.indptr, topology.indices, rows_sorted, n_id, batch, n_id[order], starts, order)
    none = np.empty(0, np.int32)
    num_edges = int(_edges_within(*arguments, none, none, np.empty(0, topology.position_dtype)))
    row, col = np.empty(num_edges, np.int32), np.empty(num_edges, np.int32)
    positions = np.empty(num_edges, topology.position_dtype)
    _edges_within(*arguments, row, col, positions)
    return row, col, positions


@njit(nogil=True, cache=True)
def _place_of(ids: NDArray[np.integer], low: int, high: int, value: np.int64) -> int:
    """Find the first place of ``low .. high - 1`` whose entry is not below `value`, `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        if ids[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def _edges_within(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    by_source: bool,
    n_id: NDArray[np.integer],
    batch: NDArray[np.int32],
    ids: NDArray[np.integer],
    starts: NDArray[np.int64],
    order: NDArray[np.int64],
    row: NDArray[np.int32],
    col: NDArray[np.int32],
    positions: NDArray[np.integer],
) -> int:
    """Write the edges within each tree, in the order of their destinations' local ids; return how many there are.

    With empty outputs they are only counted.
    """
    at = 0
    for i in range(len(n_id)):
        first, end = indptr[n_id[i]], indptr[n_id[i] + 1]
        low, high = starts[batch[i]], starts[batch[i] + 1]
        if by_source and end - first > 8 * (high - low):
            # Look each of the tree's nodes up among the in-edges, from where the last one was found.
            p = first
            for k in range(low, high):
                p = _place_of(indices, p, end, np.int64(ids[k]))
                while p < end and indices[p] == ids[k]:
                    if len(row) > 0:
                        row[at], col[at], positions[at] = order[k], i, p
                    at += 1
                    p += 1
            continue
        for p in range(first, end):
            source = np.int64(indices[p])
            k = _place_of(ids, low, high, source)
            if k < high and ids[k] == source:
                if len(row) > 0:
                    row[at], col[at], positions[at] = order[k], i, p
                at += 1
    return at


def with_reverses(subgraph: Subgraph) -> Subgraph:
    """Join every pair of nodes that the batch's edges join one way both ways.

    Args:
        subgraph: The batch.

    Returns:
        The batch with the reverses behind its own edges: for each pair ``(u, v)`` that is joined while ``(v, u)`` is
        not, the reverse of its first edge, at that edge's position. Per-hop counts are gone.
    """
    row, col, n = subgraph.row, subgraph.col, subgraph.num_nodes
    pairs, first = np.unique(row.astype(np.int64) * n + col, return_index=True)
    reverses = (pairs % n) * n + pairs // n
    extra = np.sort(first[~np.isin(reverses, pairs)])
    return replace(
        subgraph,
        row=np.concatenate([row, col[extra]]),
        col=np.concatenate([col, row[extra]]),
        positions=np.concatenate([subgraph.positions, subgraph.positions[extra]]),
        num_sampled_nodes=None,
        num_sampled_edges=None,
    )
