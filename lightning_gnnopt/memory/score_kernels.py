"""The numba kernels behind `scores` and `pruning`: how important edges are, and their order.

Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import mix64

_DIGIT = 11
_BUCKETS = 1 << _DIGIT
_NUM_DIGITS = 3
_MASK = np.uint32(_BUCKETS - 1)
_SHIFTS = (np.uint32(0), np.uint32(_DIGIT), np.uint32(2 * _DIGIT))
_SIGN = np.uint32(1 << 31)
_NO_LEVEL = np.int32(2**31 - 1)
_TO_UNIT = 2.0**-24
_40 = np.uint64(40)


@njit(nogil=True, cache=True)
def products_of_degrees(
    row: NDArray[np.integer], col: NDArray[np.integer], degrees: NDArray[np.int32], out: NDArray[np.float32]
) -> None:
    """Write ``1 / (deg(u) * deg(v))`` of each edge to `out`; `degrees` are zeros of shape ``(N,)``."""
    for e in range(len(row)):
        degrees[row[e]] += 1
        degrees[col[e]] += 1
    for e in range(len(row)):
        out[e] = np.float32(1) / (np.float32(degrees[row[e]]) * np.float32(degrees[col[e]]))


@njit(nogil=True, cache=True)
def page_rank(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    num_nodes: int,
    damping: float,
    tolerance: float,
    max_iterations: int,
) -> NDArray[np.float64]:
    """Iterate to the ranks of nodes; see `scores.pagerank_scores`."""
    share = np.zeros(num_nodes, np.float64)  # what each out-edge passes on of one unit of rank
    for e in range(len(row)):
        share[row[e]] += 1.0
    for v in range(num_nodes):
        if share[v] > 0:
            share[v] = damping / share[v]
    rank = np.full(num_nodes, 1.0 / max(num_nodes, 1), np.float64)
    passed, new = np.empty(num_nodes, np.float64), np.empty(num_nodes, np.float64)
    for _ in range(max_iterations):
        lost = 0.0  # rank of nodes without out-edges, which goes to all
        for v in range(num_nodes):
            passed[v] = rank[v] * share[v]
            if share[v] == 0:
                lost += rank[v]
        base = (1.0 - damping + damping * lost) / max(num_nodes, 1)
        new[:] = base
        # In-edges of a node mostly stand together: their sum stays in a register.
        target, gathered = 0, 0.0
        for e in range(len(col)):
            if col[e] != target:
                new[target] += gathered
                target, gathered = col[e], 0.0
            gathered += passed[row[e]]
        if len(col):
            new[target] += gathered
        change = 0.0
        for v in range(num_nodes):
            change += abs(new[v] - rank[v])
        rank, new = new, rank
        if change <= tolerance:
            break
    return rank


@njit(nogil=True, cache=True)
def products_of_ranks(
    row: NDArray[np.integer], col: NDArray[np.integer], rank: NDArray[np.float64], out: NDArray[np.float32]
) -> None:
    """Write ``1 / (rank(u) * rank(v))`` of each edge, taken times ``1 / N**2``, to `out`."""
    # A rank is 1 / N on average: so that the product of two of them is a float32 for any N.
    for e in range(len(row)):
        out[e] = 1.0 / (rank[row[e]] * len(rank) * rank[col[e]] * len(rank))


@njit(nogil=True, cache=True)
def uniform_floats(word: np.uint64, out: NDArray[np.float32]) -> None:
    """Fill `out` with numbers from [0, 1), each a function of `word` and its place."""
    for e in range(len(out)):
        out[e] = np.float32(mix64(word ^ mix64(np.uint64(e))) >> _40) * np.float32(_TO_UNIT)


@njit(nogil=True, cache=True)
def sort_descending(bits: NDArray[np.uint32], word: np.uint64, out: NDArray[np.int64]) -> None:
    """Sort floats, the largest first and equal ones in random order: a radix sort (Knuth, TAOCP volume 3, 5.2.5).

    Passes from the lowest digit to the highest keep the order of what is equal, and the first pass of all sorts by
    random numbers. A digit that is the same everywhere is skipped.

    Args:
        bits: The floats' bits, shape ``(E,)``.
        word: Keys the random order.
        out: Output, shape ``(E,)``: places in `bits`.
    """
    n = len(bits)
    digits = np.zeros((_NUM_DIGITS, _BUCKETS), np.int32)
    random_digits = np.zeros(_BUCKETS, np.int32)
    keys, hashes = np.empty(n, np.uint32), np.empty(n, np.uint16)
    for e in range(n):
        # Bits of floats ascend with the float once the sign is turned, and all bits where it was set; then descending.
        negative = bits[e] & _SIGN
        keys[e] = bits[e] if negative else ~(bits[e] | _SIGN)
        key = keys[e]  # 32 bits again, which `~` makes 64
        for d in range(_NUM_DIGITS):
            digits[d, (key >> _SHIFTS[d]) & _MASK] += 1
        hashes[e] = mix64(word ^ np.uint64(e)) & np.uint64(_MASK)
        random_digits[hashes[e]] += 1
    source, target = np.empty(n, np.int32), np.empty(n, np.int32)
    _to_starts(random_digits)
    for e in range(n):
        bucket = hashes[e]
        source[random_digits[bucket]] = e
        random_digits[bucket] += 1
    for d in range(_NUM_DIGITS):
        starts = digits[d]
        if n == 0 or starts[(keys[0] >> _SHIFTS[d]) & _MASK] == n:
            continue
        _to_starts(starts)
        for i in range(n):
            e = source[i]
            bucket = (keys[e] >> _SHIFTS[d]) & _MASK
            target[starts[bucket]] = e
            starts[bucket] += 1
        source, target = target, source
    for i in range(n):
        out[i] = source[i]


@njit(nogil=True, cache=True, inline="always")
def _to_starts(counts: NDArray[np.int32]) -> None:
    """Turn the sizes of buckets into where they start."""
    start = np.int32(0)
    for bucket in range(len(counts)):
        size = counts[bucket]
        counts[bucket] = start
        start += size


@njit(nogil=True, cache=True)
def ranks_of(order: NDArray[np.int64], out: NDArray[np.int32]) -> bool:
    """Write the place in `order` of each number to `out`, -1 of shape ``(E,)``; return whether each is there once."""
    for i in range(len(order)):
        e = order[i]
        if e < 0 or e >= len(out) or out[e] >= 0:
            return False
        out[e] = i
    return True


@njit(nogil=True, cache=True)
def connected_first(
    indptr: NDArray[np.int32],
    sources: NDArray[np.int32],
    edges: NDArray[np.int32],
    num_seeds: int,
    max_hops: int,
    order: NDArray[np.int64],
    ranks: NDArray[np.int32],
    out: NDArray[np.int64],
) -> None:
    """Move the best in-edge of each seed to the front, behind them that of each node these lead to, and so on.

    Args:
        indptr: As `structure_kernels.in_edges` makes it, with `sources` and `edges`.
        sources: Sources, grouped by destination.
        edges: Places of the edges, grouped by destination.
        num_seeds: Number of seeds.
        max_hops: After how many steps to stop.
        order: The edges, the best first, shape ``(E,)``.
        ranks: The edges' places in `order`, shape ``(E,)``.
        out: Output, shape ``(E,)``; within each step, and behind the last, edges stand as in `order`.
    """
    num_nodes, num_edges = len(indptr) - 1, len(order)
    level_of = np.full(num_edges, _NO_LEVEL, np.int32)
    seen = np.zeros(num_nodes, np.bool_)
    met = np.empty(num_nodes, np.int32)
    for seed in range(num_seeds):
        seen[seed] = True
        met[seed] = seed
    first, num_met, level = 0, num_seeds, 0
    while first < num_met and level < max_hops:
        end = num_met
        for i in range(first, end):
            node = met[i]
            best, best_rank = -1, num_edges
            for p in range(indptr[node], indptr[node + 1]):
                rank = ranks[edges[p]]
                if rank < best_rank and sources[p] != node:  # a self loop leads nowhere
                    best, best_rank = p, rank
            if best < 0:
                continue
            level_of[edges[best]] = level
            source = sources[best]
            if not seen[source]:
                seen[source] = True
                met[num_met] = source
                num_met += 1
        first = end
        level += 1
    starts = np.zeros(level + 1, np.int32)
    for e in range(num_edges):
        starts[min(level_of[e], level)] += 1
    _to_starts(starts)
    for i in range(num_edges):
        e = order[i]
        bucket = min(level_of[e], level)
        out[starts[bucket]] = e
        starts[bucket] += 1


@njit(nogil=True, cache=True)
def by_share(
    col: NDArray[np.integer], order: NDArray[np.int64], in_degree: NDArray[np.int32], out: NDArray[np.int64]
) -> None:
    """Reorder edges so that every destination keeps about the same share of its in-edges, its first ones.

    Edge ``k`` of a destination with ``d`` in-edges, counted from 0 in `order`, comes at ``(k + 1/2) / d``; those at the
    same place stay in the order they had.

    Args:
        col: Destinations, shape ``(E,)``.
        order: Edges, the one to keep first in front, shape ``(E,)``.
        in_degree: Zeros of shape ``(N,)``.
        out: Output, shape ``(E,)``.
    """
    for e in range(len(col)):
        in_degree[col[e]] += 1
    seen = np.zeros(len(in_degree), np.int32)
    keys = np.empty(len(order), np.uint16)
    starts = np.zeros((1 << 16) + 1, np.int64)
    for place in range(len(order)):
        node = col[order[place]]
        keys[place] = np.uint16((np.float64(seen[node]) + 0.5) / np.float64(in_degree[node]) * 65535.0)
        seen[node] += 1
        starts[np.int64(keys[place]) + 1] += 1
    for bucket in range(1 << 16):
        starts[bucket + 1] += starts[bucket]
    for place in range(len(order)):
        start = np.int64(keys[place])
        out[starts[start]] = order[place]
        starts[start] += 1
