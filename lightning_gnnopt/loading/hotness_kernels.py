"""The numba kernels of the hotness policies: numpy arrays in, numpy arrays out, the GIL released.

Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.rng import ONE

_AHEAD = np.uint64(AHEAD)


@njit(nogil=True, cache=True)
def count_ids(ids: NDArray[np.integer], counts: NDArray[np.float64]) -> None:
    """Add to `counts`, shape ``(N,)``, how often each id stands in `ids`."""
    n = np.uint64(len(ids))
    for i in range(n):
        if i + _AHEAD < n:
            prefetch(counts, ids[i + _AHEAD])
        counts[np.uint64(ids[i])] += 1.0


@njit(nogil=True, cache=True)
def _chance_of_copies(degree: int, copies: int, fanout: int, replace: bool) -> float:
    """Chance that a uniform draw from `degree` in-edges holds one of the `copies` that come from the same node."""
    if fanout < 0 or (fanout >= degree and not replace):
        return 1.0
    if replace:
        return -math.expm1(fanout * math.log1p(-copies / degree))
    if copies == 1:
        return fanout / degree
    missed = 1.0
    for i in range(copies):
        # Once more copies are asked for than edges are left out, the factor 0 came by.
        missed *= (degree - fanout - i) / (degree - i)
        if missed == 0.0:
            break
    return 1.0 - missed


@njit(nogil=True, cache=True)
def _log_missed(
    degree: int,
    copies: int,
    fanouts: NDArray[np.int64],
    replace: bool,
    found_HN: NDArray[np.float64],
    v: int,
) -> float:
    """Log of the chance that ``v`` is not expanded, or is and draws none of the `copies`."""
    drawn = 0.0
    for hop in range(len(found_HN)):
        if found_HN[hop, v] > 0.0:
            drawn += found_HN[hop, v] * _chance_of_copies(degree, copies, fanouts[hop], replace)
    return math.log1p(-min(drawn, 1.0))


@njit(nogil=True, cache=True)
def spread_uniform(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    fanouts: NDArray[np.int64],
    replace: bool,
    found_HN: NDArray[np.float64],
    log_missed: NDArray[np.float64],
) -> None:
    """Add, for each node, the log of the chance that no node draws it which is expanded in the hops so far.

    Args:
        indptr: Shape ``(N + 1,)``.
        indices: Shape ``(E,)``; parallel edges are recognised where they stand side by side.
        fanouts: Fan-out of each hop, at least ``H`` of them; -1 takes all in-edges.
        replace: Whether an edge can be drawn several times.
        found_HN: The chance that a node is expanded in a hop, shape ``(H, N)``.
        log_missed: Input and output, shape ``(N,)``.
    """
    num_edges = np.uint64(len(indices))
    for v in range(np.uint64(len(indptr) - 1)):
        p, stop = np.uint64(indptr[v]), np.uint64(indptr[v + ONE])
        degree = indptr[v + ONE] - indptr[v]
        single = _log_missed(degree, 1, fanouts, replace, found_HN, v) if degree > 0 else 0.0
        if single == 0.0:
            continue
        while p < stop:
            if p + _AHEAD < num_edges:
                prefetch(log_missed, indices[p + _AHEAD])
            source = np.uint64(indices[p])
            copies = 1
            p += ONE
            while p < stop and np.uint64(indices[p]) == source:
                copies += 1
                p += ONE
            if source == v:
                continue  # a self loop finds nothing new: its node is expanded, so it is there
            if copies == 1:
                log_missed[source] += single
            else:
                log_missed[source] += _log_missed(degree, copies, fanouts, replace, found_HN, v)


@njit(nogil=True, cache=True)
def spread_weighted(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    weight: NDArray[np.floating],
    fanouts: NDArray[np.int64],
    replace: bool,
    found_HN: NDArray[np.float64],
    log_missed: NDArray[np.float64],
) -> None:
    """Do as :func:`spread_uniform` for draws in proportion to `weight`, shape ``(E,)``, in the order of `indices`."""
    num_edges = np.uint64(len(indices))
    for v in range(np.uint64(len(indptr) - 1)):
        p, stop = np.uint64(indptr[v]), np.uint64(indptr[v + ONE])
        total, positive = 0.0, 0
        for e in range(p, stop):
            total += weight[e]
            positive += weight[e] > 0
        expanded = 0.0
        for hop in range(len(found_HN)):
            expanded += found_HN[hop, v]
        if total == 0.0 or expanded == 0.0:
            continue
        while p < stop:
            if p + _AHEAD < num_edges:
                prefetch(log_missed, indices[p + _AHEAD])
            source = np.uint64(indices[p])
            share = 0.0
            while p < stop and np.uint64(indices[p]) == source:
                share += weight[p]
                p += ONE
            if source == v or share == 0.0:
                continue
            log_left = math.log1p(-min(share / total, 1.0))
            drawn = 0.0
            for hop in range(len(found_HN)):
                if fanouts[hop] < 0 or (positive <= fanouts[hop] and not replace):
                    drawn += found_HN[hop, v]
                else:
                    drawn -= found_HN[hop, v] * math.expm1(fanouts[hop] * log_left)
            log_missed[source] += math.log1p(-min(drawn, 1.0))
