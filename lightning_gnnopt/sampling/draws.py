"""How the in-edges of a hop are drawn: uniformly, with or without replacement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.buffers import Buffer
from lightning_gnnopt.sampling.kernels import columns
from lightning_gnnopt.sampling.prefetch import NODES_AHEAD, prefetch
from lightning_gnnopt.sampling.rng import GOLDEN, LOW_32, ONE, bounded, mix64, uniform_below
from lightning_gnnopt.sampling.topology import Topology

_32, _63 = np.uint64(32), np.uint64(63)
_INT32_1 = np.int32(1)
MAX_ROOM = 2**22
"""Positions of a hop: below it, room for the most that can be drawn is cheaper than counting first."""
_FLOYD_MAX = np.uint64(32)  # up to here looking back beats reading on, whatever the degree


class Drawn(NamedTuple):
    """The in-edges drawn for a hop, grouped by the node they lead to.

    Attributes:
        positions: Their positions in the topology's CSC order, shape ``(E',)``.
        colptr: Int64 array of shape ``(F + 1,)``: those of the hop's node ``i`` are ``colptr[i]:colptr[i + 1]``.
        edge_norm: Float32 of shape ``(E',)``, see `Subgraph.edge_norm`; None where all of a node's count alike.
    """

    positions: NDArray[np.integer]
    colptr: NDArray[np.int64]
    edge_norm: NDArray[np.float32] | None = None


class Draw(ABC):
    """Draws in-edges of the nodes of a hop. Called from many threads at once."""

    @abstractmethod
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        """Draw a hop.

        Args:
            frontier: Global ids of the nodes to expand, shape ``(F,)``; one may stand twice.
            size: The hop's size: in-edges per node for node-wise draws, nodes per hop for layer-wise ones; -1 takes
                all in-edges.
            key: Word that keys this hop's random numbers.
            time: For each node to expand the latest time its sources may have, shape ``(F,)``; None if there is none.

        Returns:
            The drawn in-edges, of the first node first.
        """

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
    ) -> tuple[NDArray[np.int64], NDArray[np.float32] | None]:
        """Draw a hop and append its edges to two buffers: their positions, and the local ids of where they lead to.

        `first` is the local id of the first node to expand; the others follow it.

        Returns:
            The hop's ``colptr`` and ``edge_norm``.
        """
        drawn = self(frontier, size, key, time=time)
        positions.extend(drawn.positions)
        append_columns(drawn.colptr, first, cols)
        return drawn.colptr, drawn.edge_norm


def append_columns(colptr: NDArray[np.int64], first: int, cols: Buffer) -> None:
    """Append the local id of the node that each edge of a hop leads to."""
    num = int(colptr[-1])
    columns(colptr, first, out=cols.tail(num))
    cols.push(num)


class AppendingDraw(Draw):
    """A draw that writes into buffers itself, and whose edges of a node all count alike."""

    topology: Topology

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        positions, cols = Buffer(self.topology.position_dtype, 0), Buffer(np.int32, 0)
        colptr, _ = self.append(frontier, size, key, positions, cols, first=0, time=time)
        return Drawn(positions.finish(), colptr)

    @override
    @abstractmethod
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
    ) -> tuple[NDArray[np.int64], None]: ...


class UniformDraw(AppendingDraw):
    """Up to `size` in-edges of each node, every set of that size equally likely.

    Args:
        topology: The graph.
        replace: Draw `size` times independently instead, so that an edge can be drawn twice.
    """

    def __init__(self, topology: Topology, *, replace: bool = False) -> None:
        self.topology = topology
        self.replace = replace

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
        indptr = self.topology.indptr
        room, colptr = room_for(indptr, frontier, size, self.replace)
        out = colptr, positions.tail(room), cols.tail(room)
        num = int(draw_uniform(indptr, frontier, size, self.replace, key, np.int32(first), *out))
        positions.push(num)
        cols.push(num)
        return colptr, None


def room_for(
    indptr: NDArray[np.int64], frontier: NDArray[np.integer], fanout: int, replace: bool
) -> tuple[int, NDArray[np.int64]]:
    """Return how many positions to make room for in a hop, and an array for its ``colptr``."""
    colptr = np.empty(len(frontier) + 1, np.int64)
    room = len(frontier) * fanout
    if fanout < 0 or room > MAX_ROOM:
        count_drawn(indptr, frontier, fanout, replace, colptr)
        room = int(colptr[-1])
    return room, colptr


@njit(nogil=True, cache=True)
def count_drawn(
    indptr: NDArray[np.int64], frontier: NDArray[np.integer], fanout: int, replace: bool, colptr: NDArray[np.int64]
) -> None:
    """Write where the edges drawn for each node start and end into `colptr`, shape ``(F + 1,)``."""
    n = np.uint64(len(frontier))
    total = np.int64(0)
    colptr[0] = 0
    for i in range(n):
        if i + NODES_AHEAD < n:
            prefetch(indptr, frontier[i + NODES_AHEAD])
            prefetch(indptr, frontier[i + NODES_AHEAD] + 1)  # in one of eight cases the next line
        v = np.uint64(frontier[i])
        degree = indptr[v + ONE] - indptr[v]
        if fanout < 0 or degree == 0:
            total += degree
        elif replace:
            total += fanout
        else:
            total += min(degree, fanout)
        colptr[i + ONE] = total


@njit(nogil=True, cache=True)
def draw_uniform(
    indptr: NDArray[np.int64],
    frontier: NDArray[np.integer],
    fanout: int,
    replace: bool,
    key: np.uint64,
    local: np.int32,
    colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
    cols: NDArray[np.int32],
) -> np.uint64:
    """Draw positions of in-edges uniformly.

    Args:
        indptr: Shape ``(N + 1,)``.
        frontier: Global ids of the nodes to expand, shape ``(F,)``.
        fanout: In-edges per node; -1 takes all of them.
        replace: Whether an edge can be drawn twice.
        key: Word that keys this hop's random numbers.
        local: Local id of the first node to expand; the others follow it.
        colptr: Output, shape ``(F + 1,)``: where the edges drawn for each node start and end.
        positions: Output, at least ``F * fanout`` places, or as many as :func:`count_drawn` counts.
        cols: Output, as long: the local id of the node that each edge leads to.

    Returns:
        The number of positions drawn.
    """
    n = np.uint64(len(frontier))
    take_all = fanout < 0
    limit = np.uint64(fanout)
    words = words_of(fanout, replace)
    at = np.uint64(0)
    colptr[0] = 0
    for i in range(n):
        if i + NODES_AHEAD < n:
            prefetch(indptr, frontier[i + NODES_AHEAD])
            prefetch(indptr, frontier[i + NODES_AHEAD] + 1)  # in one of eight cases the next line
        v = np.uint64(frontier[i])
        first = np.uint64(indptr[v])
        degree = np.uint64(indptr[v + ONE]) - first
        if take_all or degree == 0 or (degree <= limit and not replace):
            for k in range(degree):
                positions[at + k] = first + k
                cols[at + k] = local
            at += degree
        else:
            state = key + i * words * GOLDEN
            if replace:
                for k in range(limit):
                    state += GOLDEN
                    word = mix64(state)
                    positions[at + k] = first + bounded(word >> _32, degree, word)
            elif limit <= _FLOYD_MAX:  # as `draw_positions` chooses, with a call less
                _draw_few(degree, limit, first, state, at, positions)
            else:
                draw_positions(degree, limit, first, state, at, positions)
            for k in range(limit):
                cols[at + k] = local
            at += limit
        local += _INT32_1
        colptr[i + ONE] = at
    return at


@njit(nogil=True, cache=True)
def words_of(fanout: int, replace: bool) -> np.uint64:
    """Length of a node's stretch of the stream of random words that serves a hop; node ``i`` has the stretch ``i``."""
    return np.uint64(fanout) if replace else (np.uint64(fanout) + ONE) >> ONE  # two draws a word: see `_draw_few`


@njit(nogil=True, cache=True)
def draw_positions(
    degree: np.uint64,
    count: np.uint64,
    first: np.uint64,
    state: np.uint64,
    start: np.uint64,
    positions: NDArray[np.integer],
) -> None:
    """Write `count` < `degree` distinct positions of ``first .. first + degree - 1``, every subset equally likely.

    Args:
        degree: Number of positions to choose from.
        count: Number of positions to choose.
        first: The first of them.
        state: Start of the node's stretch of the stream of random words.
        start: Where in `positions` to write.
        positions: Output.
    """
    if count <= _FLOYD_MAX or count * count <= degree + degree:
        _draw_few(degree, count, first, state, start, positions)
    else:
        # It takes more words than it has a stretch of the stream for.
        _draw_many(degree, count, first, mix64(state), start, positions)


@njit(nogil=True, cache=True)
def _draw_few(
    degree: np.uint64,
    count: np.uint64,
    first: np.uint64,
    state: np.uint64,
    start: np.uint64,
    positions: NDArray[np.integer],
) -> None:
    """Floyd's draw, quadratic in `count` at worst.

    Draw ``k`` is uniform over ``[0, j]`` inclusive with ``j = degree - count + k``; if it was chosen before, ``j``
    is taken instead (Bentley & Floyd, CACM 1987). A 64-bit mask of the draws' low bits tells in most cases that a draw
    is new, without looking back. One word of the stream serves two draws.
    """
    seen = word = np.uint64(0)
    j = degree - count
    for k in range(count):
        if k & ONE == 0:
            state += GOLDEN
            word = mix64(state)
            half = word >> _32
        else:
            half = word & LOW_32
        draw = bounded(half, j + ONE, word ^ k)
        bit = ONE << (draw & _63)
        if seen & bit:
            for q in range(start, start + k):
                if np.uint64(positions[q]) == first + draw:
                    draw = j
                    bit = ONE << (draw & _63)
                    break
        seen |= bit
        positions[start + k] = first + draw
        j += ONE


@njit(nogil=True, cache=True)
def _draw_many(
    degree: np.uint64,
    count: np.uint64,
    first: np.uint64,
    state: np.uint64,
    start: np.uint64,
    positions: NDArray[np.integer],
) -> None:
    """Selection sampling (Knuth, TAOCP volume 2, algorithm S), linear in `degree`."""
    taken = np.uint64(0)
    for j in range(degree):
        draw, state = uniform_below(state, degree - j)
        if draw < count - taken:
            positions[start + taken] = first + j
            taken += ONE
            if taken == count:
                return
