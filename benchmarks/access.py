"""How fast this machine reads memory at random: the bound of any sampler."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.harness import median
from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.sampling.prefetch import prefetch

DISTANCES = (0, 64, 128, 256, 512)  # 0 does not prefetch


class RandomAccess:
    """The accesses that a sampled edge cannot avoid: one read of a neighbour, one of the numbering table.

    Nothing else is done: the positions are drawn beforehand, uniformly over the edges; what is read is only added up.
    The reads run with the hint that our kernels use, at several distances, and without it.

    Args:
        topology: The graph.
        num_reads: Edges per run.
        num_runs: Sets of positions that take turns, so that no run finds what the one before left in the cache.
        seed: Seed of the positions.
    """

    def __init__(self, topology: Topology, num_reads: int, *, num_runs: int = 8, seed: int = 0) -> None:
        generator = np.random.default_rng(seed)
        self._indices = topology.indices
        self._table = np.zeros(topology.num_nodes, np.uint32)
        self._sources = np.empty(num_reads, topology.indices.dtype)
        self._positions = [
            generator.integers(0, topology.num_edges, num_reads).astype(topology.position_dtype)
            for _ in range(num_runs)
        ]

    def edges_per_s(self, distance: int) -> float:
        """Read all sets once, and return the rate.

        Args:
            distance: How many edges ahead to prefetch; 0 for plain loops, which leave the overlap to the processor.
        """
        start = time.perf_counter()
        for positions in self._positions:
            if distance:
                _read_ahead(self._indices, positions, self._table, self._sources, distance)
            else:
                _read(self._indices, positions, self._table)
        return sum(len(positions) for positions in self._positions) / (time.perf_counter() - start)

    def best_distance(self) -> int:
        """Return the distance with the highest rate, by the median of three rounds over all of them."""
        rounds = [{distance: self.edges_per_s(distance) for distance in DISTANCES} for _ in range(3)]
        return max(DISTANCES, key=lambda distance: median([rates[distance] for rates in rounds]))


@njit(nogil=True, cache=True)
def _read(indices: Any, positions: Any, table: NDArray[np.uint32]) -> np.uint64:
    total = np.uint64(0)
    for e in range(np.uint64(len(positions))):
        total += table[np.uint64(indices[np.uint64(positions[e])])]
    return total


@njit(nogil=True, cache=True)
def _read_ahead(indices: Any, positions: Any, table: NDArray[np.uint32], sources: Any, distance: int) -> np.uint64:
    n, ahead, total = np.uint64(len(positions)), np.uint64(distance), np.uint64(0)
    for e in range(n):
        if e + ahead < n:
            prefetch(indices, positions[e + ahead])
        sources[e] = indices[np.uint64(positions[e])]
    for e in range(n):
        if e + ahead < n:
            prefetch(table, sources[e + ahead])
        total += table[np.uint64(sources[e])]
    return total
