"""LABOR-0's draw: every node has one random number, which all nodes that could take it compare with their own bound."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw, Drawn, count_drawn
from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.rng import mix64
from lightning_gnnopt.sampling.topology import Topology

_CHUNK = 256  # random numbers made at a time: 2 KiB, which stay in the nearest cache
_LISTS_AHEAD = 8  # a list of in-edges is asked for earlier than a single entry would be: its start comes first
_32 = np.uint64(32)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


class UniformLaborDraw(Draw):
    """LABOR-0: a node of in-degree ``d`` takes the in-neighbours whose random number is below ``size / d``.

    The random number of node ``t`` is ``mix64(key ^ t) / 2**64``. It is compared as an integer, so that a chance is met
    to within ``2**-64``, and does not depend on the order of the nodes.

    Args:
        topology: The graph.
        fixed_size: Take the `size` smallest instead, of equal ones the first.
    """

    def __init__(self, topology: Topology, *, fixed_size: bool = False) -> None:
        self.topology = topology
        self.fixed_size = fixed_size

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        indptr = self.topology.indptr
        colptr = np.empty(len(frontier) + 1, np.int64)
        count_drawn(indptr, frontier, size, False, colptr)
        # What is drawn in the mean and a little more: growing costs a copy, room that stays unused costs nothing.
        positions = np.empty(int(1.1 * int(colptr[-1])) + _CHUNK, self.topology.position_dtype)
        kernel = _draw_smallest if self.fixed_size else _draw_below
        return Drawn(kernel(indptr, self.topology.indices, frontier, size, np.uint64(key), colptr, positions), colptr)


@njit(nogil=True, cache=True)
def _fraction(part: int, whole: int) -> np.uint64:
    """Compute ``floor(part * 2**64 / whole)`` for ``0 <= part < whole < 2**32`` by long division."""
    numerator, divisor = np.uint64(part) << _32, np.uint64(whole)
    upper = numerator // divisor
    return (upper << _32) | (((numerator - upper * divisor) << _32) // divisor)


@njit(nogil=True, cache=True)
def _make_words(nodes: NDArray[np.integer], key: np.uint64, words: NDArray[np.uint64]) -> None:
    # A loop of its own over a slice: the compiler then makes eight random numbers at a time.
    for i in range(len(nodes)):
        words[i] = mix64(key ^ np.uint64(nodes[i]))


@njit(nogil=True, cache=True)
def _with_room(array: NDArray[np.integer], used: int, more: int) -> NDArray[np.integer]:
    """Return `array`, or a longer copy of its first `used` elements if it has no room for `more`."""
    if used + more <= len(array):
        return array
    longer = np.empty(3 * (used + more) // 2, array.dtype)
    longer[:used] = array[:used]
    return longer


@njit(nogil=True, cache=True)
def _append_below(
    nodes: NDArray[np.integer],
    first: int,
    key: np.uint64,
    bound: np.uint64,
    words: NDArray[np.uint64],
    out: NDArray[np.integer],
) -> np.int64:
    """Write the positions of the nodes whose random number is below `bound` into `out`; return how many those are.

    Args:
        nodes: In-neighbours, shape ``(d,)``.
        first: Position of the first of them.
        key: Word that keys the random numbers.
        bound: What a random number must be below.
        words: Scratch, shape ``(_CHUNK,)``.
        out: Output, shape ``(d,)`` or longer.
    """
    count = np.uint64(0)
    for start in range(0, len(nodes), _CHUNK):
        stop = min(start + _CHUNK, len(nodes))
        _make_words(nodes[start:stop], key, words)
        for j in range(stop - start):
            # Without a branch, and unsigned, so that no place is checked for being negative.
            out[count] = first + start + j
            count += np.uint64(words[j] < bound)
    # `int` would keep it unsigned, and unsigned and signed make a float.
    return np.int64(count)


@njit(nogil=True, cache=True)
def _draw_below(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    frontier: NDArray[np.integer],
    fanout: int,
    key: np.uint64,
    colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
) -> NDArray[np.integer]:
    """Draw positions of in-edges by Poisson sampling.

    Args:
        indptr: Shape ``(N + 1,)``.
        indices: Shape ``(E,)``.
        frontier: Global ids of the nodes to expand, shape ``(F,)``.
        fanout: Expected number of in-edges per node; -1 takes all of them.
        key: Word that keys this hop's random numbers.
        colptr: Output, shape ``(F + 1,)``.
        positions: Room for the positions.

    Returns:
        The positions, in `positions` if they fit.
    """
    at, n = 0, len(frontier)
    words = np.empty(_CHUNK, np.uint64)
    colptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(indptr, frontier[i + AHEAD])
        if i + _LISTS_AHEAD < n:
            prefetch(indices, indptr[frontier[i + _LISTS_AHEAD]])
        first, last = indptr[frontier[i]], indptr[frontier[i] + 1]
        positions = _with_room(positions, at, last - first)
        if fanout < 0 or last - first <= fanout:
            for p in range(first, last):
                positions[at + p - first] = p
            at += last - first
        else:
            bound = _fraction(fanout, last - first)
            at += int(_append_below(indices[first:last], first, key, bound, words, positions[at : at + last - first]))
        colptr[i + 1] = at
    return positions[:at]


@njit(nogil=True, cache=True)
def _draw_smallest(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    frontier: NDArray[np.integer],
    fanout: int,
    key: np.uint64,
    colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
) -> NDArray[np.integer]:
    """Draw the in-edges with the `fanout` smallest random numbers; arguments and result as of :func:`_draw_below`."""
    at, n = 0, len(frontier)
    words = np.empty(_CHUNK, np.uint64)
    found: NDArray[np.integer] = np.empty(_CHUNK, np.uint64)
    ranked: NDArray[np.integer] = np.empty(_CHUNK, np.uint64)
    colptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(indptr, frontier[i + AHEAD])
        if i + _LISTS_AHEAD < n:
            prefetch(indices, indptr[frontier[i + _LISTS_AHEAD]])
        first, last = indptr[frontier[i]], indptr[frontier[i] + 1]
        degree = last - first
        positions = _with_room(positions, at, degree)
        if fanout < 0 or degree <= fanout:
            for p in range(first, last):
                positions[at + p - first] = p
            at += degree
            colptr[i + 1] = at
            continue
        # A bound that leaves enough almost always, and few to sort; all of them where it did not.
        likely = fanout + 8 + int(4 * np.sqrt(fanout))
        bound = _fraction(likely, degree) if likely < degree else _ALL
        out = positions[at : at + degree]
        count = int(_append_below(indices[first:last], first, key, bound, words, out))
        if count < fanout:
            for p in range(first, last):
                out[p - first] = p
            count = degree
        found = _with_room(found, 0, count)
        for j in range(count):
            found[j] = mix64(key ^ np.uint64(indices[out[j]]))
        ranked = _with_room(ranked, 0, count)
        ranked[:count] = found[:count]
        ranked[:count].sort()
        largest = ranked[fanout - 1]
        # All below the largest one taken, and of those equal to it (parallel edges) as many as are missing.
        ties = fanout
        for j in range(count):
            ties -= 1 if found[j] < largest else 0
        taken = 0
        for j in range(count):
            if found[j] < largest:
                out[taken] = out[j]
                taken += 1
            elif found[j] == largest and ties > 0:
                out[taken] = out[j]
                taken += 1
                ties -= 1
        at += fanout
        colptr[i + 1] = at
    return positions[:at]
