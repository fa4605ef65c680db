"""Whether an edge joins two nodes."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.kernels import coo_to_csc
from lightning_gnnopt.sampling.topology import Topology


class EdgeLookup:
    """Tells whether an edge joins two nodes, by bisection in the destination's in-neighbours.

    Args:
        topology: The graph. Where a node's in-neighbours are not in ascending order, a sorted copy is made once (4 or 8
            bytes per edge), in linear time.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import Topology
        >>> graph = Topology.from_edge_index(torch.tensor([[2, 0], [1, 1]]), num_nodes=3)
        >>> EdgeLookup(graph).contains(np.array([2, 1]), np.array([1, 2]))
        array([ True, False])
    """

    def __init__(self, topology: Topology) -> None:
        self.indptr, self.sources = topology.indptr, topology.indices
        falls = np.flatnonzero(self.sources[1:] < self.sources[:-1]) + 1
        if not np.isin(falls, self.indptr).all():
            self.sources = _sorted_rows(self.indptr, self.sources)

    def contains(self, sources: NDArray[np.integer], targets: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether an edge leads from ``sources[i]`` to ``targets[i]``, shape ``(P,)``."""
        out = np.empty(len(targets), np.bool_)
        _contains(self.indptr, self.sources, sources, targets, out)
        return out


def _sorted_rows(indptr: NDArray[np.int64], sources: NDArray[np.integer]) -> NDArray[np.integer]:
    """Sort each node's in-neighbours: the stable counting sort of the edges by source, then by destination."""
    num_sources = int(sources.max()) + 1
    by_source, targets = np.zeros(num_sources + 1, np.int64), np.empty(len(sources), np.int64)
    coo_to_csc(np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), sources, by_source, targets)
    out = np.empty_like(sources)
    coo_to_csc(np.repeat(np.arange(num_sources), np.diff(by_source)), targets, np.zeros_like(indptr), out)
    return out


@njit(nogil=True, cache=True)
def is_edge(
    indptr: NDArray[np.int64], rows: NDArray[np.integer], source: int | np.int64, target: int | np.int64
) -> bool:
    """Whether `source` is among the in-neighbours of `target`; `rows` holds each node's in ascending order."""
    low, end = indptr[target], indptr[target + 1]
    high = end
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < source:
            low = middle + 1
        else:
            high = middle
    return bool(low < end and rows[low] == source)


@njit(nogil=True, cache=True)
def _contains(
    indptr: NDArray[np.int64],
    rows: NDArray[np.integer],
    sources: NDArray[np.integer],
    targets: NDArray[np.integer],
    out: NDArray[np.bool_],
) -> None:
    for i in range(len(targets)):
        out[i] = is_edge(indptr, rows, np.int64(sources[i]), np.int64(targets[i]))
