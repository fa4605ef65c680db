"""How the in-edges of a hop are drawn: uniformly, with or without replacement."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.rng import mix64, uniform_below
from lightning_gnnopt.sampling.topology import Topology

_ONE = np.uint64(1)


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


class Draw(Protocol):
    """Draws in-edges of the nodes of a hop. Called from many threads at once."""

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
        ...


class UniformDraw(Draw):
    """Up to `size` in-edges of each node, every set of that size equally likely.

    Args:
        topology: The graph.
        replace: Draw `size` times independently instead, so that an edge can be drawn twice.
    """

    def __init__(self, topology: Topology, *, replace: bool = False) -> None:
        self.topology = topology
        self.replace = replace

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        indptr = self.topology.indptr
        colptr = np.empty(len(frontier) + 1, np.int64)
        count_drawn(indptr, frontier, size, self.replace, colptr)
        positions = np.empty(colptr[-1], self.topology.position_dtype)
        draw_uniform(indptr, frontier, size, self.replace, key, colptr, positions)
        return Drawn(positions, colptr)


@njit(nogil=True, cache=True)
def count_drawn(
    indptr: NDArray[np.int64], frontier: NDArray[np.integer], fanout: int, replace: bool, colptr: NDArray[np.int64]
) -> None:
    """Write where the edges drawn for each node start and end into `colptr`, shape ``(F + 1,)``."""
    n = len(frontier)
    colptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(indptr, frontier[i + AHEAD])
        v = frontier[i]
        degree = indptr[v + 1] - indptr[v]
        if fanout < 0 or (degree < fanout and not (replace and degree > 0)):
            colptr[i + 1] = colptr[i] + degree
        else:
            colptr[i + 1] = colptr[i] + fanout


@njit(nogil=True, cache=True)
def draw_uniform(
    indptr: NDArray[np.int64],
    frontier: NDArray[np.integer],
    fanout: int,
    replace: bool,
    key: np.uint64,
    colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
) -> None:
    """Draw positions of in-edges uniformly.

    Args:
        indptr: Shape ``(N + 1,)``.
        frontier: Global ids of the nodes to expand, shape ``(F,)``.
        fanout: In-edges per node; -1 takes all of them.
        replace: Whether an edge can be drawn twice.
        key: Word that keys this hop's random numbers.
        colptr: What :func:`count_drawn` wrote.
        positions: Output, shape ``(colptr[-1],)``.
    """
    for i in range(len(frontier)):
        v = frontier[i]
        first = indptr[v]
        degree = indptr[v + 1] - first
        start = colptr[i]
        count = colptr[i + 1] - start
        if fanout < 0 or (degree <= fanout and not replace):
            for k in range(count):
                positions[start + k] = first + k
        elif replace:
            state = mix64(key ^ np.uint64(i))
            for k in range(count):
                draw, state = uniform_below(state, np.uint64(degree))
                positions[start + k] = first + np.int64(draw)
        else:
            draw_positions(degree, fanout, first, mix64(key ^ np.uint64(i)), positions[start : start + count])


@njit(nogil=True, cache=True)
def draw_positions(degree: int, fanout: int, first: int, state: np.uint64, out: NDArray[np.integer]) -> None:
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
