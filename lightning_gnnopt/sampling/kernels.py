"""The numba kernels: numpy arrays in, numpy arrays out, the GIL released.

Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import AHEAD, EDGES_AHEAD, prefetch
from lightning_gnnopt.sampling.rng import ONE


@njit(nogil=True, cache=True)
def coo_to_csc(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    edge_ids: NDArray[np.integer] | None = None,
) -> None:
    """Sort edges by destination with a stable counting sort (Knuth, TAOCP volume 3, section 5.2), in linear time.

    Beside the outputs it takes no memory.

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        indptr: Output, zeros of shape ``(N + 1,)``; on return ``indptr[v]:indptr[v + 1]`` are the in-edges of ``v``.
        indices: Output, shape ``(E,)``: the sources, grouped by destination.
        edge_ids: Output, shape ``(E,)``: the original number of each edge; None does not write them.
    """
    n = len(col)
    for e in range(n):
        if e + AHEAD < n:
            prefetch(indptr, col[e + AHEAD] + 1)
        indptr[col[e] + 1] += 1
    # `indptr[v + 1]` now becomes the start of `v`, then serves as its cursor, and so ends as the end of `v`.
    start = np.int64(0)
    for v in range(1, len(indptr)):
        count = indptr[v]
        indptr[v] = start
        start += count
    for e in range(n):
        # Two steps of waiting: where the edge goes must be known before its place can be asked for.
        if e + 4 * AHEAD < n:
            prefetch(indptr, col[e + 4 * AHEAD] + 1)
        if e + AHEAD < n:
            place = indptr[col[e + AHEAD] + 1]
            prefetch(indices, place)
            if edge_ids is not None:
                prefetch(edge_ids, place)
        v = col[e] + 1
        place = indptr[v]
        indptr[v] = place + 1
        indices[place] = row[e]
        if edge_ids is not None:
            edge_ids[place] = e


@njit(nogil=True, cache=True)
def in_degrees_without_self_loops(
    indptr: NDArray[np.int64], indices: NDArray[np.integer], degrees: NDArray[np.int32]
) -> None:
    """Count each node's in-edges that come from another node, into `degrees` of shape ``(N,)``."""
    for v in range(len(degrees)):
        count = 0
        for p in range(indptr[v], indptr[v + 1]):
            if indices[p] != v:
                count += 1
        degrees[v] = count


@njit(nogil=True, cache=True)
def rows_sorted(indptr: NDArray[np.int64], indices: NDArray[np.integer]) -> bool:
    """Tell whether the in-edges of every node stand by source, in ascending order."""
    for v in range(len(indptr) - 1):
        for p in range(indptr[v] + 1, indptr[v + 1]):
            if indices[p] < indices[p - 1]:
                return False
    return True


@njit(nogil=True, cache=True)
def gather_into(indices: NDArray[np.integer], positions: NDArray[np.integer], out: NDArray[np.integer]) -> None:
    """Write ``indices[positions]`` into `out` of the same shape, with the cache lines asked for ahead."""
    n = np.uint64(len(positions))
    for e in range(n):
        if e + EDGES_AHEAD < n:
            prefetch(indices, positions[e + EDGES_AHEAD])
        out[e] = indices[np.uint64(positions[e])]


def gather(
    indices: NDArray[np.integer], positions: NDArray[np.integer], *, out: NDArray[np.integer] | None = None
) -> NDArray[np.integer]:
    """Read ``indices[positions]``, shape ``(E,)``, with the cache lines asked for ahead."""
    if out is None:
        out = np.empty(len(positions), indices.dtype)
    gather_into(indices, positions, out)
    return out


@njit(nogil=True, cache=True)
def tree_keys(
    colptr: NDArray[np.int64],
    trees: NDArray[np.int32],
    sources: NDArray[np.integer],
    num_nodes: int,
    out: NDArray[np.int64],
) -> None:
    """Write ``tree * num_nodes + node`` for the sources of a hop's edges.

    Args:
        colptr: Where the edges of each expanded node start and end, shape ``(F + 1,)``.
        trees: The tree of each expanded node, shape ``(F,)``.
        sources: Global ids of the edges' sources, shape ``(E,)``.
        num_nodes: Number of nodes of the graph.
        out: Output, shape ``(E,)``.
    """
    for i in range(len(trees)):
        offset = np.int64(trees[i]) * num_nodes
        for e in range(colptr[i], colptr[i + 1]):
            out[e] = offset + sources[e]


@njit(nogil=True, cache=True)
def split_tree_keys(
    keys: NDArray[np.int64], num_nodes: int, trees: NDArray[np.int32], nodes: NDArray[np.integer]
) -> None:
    """Take keys ``tree * num_nodes + node`` apart again, into `trees` and `nodes` of the same shape."""
    for i in range(len(keys)):
        tree = keys[i] // num_nodes
        trees[i] = tree
        nodes[i] = keys[i] - tree * num_nodes


@njit(nogil=True, cache=True)
def _columns(colptr: NDArray[np.int64], first: int, out: NDArray[np.int32]) -> None:
    local = np.int32(first)
    for i in range(np.uint64(len(colptr) - 1)):
        for e in range(np.uint64(colptr[i]), np.uint64(colptr[i + ONE])):
            out[e] = local
        local += np.int32(1)


def columns(colptr: NDArray[np.int64], first: int, *, out: NDArray[np.int32] | None = None) -> NDArray[np.int32]:
    """Spell out compressed columns: the places ``colptr[i]:colptr[i + 1]`` hold ``first + i``."""
    if out is None:
        out = np.empty(colptr[-1], np.int32)
    _columns(colptr, first, out)
    return out
