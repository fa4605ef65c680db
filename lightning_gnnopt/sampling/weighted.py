"""In-edges drawn in proportion to weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.alias import build_alias_tables, place_of
from lightning_gnnopt.sampling.buffers import Buffer
from lightning_gnnopt.sampling.draws import AppendingDraw, append_columns, room_for
from lightning_gnnopt.sampling.kernels import gather
from lightning_gnnopt.sampling.prefetch import NODES_AHEAD, prefetch
from lightning_gnnopt.sampling.rng import GOLDEN, ONE, bounded, mix64
from lightning_gnnopt.sampling.topology import Topology

_8, _9, _11, _32, _63 = np.uint64(8), np.uint64(9), np.uint64(11), np.uint64(32), np.uint64(63)
_LARGEST = np.finfo(np.float64).max
_NODES_AHEAD = 32


class WeightedDraw(AppendingDraw):
    """Up to `size` in-edges of each node, one after another in proportion to the weights of those that are left.

    This is successive sampling (Yates & Grundy, "Selection without replacement from within strata with probability
    proportional to size", JRSS B 1953). An edge of weight 0 is never drawn, not even by a size of -1.

    One draw takes constant time from an alias table (Walker, "An efficient method for generating discrete random
    variables with general distributions", ACM TOMS 1977), built in linear time (Vose, "A linear algorithm for
    generating random numbers with a given distribution", IEEE TSE 1991). An edge drawn before is drawn again: given
    those that were chosen, the next new one is as it should be. Where a few heavy edges make this long, or where many
    are wanted, the edges still to be drawn are those with the smallest exponential variables of rate `weight`, found
    in one pass over the row (Efraimidis & Spirakis, "Weighted random sampling with a reservoir", IPL 2006).

    The table's thresholds are 32-bit integers that sum exactly: over a row of ``d`` in-edges the chances of a draw
    differ from the exact ones by less than ``2**-32 + d * 2**-53`` in total variation.

    Table and weights take 16 bytes per edge, 12 if the weights are float32; 4 more if some weights are 0.

    No `edge_norm` is given: the mean over the drawn in-edges leans towards the heavy ones, which is what the weights
    are for. With `replace` it estimates the weighted mean over all in-edges without bias.

    Args:
        topology: The graph.
        edge_weight: Weight of each edge in the topology's CSC order, shape ``(E,)``: finite and not negative.
        replace: Draw `size` times independently instead, so that an edge can be drawn twice.

    Raises:
        ValueError: If there is not one weight per edge, or one is negative, infinite or not a number.

    Examples:
        >>> import torch
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> draw = WeightedDraw(star, np.array([0.0, 1e9, 1.0]))
        >>> draw(np.array([0]), 2, np.uint64(7), time=None).positions  # the two that have a weight
        array([1, 2], dtype=int32)
    """

    def __init__(self, topology: Topology, edge_weight: NDArray[Any], *, replace: bool = False) -> None:
        weight = _check_weights(edge_weight, topology.num_edges)
        self.topology = topology
        self.replace = replace
        # Edges without weight are left out of the rows: what is not there cannot be drawn.
        self._indptr, self._kept = topology.indptr, None
        positive = weight > 0
        if not positive.all():
            before = np.zeros(len(weight) + 1, np.int64)
            np.cumsum(positive, out=before[1:])
            self._indptr = before[topology.indptr]
            self._kept = np.flatnonzero(positive).astype(topology.position_dtype)
            weight = weight[positive]
        self._weight = weight
        self._longest = int(np.diff(self._indptr).max(initial=0))
        self._table = np.empty(len(weight), np.uint64)
        build_alias_tables(self._indptr, weight, self._table)

    @property
    def edge_weight(self) -> NDArray[np.floating]:
        """The weights, in the topology's CSC order, shape ``(E,)``."""
        if self._kept is None:
            return self._weight
        weight = np.zeros(self.topology.num_edges, self._weight.dtype)
        weight[self._kept] = self._weight
        return weight

    @override
    def append(
        self,
        frontier: NDArray[np.integer],
        size: int,
        key: np.uint64,
        positions: Buffer,
        cols: Buffer,
        *,
        first: int,
        time: NDArray[np.number] | None,
    ) -> tuple[NDArray[np.int64], None]:
        if not self.replace:
            size = min(size, self._longest)  # the kernel's ring has room for this many draws of a node
        room, colptr = room_for(self._indptr, frontier, size, self.replace)
        out = positions.tail(room)
        graph = self._indptr, self._table, self._weight
        num = int(_draw_weighted(*graph, frontier, size, self.replace, key, colptr, out))
        if self._kept is not None:
            gather(self._kept, out[:num], out=out[:num])
        positions.push(num)
        append_columns(colptr, first, cols)
        return colptr, None


def _check_weights(edge_weight: NDArray[Any], num_edges: int) -> NDArray[np.floating]:
    """Refuse what is no weight; keep float32, which halves the memory, and make float64 of the rest."""
    weight = np.asarray(edge_weight)
    if weight.shape != (num_edges,) or weight.dtype.kind not in "biuf":
        raise ValueError(
            f"`edge_weight` must hold one number for each of the graph's {num_edges:,} edges, but got"
            f" {weight.dtype} of shape {weight.shape}. HINT: a column of edge features is `edge_attr[:, k]`."
        )
    weight = np.ascontiguousarray(weight, np.float32 if weight.dtype in (np.float16, np.float32) else np.float64)
    bad = np.flatnonzero(~(np.isfinite(weight) & (weight >= 0)))
    if len(bad):
        raise ValueError(
            f"`edge_weight` must be finite and not negative, but found {weight[bad[0]]} ({len(bad):,} such weights)."
            " HINT: only ratios count; `exp` makes weights of scores, and 0 keeps an edge from being drawn."
        )
    return weight


@njit(nogil=True, cache=True)
def _draw_weighted(
    indptr: NDArray[np.int64],
    table: NDArray[np.uint64],
    weight: NDArray[np.floating],
    frontier: NDArray[np.integer],
    fanout: int,
    replace: bool,
    key: np.uint64,
    colptr: NDArray[np.int64],
    slots: NDArray[np.integer],
) -> np.uint64:
    """Draw places of `weight` for each node into `slots`, and write where those of each start and end to `colptr`.

    For some nodes ahead the first `fanout` words of each are drawn, and their places in the table asked for, before the
    first of them is needed. One stream of words serves the hop; each node has a stretch of it.

    Returns:
        The number of places drawn.
    """
    n, ahead = np.uint64(len(frontier)), np.uint64(_NODES_AHEAD)
    take_all, limit = fanout < 0, np.uint64(max(fanout, 0))
    # What is known of the nodes ahead, one after the other, in a ring.
    firsts, degrees = np.empty(ahead, np.uint64), np.empty(ahead, np.uint64)
    lows, columns = np.empty(ahead * limit, np.uint32), np.empty(ahead * limit, np.uint32)
    times, known = np.empty(limit, np.float64), np.empty(limit, np.int64)
    at = np.uint64(0)
    colptr[0] = 0
    for step in range(n + ahead):
        turn = step & (ahead - ONE)
        ring = turn * limit
        if step >= ahead:
            i = step - ahead
            first, degree = firsts[turn], degrees[turn]
            if take_all or degree == 0 or (degree <= limit and not replace):
                for k in range(degree):
                    slots[at + k] = first + k
                at += degree
            elif replace:
                for k in range(limit):
                    place = place_of(table, first, np.uint64(columns[ring + k]), np.uint64(lows[ring + k]))
                    slots[at + k] = first + place
                at += limit
            else:
                # Nearly the whole row is best taken in one pass, and looking back is quadratic in the fan-out.
                few = _8 * degree > _9 * limit and (limit <= _32 or limit * limit <= degree + degree)
                taken = seen = np.uint64(0)
                for k in range(limit if few else taken):
                    place = place_of(table, first, np.uint64(columns[ring + k]), np.uint64(lows[ring + k]))
                    bit = ONE << (place & _63)
                    again = False
                    if seen & bit:  # else no place with these low bits was taken: no need to look back
                        for q in range(at, at + taken):
                            if np.uint64(slots[q]) == first + place:
                                again = True
                                break
                    if not again:
                        seen |= bit
                        slots[at + taken] = first + place
                        taken += ONE
                if taken < limit:
                    out, found, state = slots[at : at + limit], np.int64(taken), mix64(key ^ i)
                    if few:
                        found = _draw_on(table, np.int64(first), np.int64(degree), state, found, out)
                    if found < fanout:
                        state = mix64(state)
                        _draw_first_to_ring(weight, np.int64(first), np.int64(degree), found, state, times, known, out)
                at += limit
            colptr[i + ONE] = at
        if step < n:
            if step + NODES_AHEAD < n:
                prefetch(indptr, frontier[step + NODES_AHEAD])
                prefetch(indptr, frontier[step + NODES_AHEAD] + 1)
            v = np.uint64(frontier[step])
            first = np.uint64(indptr[v])
            degree = np.uint64(indptr[v + ONE]) - first
            firsts[turn], degrees[turn] = first, degree
            if not take_all and (degree > limit or (replace and degree > 0)):
                state = key + step * limit * GOLDEN
                for k in range(limit):
                    state += GOLDEN
                    word = mix64(state)
                    column = bounded(word >> _32, degree, word)
                    lows[ring + k] = word
                    columns[ring + k] = column
                    prefetch(table, first + column)
    return at


@njit(nogil=True, cache=True)
def _draw_on(
    table: NDArray[np.uint64],
    first: np.int64,
    degree: np.int64,
    state: np.uint64,
    taken: np.int64,
    out: NDArray[np.integer],
) -> np.int64:
    """Go on drawing for a row where ``len(out)`` draws gave `taken` distinct places; return how many there are then.

    The draws may cost about what a pass over the row would, which then finishes what they could not.
    """
    fanout = len(out)
    for draw in range(fanout, 4 * fanout + degree // 2):
        word = mix64(state + np.uint64(draw + 1) * GOLDEN)
        column = bounded(word >> _32, np.uint64(degree), word)
        place = first + np.int64(place_of(table, np.uint64(first), column, word))
        again = False
        for k in range(taken):
            again |= out[k] == place
        if not again:
            out[taken] = place
            taken += 1
            if taken == fanout:
                break
    return taken


@njit(nogil=True, cache=True)
def _draw_first_to_ring(
    weight: NDArray[np.floating],
    first: np.int64,
    degree: np.int64,
    taken: np.int64,
    state: np.uint64,
    times: NDArray[np.float64],
    known: NDArray[np.int64],
    out: NDArray[np.integer],
) -> None:
    """Fill ``out[taken:]`` with the places, other than ``out[:taken]``, whose exponential clocks ring first.

    A heap of the earliest times stands in ``times[taken:]``, the latest of them at its root.
    """
    for k in range(taken):  # in order, to be passed over
        at = k
        while at > 0 and known[at - 1] > out[k]:
            known[at] = known[at - 1]
            at -= 1
        known[at] = out[k]
    size, at = len(out) - taken, 0
    clocks, places = times[taken : len(out)], out[taken:]
    clocks[:] = np.inf
    for place in range(first, first + degree):
        if at < taken and known[at] == place:
            at += 1
            continue
        state = state + GOLDEN
        u = (np.float64(mix64(state) >> _11) + 0.5) * 2.0**-53
        rate = np.float64(weight[place])
        if 1.0 - u >= clocks[0] * rate:  # -log(u) is at least 1 - u: most places of a long row need no logarithm
            continue
        time = min(-math.log(u) / rate, _LARGEST)
        if time >= clocks[0]:
            continue
        hole = 0
        while 2 * hole + 1 < size:
            child = 2 * hole + 1
            if child + 1 < size and clocks[child + 1] > clocks[child]:
                child += 1
            if clocks[child] <= time:
                break
            clocks[hole], places[hole] = clocks[child], places[child]
            hole = child
        clocks[hole], places[hole] = time, place
