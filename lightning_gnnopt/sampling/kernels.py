"""The numba kernels: numpy arrays in, numpy arrays out, the GIL released.

Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import mix64, uniform_below

_ONE = np.uint64(1)


@njit(nogil=True, cache=True)
def coo_to_csc(
    row: NDArray[np.integer], col: NDArray[np.integer], indptr: NDArray[np.int64], indices: NDArray[np.integer]
) -> None:
    """Sort edges by destination with a stable counting sort, in linear time.

    Args:
        row: Sources, shape ``(E,)``.
        col: Destinations, shape ``(E,)``.
        indptr: Output, zeros of shape ``(N + 1,)``; on return ``indptr[v]:indptr[v + 1]`` are the in-edges of ``v``.
        indices: Output, shape ``(E,)``: the sources, grouped by destination.
    """
    for e in range(len(col)):
        indptr[col[e] + 1] += 1
    for v in range(len(indptr) - 1):
        indptr[v + 1] += indptr[v]
    # `indptr[v]` serves as the cursor of `v` and ends as the start of `v + 1`; the last loop shifts it back.
    for e in range(len(col)):
        v = col[e]
        indices[indptr[v]] = row[e]
        indptr[v] += 1
    for v in range(len(indptr) - 1, 0, -1):
        indptr[v] = indptr[v - 1]
    indptr[0] = 0


@njit(nogil=True, cache=True)
def csc_edge_ids(col: NDArray[np.integer], indptr: NDArray[np.int64], edge_ids: NDArray[np.integer]) -> None:
    """Write the original number of each edge of the CSC order into `edge_ids`, shape ``(E,)``."""
    cursor = indptr[:-1].copy()
    for e in range(len(col)):
        v = col[e]
        edge_ids[cursor[v]] = e
        cursor[v] += 1


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
def _draw_positions(degree: int, fanout: int, first: int, state: np.uint64, out: NDArray[np.int64]) -> None:
    """Choose `fanout` < `degree` distinct positions of ``first .. first + degree - 1``, every subset equally likely.

    Few positions: Floyd's draw over ``[0, j]`` inclusive (Bentley & Floyd, CACM 1987), whose look-back is quadratic in
    `fanout`. Many: selection sampling (Knuth, TAOCP volume 2, algorithm S), linear in `degree`.
    """
    if fanout * fanout <= 2 * degree or fanout <= 32:
        for i in range(fanout):
            j = degree - fanout + i
            draw, state = uniform_below(state, np.uint64(j) + _ONE)
            chosen = first + int(draw)
            for k in range(i):
                if out[k] == chosen:
                    chosen = first + j
                    break
            out[i] = chosen
        return
    taken = 0
    for j in range(degree):
        draw, state = uniform_below(state, np.uint64(degree - j))
        if int(draw) < fanout - taken:
            out[taken] = first + j
            taken += 1
            if taken == fanout:
                return


@njit(nogil=True, cache=True)
def mark_seeds(seeds: NDArray[np.integer], stamps: NDArray[np.int32], locals_: NDArray[np.int32], stamp: int) -> None:
    """Give each seed its position as local id; a node that stands twice among the seeds keeps its first."""
    for i in range(len(seeds)):
        v = seeds[i]
        if stamps[v] != stamp:
            stamps[v] = stamp
            locals_[v] = i


@njit(nogil=True, cache=True)
def sample_hop(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    frontier: NDArray[np.integer],
    first_local: int,
    num_nodes: int,
    fanout: int,
    key: np.uint64,
    stamps: NDArray[np.int32],
    locals_: NDArray[np.int32],
    stamp: int,
) -> tuple[NDArray[np.integer], NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """Sample in-neighbours of a frontier uniformly without replacement, and number the new nodes.

    Three passes: draw all positions, gather the neighbours, relabel through a table stamped per batch (never cleared).

    Args:
        indptr: Shape ``(N + 1,)``.
        indices: Shape ``(E,)``.
        frontier: Global ids of the nodes to expand, shape ``(F,)``.
        first_local: Local id of ``frontier[0]``; the others follow.
        num_nodes: Local ids given so far.
        fanout: In-neighbours per node; -1 takes all of them.
        key: Word that keys this hop's random numbers.
        stamps: Shape ``(N,)``; ``stamps[v] == stamp`` says that ``v`` has a local id in this batch.
        locals_: Shape ``(N,)``: the local ids.
        stamp: This batch's stamp.

    Returns:
        Global ids of the nodes seen for the first time, in order of discovery; local sources and local destinations of
        the sampled edges, grouped by destination; the edges' positions in the CSC order.
    """
    num_edges = np.int64(0)
    for i in range(len(frontier)):
        v = frontier[i]
        degree = indptr[v + 1] - indptr[v]
        num_edges += degree if fanout < 0 or degree < fanout else fanout

    positions = np.empty(num_edges, np.int64)
    col = np.empty(num_edges, np.int32)
    at = 0
    for i in range(len(frontier)):
        v = frontier[i]
        first = indptr[v]
        degree = indptr[v + 1] - first
        if fanout < 0 or degree <= fanout:
            count = degree
            for k in range(degree):
                positions[at + k] = first + k
        else:
            count = fanout
            _draw_positions(degree, fanout, first, mix64(key ^ np.uint64(i)), positions[at : at + fanout])
        for k in range(count):
            col[at + k] = first_local + i
        at += count

    sources = np.empty(num_edges, indices.dtype)
    for e in range(num_edges):
        sources[e] = indices[positions[e]]

    row = np.empty(num_edges, np.int32)
    num_new = 0
    for e in range(num_edges):
        u = sources[e]
        if stamps[u] != stamp:
            stamps[u] = stamp
            locals_[u] = num_nodes + num_new
            sources[num_new] = u  # `num_new <= e`: this place was read already
            num_new += 1
        row[e] = locals_[u]
    return sources[:num_new].copy(), row, col, positions
