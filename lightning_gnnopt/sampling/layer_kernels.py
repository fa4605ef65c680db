"""What samplers share that look at all in-edges of a hop: the list of them, and draws from it by chances of nodes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.draws import Drawn
from lightning_gnnopt.sampling.prefetch import AHEAD, prefetch
from lightning_gnnopt.sampling.rng import mix64
from lightning_gnnopt.sampling.topology import Topology

_LISTS_AHEAD = 8
_11 = np.uint64(11)


class InEdges(NamedTuple):
    """All in-edges of a hop's nodes, grouped by the node they lead to.

    Attributes:
        colptr: Int64 array of shape ``(F + 1,)``: those of the hop's node ``i`` are ``colptr[i]:colptr[i + 1]``.
        offsets: Int64 array of shape ``(F,)``: in-edge ``e`` of node ``i`` is at ``e + offsets[i]`` in the CSC order.
        sources: Global ids of their sources, shape ``(E',)``.
        position_dtype: Type that holds a position in the CSC order.
    """

    colptr: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sources: NDArray[np.integer]
    position_dtype: type[np.signedinteger[Any]]

    def take_all(self) -> Drawn:
        """Draw all of them; each stands for itself."""
        positions = np.repeat(self.offsets, np.diff(self.colptr)) + np.arange(len(self.sources))
        return Drawn(positions.astype(self.position_dtype), self.colptr, np.ones(len(self.sources), np.float32))

    def room(self) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Make room for the position and the weight of each; what a draw leaves unused is never touched."""
        return np.empty(len(self.sources), self.position_dtype), np.empty(len(self.sources), np.float32)


def in_edges(topology: Topology, frontier: NDArray[np.integer]) -> InEdges:
    """List all in-edges of the nodes of `frontier`, shape ``(F,)``; a node that stands twice has its in-edges twice."""
    colptr, offsets = np.empty(len(frontier) + 1, np.int64), np.empty(len(frontier), np.int64)
    _count_in_edges(topology.indptr, frontier, colptr, offsets)
    sources = np.empty(colptr[-1], topology.indices.dtype)
    _list_sources(topology.indices, colptr, offsets, sources)
    return InEdges(colptr, offsets, sources, topology.position_dtype)


@njit(nogil=True, cache=True)
def _count_in_edges(
    indptr: NDArray[np.int64], frontier: NDArray[np.integer], colptr: NDArray[np.int64], offsets: NDArray[np.int64]
) -> None:
    n = len(frontier)
    colptr[0] = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(indptr, frontier[i + AHEAD])
        first = indptr[frontier[i]]
        offsets[i] = first - colptr[i]
        colptr[i + 1] = indptr[frontier[i] + 1] - offsets[i]


@njit(nogil=True, cache=True)
def _list_sources(
    indices: NDArray[np.integer], colptr: NDArray[np.int64], offsets: NDArray[np.int64], sources: NDArray[np.integer]
) -> None:
    n = len(offsets)
    for i in range(n):
        if i + _LISTS_AHEAD < n:
            prefetch(indices, colptr[i + _LISTS_AHEAD] + offsets[i + _LISTS_AHEAD])
        start, stop = colptr[i], colptr[i + 1]
        sources[start:stop] = indices[start + offsets[i] : stop + offsets[i]]


@njit(nogil=True, cache=True)
def draw_with_replacement(cumulative: NDArray[np.float64], count: int, key: np.uint64) -> NDArray[np.int64]:
    """Draw `count` times independently, each element as likely as its weight says.

    Args:
        cumulative: Cumulative weights, shape ``(C,)``; the last one is positive.
        count: Number of draws.
        key: Word that keys the random numbers; draw ``i`` has 53 bits of ``mix64(key ^ i)``.

    Returns:
        Drawn elements, shape ``(count,)``. One of weight 0 is never drawn.
    """
    drawn = np.empty(count, np.int64)
    total = cumulative[len(cumulative) - 1]
    for i in range(count):
        # Rounding cannot reach `total`: the largest draw is 1 - 2**-53, more than half a unit of `total` below it.
        point = (mix64(key ^ np.uint64(i)) >> _11) * 2.0**-53 * total
        low, high = 0, len(cumulative) - 1
        while low < high:
            middle = (low + high) // 2
            if cumulative[middle] > point:
                high = middle
            else:
                low = middle + 1
        drawn[i] = low
    return drawn


def edges_from_drawn(
    every: InEdges, locals_: NDArray[np.int32], weights: NDArray[np.float64], *, normalize: bool = False
) -> Drawn:
    """Keep the in-edges whose source was drawn.

    Args:
        every: All in-edges of the hop's nodes.
        locals_: Which element of `weights` each in-edge's source is, shape ``(E',)``; -1 if it was not drawn.
        weights: How many each drawn node stands for, shape ``(C,)``; 0 if it was not drawn.
        normalize: Scale the weights of a node's kept in-edges so that their sum is its in-degree.

    Returns:
        The kept edges with their sources' weights as `edge_norm`.
    """
    colptr = np.empty(len(every.colptr), np.int64)
    positions, norms = every.room()
    count = int(_keep_drawn(every.colptr, every.offsets, locals_, weights, normalize, colptr, positions, norms))
    return Drawn(positions[:count], colptr, norms[:count])


@njit(nogil=True, cache=True)
def _keep_drawn(
    colptr: NDArray[np.int64],
    offsets: NDArray[np.int64],
    locals_: NDArray[np.int32],
    weights: NDArray[np.float64],
    normalize: bool,
    kept_colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
    norms: NDArray[np.float32],
) -> int:
    at = 0
    kept_colptr[0] = 0
    for i in range(len(offsets)):
        total = 0.0
        for e in range(colptr[i], colptr[i + 1]):
            weight = weights[locals_[e]] if locals_[e] >= 0 else 0.0
            # Without a branch: written to the next place always, and kept there if it was drawn.
            positions[at] = e + offsets[i]
            norms[at] = weight
            total += weight
            at += 1 if weight > 0.0 else 0
        if normalize:
            for place in range(kept_colptr[i], at):
                norms[place] *= (colptr[i + 1] - colptr[i]) / total
        kept_colptr[i + 1] = at
    return at
