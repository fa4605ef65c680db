"""The numba kernels behind `scores` and `pruning`: how important edges are, and their order.

Callers validate. Ids that are used as places become unsigned: of signed ones numba asks if they count from the end.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import mix64

_BUCKETS = 1 << 11
_MASK = np.uint64(_BUCKETS - 1)
_WIDEST = 14  # bits of a digit: more buckets than that are in no cache
_SIGN = np.uint32(1 << 31)
_LARGEST = np.uint32(2**32 - 1)
_NO_LEVEL = np.int32(2**31 - 1)
_TO_UNIT = 2.0**-24
_32, _40 = np.uint64(32), np.uint64(40)
_LOW = np.uint64(2**32 - 1)


@njit(nogil=True, cache=True)
def products_of_degrees(
    row: NDArray[np.integer], col: NDArray[np.integer], degrees: NDArray[np.int32], out: NDArray[np.float32]
) -> None:
    """Write ``1 / (deg(u) * deg(v))`` of each edge to `out`; `degrees` are zeros of shape ``(N,)``."""
    for e in range(len(row)):
        degrees[np.uintp(row[e])] += 1
        degrees[np.uintp(col[e])] += 1
    for e in range(len(row)):
        product = np.float32(degrees[np.uintp(row[e])]) * np.float32(degrees[np.uintp(col[e])])
        out[e] = np.float32(1) / product


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
    random numbers. Only digits in which the floats differ are sorted by. A float and its place move together.

    Args:
        bits: The floats' bits, shape ``(E,)``.
        word: Keys the random order.
        out: Output, shape ``(E,)``: places in `bits`.
    """
    n = len(bits)
    keys, digits = np.empty(n, np.uint32), np.empty(n, np.uint16)
    least, most = _LARGEST, np.uint32(0)
    for e in range(n):
        # Bits of floats ascend with the float once the sign is turned, and all bits where it was set; then descending.
        negative = bits[e] & _SIGN
        keys[e] = bits[e] if negative else ~(bits[e] | _SIGN)
        least, most = min(least, keys[e]), max(most, keys[e])
    source, target = np.empty(n, np.uint64), np.empty(n, np.uint64)
    for e in range(n):
        digits[e] = mix64(word ^ np.uint64(e)) & _MASK
        source[e] = np.uint64(keys[e] - least) << _32 | np.uint64(e)
    _sort_by(digits, _BUCKETS, source, target)
    source, target = target, source
    num_bits = 0
    while num_bits < 32 and np.uint64(most) >= np.uint64(least) + (np.uint64(1) << np.uint64(num_bits)):
        num_bits += 1
    shift = _32
    while num_bits > 0:
        width = -(-num_bits // -(-num_bits // _WIDEST))  # the digits that are left are equally wide
        mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
        for i in range(n):
            digits[i] = (source[i] >> shift) & mask
        _sort_by(digits, 1 << width, source, target)
        source, target = target, source
        shift += np.uint64(width)
        num_bits -= width
    for i in range(n):
        out[i] = source[i] & _LOW


@njit(nogil=True, cache=True)
def _sort_by(
    digits: NDArray[np.uint16], num_buckets: int, source: NDArray[np.uint64], target: NDArray[np.uint64]
) -> None:
    """Move what is in `source` to `target`, in the order of its digits; what has the same one stays in order."""
    starts = np.zeros(num_buckets, np.int32)
    for i in range(len(digits)):
        starts[np.uintp(digits[i])] += 1
    _to_starts(starts)
    for i in range(len(digits)):
        bucket = np.uintp(digits[i])
        place = starts[bucket]
        starts[bucket] = place + 1
        target[np.uintp(place)] = source[i]


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
        if e < 0 or e >= len(out) or out[np.uintp(e)] >= 0:
            return False
        out[np.uintp(e)] = i
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
        in_degree[np.uintp(col[e])] += 1
    seen = np.zeros(len(in_degree), np.int32)
    keys = np.empty(len(order), np.uint16)
    starts = np.zeros(1 << 16, np.int32)
    for place in range(len(order)):
        node = np.uintp(col[np.uintp(order[place])])
        before = seen[node]
        seen[node] = before + 1
        keys[place] = np.uint16((np.float64(before) + 0.5) / np.float64(in_degree[node]) * 65535.0)
        starts[np.uintp(keys[place])] += 1
    _to_starts(starts)
    for place in range(len(order)):
        key = np.uintp(keys[place])
        start = starts[key]
        starts[key] = start + 1
        out[np.uintp(start)] = order[place]
