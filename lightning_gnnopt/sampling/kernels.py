"""The numba kernels: numpy arrays in, numpy arrays out, the GIL released.

Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch


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
def _gather(indices: NDArray[np.integer], positions: NDArray[np.integer], out: NDArray[np.integer]) -> None:
    n = len(positions)
    for e in range(n):
        if e + AHEAD < n:
            prefetch(indices, positions[e + AHEAD])
        out[e] = indices[positions[e]]


def gather(indices: NDArray[np.integer], positions: NDArray[np.integer]) -> NDArray[np.integer]:
    """Read ``indices[positions]``, shape ``(E,)``, with the cache lines asked for ahead."""
    out = np.empty(len(positions), indices.dtype)
    _gather(indices, positions, out)
    return out


@njit(nogil=True, cache=True)
def _columns(colptr: NDArray[np.int64], first: int, out: NDArray[np.int32]) -> None:
    for i in range(len(colptr) - 1):
        for e in range(colptr[i], colptr[i + 1]):
            out[e] = first + i


def columns(colptr: NDArray[np.int64], first: int) -> NDArray[np.int32]:
    """Spell out compressed columns: the places ``colptr[i]:colptr[i + 1]`` hold ``first + i``."""
    out = np.empty(colptr[-1], np.int32)
    _columns(colptr, first, out)
    return out
