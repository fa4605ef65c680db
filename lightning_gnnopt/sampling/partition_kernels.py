"""The kernels of partitioning: a graph seen without directions, and streams of nodes over it.

A graph is handed over as its in-neighbours (``indptr``, ``indices``) and its out-neighbours (``out_indptr``,
``out_indices``), which are left empty for an undirected graph: its in-neighbours are all neighbours.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import mix64


@njit(nogil=True, cache=True)
def is_symmetric(indptr: NDArray[np.int64], indices: NDArray[np.integer]) -> bool:
    """Whether every edge stands in both directions equally often, by comparing sums of hashes: wrong once in 2**64."""
    forward = backward = np.uint64(0)
    for v in range(len(indptr) - 1):
        hash_v = mix64(np.uint64(v))
        for p in range(indptr[v], indptr[v + 1]):
            u = np.uint64(indices[p])
            forward += mix64(hash_v ^ u)
            backward += mix64(mix64(u) ^ np.uint64(v))
    return bool(forward == backward)


@njit(nogil=True, cache=True)
def transpose(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.integer],
) -> None:
    """Write the out-neighbours of each node, `out_indptr` being zeros of shape ``(N + 1,)``."""
    for u in indices:
        out_indptr[u + 1] += 1
    for v in range(len(out_indptr) - 1):
        out_indptr[v + 1] += out_indptr[v]
    for v in range(len(indptr) - 1):
        for p in range(indptr[v], indptr[v + 1]):
            u = indices[p]
            out_indices[out_indptr[u]] = v
            out_indptr[u] += 1
    for v in range(len(out_indptr) - 1, 0, -1):
        out_indptr[v] = out_indptr[v - 1]
    out_indptr[0] = 0


@njit(nogil=True, cache=True)
def breadth_first(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.integer],
    starts: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Order all nodes breadth-first: from the first of `starts`, then from the next that was not reached, and so on."""
    queue = np.empty(len(starts), np.int64)
    seen = np.zeros(len(starts), np.bool_)
    head = tail = 0
    for start in starts:
        if not seen[start]:
            seen[start] = True
            queue[tail] = start
            tail += 1
        while head < tail:
            v = queue[head]
            head += 1
            for ptr, ids in ((indptr, indices), (out_indptr, out_indices)):
                for p in range(ptr[v], ptr[v + 1]):
                    u = ids[p]
                    if not seen[u]:
                        seen[u] = True
                        queue[tail] = u
                        tail += 1
    return queue


@njit(nogil=True, cache=True)
def stream(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    out_indptr: NDArray[np.int64],
    out_indices: NDArray[np.integer],
    nodes: NDArray[np.int64],
    parts: NDArray[np.int32],
    num_parts: int,
    factor: NDArray[np.float64],
    price: NDArray[np.float64],
    passes: int,
) -> None:
    """Put each node into the part of highest ``neighbours * factor[size] - price[size]``; ties to the smaller part.

    A part without neighbours scores best if it is smallest, so only neighbours' parts and the smallest are looked at.
    The parts stand in `by_size`, those of size ``s`` from ``first[s]`` on: a size changes by one, a swap keeps order.
    """
    capacity = len(factor) - 1
    sizes = np.zeros(num_parts, np.int64)
    by_size = np.arange(num_parts)
    place = np.arange(num_parts)
    first = np.full(capacity + 2, num_parts)
    first[0] = 0
    counts = np.zeros(num_parts, np.int64)
    touched = np.empty(num_parts, np.int64)
    for _ in range(passes):
        moved = 0
        for v in nodes:
            old = np.int64(parts[v])
            if old >= 0:
                if sizes[old] == 1:
                    continue
                swap = by_size[first[sizes[old]]]
                by_size[place[old]], place[swap] = swap, place[old]
                place[old] = first[sizes[old]]
                by_size[place[old]] = old
                first[sizes[old]] += 1
                sizes[old] -= 1
            num_touched = 0
            for ptr, ids in ((indptr, indices), (out_indptr, out_indices)):
                for p in range(ptr[v], ptr[v + 1]):
                    u = ids[p]
                    part = np.int64(parts[u])
                    if u != v and part >= 0:
                        if counts[part] == 0:
                            touched[num_touched] = part
                            num_touched += 1
                        counts[part] += 1
            best = by_size[0]
            best_score = counts[best] * factor[sizes[best]] - price[sizes[best]]
            for i in range(num_touched):
                part = touched[i]
                size = sizes[part]
                if size < capacity:
                    score = counts[part] * factor[size] - price[size]
                    if score > best_score or (score == best_score and size < sizes[best]):
                        best, best_score = part, score
                counts[part] = 0
            parts[v] = best
            moved += 1 if best != old else 0
            last = first[sizes[best] + 1] - 1
            swap = by_size[last]
            by_size[place[best]], place[swap] = swap, place[best]
            by_size[last], place[best] = best, last
            first[sizes[best] + 1] -= 1
            sizes[best] += 1
        if moved == 0:
            return


@njit(nogil=True, cache=True)
def fill_empty_parts(parts: NDArray[np.int32], num_parts: int) -> None:
    """Give each empty part a node of the part that is largest at first."""
    sizes = np.zeros(num_parts, np.int64)
    for part in parts:
        sizes[part] += 1
    v = 0
    for empty in range(num_parts):
        if sizes[empty] == 0:
            while sizes[parts[v]] == 1:
                v += 1
            sizes[parts[v]] -= 1
            parts[v] = empty
            sizes[empty] = 1


@njit(nogil=True, cache=True)
def count_cut(indptr: NDArray[np.int64], indices: NDArray[np.integer], parts: NDArray[np.integer]) -> int:
    """Count the edges between two parts."""
    cut = 0
    for v in range(len(indptr) - 1):
        for p in range(indptr[v], indptr[v + 1]):
            cut += 1 if parts[indices[p]] != parts[v] else 0
    return cut
