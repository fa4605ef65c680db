"""The numba kernels of the datasets: simple undirected graphs from drawn pairs, and the draws themselves.

Numpy arrays in and out, the GIL released. Every random number is a function of a key and a counter
(`lightning_gnnopt.sampling.rng`), so results depend on the seed alone. Callers validate; a kernel trusts its input.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import mix64, uniform_below

_STEP = np.uint64(0x9E3779B97F4A7C15)
_11 = np.uint64(11)
_UNIT = 1.0 / 9007199254740992.0  # 2 ** -53


@njit(nogil=True, cache=True)
def permutation(size: int, key: np.uint64) -> NDArray[np.int32]:
    """Draw a uniform permutation of ``0 .. size - 1`` (Fisher and Yates), shape ``(size,)``."""
    order = np.arange(size).astype(np.int32)
    state = key
    for i in range(size - 1, 0, -1):
        draw, state = uniform_below(state, np.uint64(i + 1))
        j = np.int64(draw)
        order[i], order[j] = order[j], order[i]
    return order


@njit(nogil=True, cache=True)
def unique_pairs(
    u: NDArray[np.int32], v: NDArray[np.int32], num_nodes: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Drop self loops, direction and repetitions of node pairs: bucket by the smaller end, sort each bucket.

    Returns:
        ``offsets`` of shape ``(num_nodes + 1,)`` and ``larger``: the pairs of node ``a`` as the smaller end are
        ``(a, larger[offsets[a]:offsets[a + 1]])``, ascending.
    """
    offsets = np.zeros(num_nodes + 1, np.int64)
    for i in range(len(u)):
        if u[i] != v[i]:
            offsets[min(u[i], v[i]) + 1] += 1
    for a in range(num_nodes):
        offsets[a + 1] += offsets[a]
    larger = np.empty(offsets[num_nodes], np.int32)
    cursor = offsets[:-1].copy()
    for i in range(len(u)):
        if u[i] != v[i]:
            a = min(u[i], v[i])
            larger[cursor[a]] = max(u[i], v[i])
            cursor[a] += 1
    kept = 0
    start = 0
    for a in range(num_nodes):
        stop = offsets[a + 1]
        bucket = larger[start:stop]
        bucket.sort()
        last = -1
        for i in range(len(bucket)):  # `kept` never passes what is still to be read
            if bucket[i] != last:
                last = bucket[i]
                larger[kept] = last
                kept += 1
        start = stop
        offsets[a + 1] = kept
    return offsets, larger[:kept].copy()


@njit(nogil=True, cache=True)
def thin_pairs(
    offsets: NDArray[np.int64], larger: NDArray[np.int32], keep: int, key: np.uint64
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Keep exactly `keep` pairs, each with the same chance, in one pass (Knuth's selection sampling, algorithm S)."""
    num_nodes = len(offsets) - 1
    thinned = np.zeros(num_nodes + 1, np.int64)
    left = np.empty(keep, np.int32)
    kept = 0
    state = key
    for a in range(num_nodes):
        for i in range(offsets[a], offsets[a + 1]):
            state = state + _STEP
            if (len(larger) - i) * (np.float64(mix64(state) >> _11) * _UNIT) < keep - kept:
                left[kept] = larger[i]
                kept += 1
        thinned[a + 1] = kept
    return thinned, left


@njit(nogil=True, cache=True)
def both_directions(offsets: NDArray[np.int64], larger: NDArray[np.int32]) -> NDArray[np.int64]:
    """Write each pair in both directions: shape ``(2, 2 * pairs)``, sorted by destination, then by source."""
    num_nodes = len(offsets) - 1
    cursor = np.zeros(num_nodes + 1, np.int64)
    for a in range(num_nodes):
        cursor[a + 1] += offsets[a + 1] - offsets[a]
        for i in range(offsets[a], offsets[a + 1]):
            cursor[larger[i] + 1] += 1
    for a in range(num_nodes):
        cursor[a + 1] += cursor[a]
    edge_index = np.empty((2, 2 * len(larger)), np.int64)
    # Smaller neighbours of a node come first: they have all been visited when its own turn comes.
    for a in range(num_nodes):
        for i in range(offsets[a], offsets[a + 1]):
            b = larger[i]
            edge_index[0, cursor[a]] = b
            edge_index[1, cursor[a]] = a
            cursor[a] += 1
            edge_index[0, cursor[b]] = a
            edge_index[1, cursor[b]] = b
            cursor[b] += 1
    return edge_index


@njit(nogil=True, cache=True)
def draw_rmat(
    count: int, key: np.uint64, order: NDArray[np.int32], bounds: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw node pairs by recursive descent into the quadrants of the adjacency matrix.

    Args:
        count: Pairs to draw.
        key: Key of the stream.
        order: The id of the node at each place, shape ``(num_nodes,)``; places outside are drawn again.
        bounds: Cumulated chances ``(a, a + b, a + b + c)`` of each level, shape ``(levels, 3)``.
    """
    num_nodes = len(order)
    u = np.empty(count, np.int32)
    v = np.empty(count, np.int32)
    for i in range(count):
        state = mix64(key + np.uint64(i) * _STEP)
        row, col = num_nodes, num_nodes
        while row >= num_nodes or col >= num_nodes:
            row, col = 0, 0
            for level in range(len(bounds)):
                state = state + _STEP
                chance = np.float64(mix64(state) >> _11) * _UNIT
                row = 2 * row + (chance >= bounds[level, 1])
                col = 2 * col + ((bounds[level, 0] <= chance < bounds[level, 1]) or chance >= bounds[level, 2])
        u[i] = order[row]
        v[i] = order[col]
    return u, v


@njit(nogil=True, cache=True)
def draw_blocks(
    count: int,
    key: np.uint64,
    order: NDArray[np.int32],
    num_classes: int,
    homophily: float,
    shift: float,
    power: float,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Draw node pairs of a degree-corrected block model with power-law degrees.

    Class ``r`` owns places ``r * N // num_classes`` up to the next class's first. Inside a class the node at relative
    rank ``x`` has weight ``(x + shift) ** (1 / power - 1)``; a draw inverts the weights' integral, it needs no table.

    Args:
        count: Pairs to draw.
        key: Key of the stream.
        order: The id of the node at each place, shape ``(num_nodes,)``.
        num_classes: Number of classes.
        homophily: Chance that both ends are drawn from one class.
        shift: Offset of the ranks, bounding the largest weight.
        power: Inverse of one minus the weights' rank exponent.
    """
    num_nodes = len(order)
    low = shift ** (1.0 / power)
    span = (1.0 + shift) ** (1.0 / power) - low
    ends = np.empty((2, count), np.int32)
    for i in range(count):
        state = mix64(key + np.uint64(i) * _STEP) + _STEP
        draw, state = uniform_below(state, np.uint64(num_nodes))
        block = ((np.int64(draw) + 1) * num_classes - 1) // num_nodes
        for end in range(2):
            if end == 1 and num_classes > 1:
                state = state + _STEP
                if np.float64(mix64(state) >> _11) * _UNIT >= homophily:
                    draw, state = uniform_below(state, np.uint64(num_classes - 1))
                    other = np.int64(draw)
                    block = other + (other >= block)
            start = block * num_nodes // num_classes
            size = (block + 1) * num_nodes // num_classes - start
            state = state + _STEP
            rank = (low + np.float64(mix64(state) >> _11) * _UNIT * span) ** power - shift
            ends[end, i] = order[start + min(np.int64(rank * size), size - 1)]
    return ends[0], ends[1]


@njit(nogil=True, cache=True)
def normal(num_rows: int, num_columns: int, deviation: float, key: np.uint64) -> NDArray[np.float32]:
    """Draw normal numbers of mean zero (Box and Muller), shape ``(num_rows, num_columns)``."""
    out = np.empty((num_rows, num_columns), np.float32)
    for row in range(num_rows):
        state = mix64(key + np.uint64(row) * _STEP)
        for column in range(0, num_columns, 2):
            state = state + _STEP
            radius = deviation * math.sqrt(-2.0 * math.log(1.0 - np.float64(mix64(state) >> _11) * _UNIT))
            state = state + _STEP
            angle = 2.0 * math.pi * np.float64(mix64(state) >> _11) * _UNIT
            out[row, column] = radius * math.cos(angle)
            if column + 1 < num_columns:
                out[row, column + 1] = radius * math.sin(angle)
    return out


@njit(nogil=True, cache=True)
def add_product(out: NDArray[np.float32], left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
    """Add the matrix product of `left` and `right` to `out`, in the same order on every machine."""
    for row in range(len(out)):
        for k in range(left.shape[1]):
            for column in range(out.shape[1]):
                out[row, column] += left[row, k] * right[k, column]


@njit(nogil=True, cache=True)
def add_rows(out: NDArray[np.float32], table: NDArray[np.float32], which: NDArray[np.int64]) -> None:
    """Add row ``which[i]`` of `table` to row ``i`` of `out`."""
    for row in range(len(out)):
        for column in range(out.shape[1]):
            out[row, column] += table[which[row], column]


@njit(nogil=True, cache=True)
def closed_neighborhood_mean(edge_index: NDArray[np.int64], x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average each node's row of `x` with its in-neighbours' rows; same shape as `x`."""
    out = x.copy()
    count = np.ones(len(x), np.int64)
    for edge in range(edge_index.shape[1]):
        source, target = edge_index[0, edge], edge_index[1, edge]
        count[target] += 1
        for column in range(x.shape[1]):
            out[target, column] += x[source, column]
    for row in range(len(x)):
        for column in range(x.shape[1]):
            out[row, column] /= count[row]
    return out
