"""LABOR-i's draw: chances that favour nodes which many nodes of the hop can use."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw, Drawn
from lightning_gnnopt.sampling.layer_kernels import in_edges
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, TablePool
from lightning_gnnopt.sampling.rng import mix64
from lightning_gnnopt.sampling.topology import Topology

_TOLERANCE = 1e-4
_NOTHING = np.empty(0, np.int32)
_11 = np.uint64(11)


class ImportanceLaborDraw(Draw):
    """LABOR-i: chances ``min(1, c_s * pi_t)`` that differ, at the variance of `size` equally likely in-neighbours.

    For a node ``s`` of in-degree ``d > size``, ``c_s`` solves ``sum(1 / min(1, c_s * pi_t)) = d**2 / size`` over its
    in-edges; a node of smaller in-degree takes them all. ``pi`` starts at 1, and each iteration multiplies ``pi_t`` by
    the largest ``c_s`` among the nodes that could take ``t``. The expected number of nodes never rises.

    The random number of node ``t`` is made of the upper 53 bits of ``mix64(key ^ t)``, exact in a float64.

    Args:
        topology: The graph.
        iterations: How many; -1: until the expected number of nodes falls by less than one in ten thousand.
        dense_limit_bytes: As of `NodeTable`.
    """

    def __init__(self, topology: Topology, iterations: int, *, dense_limit_bytes: int = DENSE_LIMIT_BYTES) -> None:
        self.topology = topology
        self.iterations = iterations
        self._tables = TablePool(topology.num_nodes, dense_limit_bytes=dense_limit_bytes)

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        every = in_edges(self.topology, frontier)
        if size < 0:
            return every.take_all()
        with self._tables.borrow() as table:
            table.start(_NOTHING)
            nodes, locals_ = table.number(every.sources)
        scales, inverses = np.empty(len(frontier)), np.ones(len(nodes))
        _improve(every.colptr, locals_, size, self.iterations, scales, inverses)
        colptr = np.empty(len(frontier) + 1, np.int64)
        positions, norms = every.room()
        arguments = (every.colptr, every.offsets, locals_, nodes, np.uint64(key), scales, inverses)
        count = int(_draw_weighted(*arguments, colptr, positions, norms))
        return Drawn(positions[:count], colptr, norms[:count])


@njit(nogil=True, cache=True)
def _solve_scales(
    colptr: NDArray[np.int64],
    locals_: NDArray[np.int32],
    fanout: int,
    inverses: NDArray[np.float64],
    scales: NDArray[np.float64],
) -> None:
    """Write ``c_s`` of each node into `scales`, shape ``(F,)``, given ``1 / pi_t`` as `inverses`.

    No chance exceeds 1, so none has to be cut. ``pi`` starts at 1, where ``c_s = min(1, k / d)``. As long as no ``c_s``
    exceeds 1, ``pi`` does not grow; the new ``pi_t`` is at least the old ``c_s * pi_t``, whose inverses have the sum
    ``d**2 / k``, so the new ``c_s`` does not exceed 1 either. Of a node that takes all, the sources keep ``pi_t = 1``.
    """
    for i in range(len(scales)):
        degree = float(colptr[i + 1] - colptr[i])
        total = 0.0
        if degree > fanout:
            for e in range(colptr[i], colptr[i + 1]):
                total += inverses[locals_[e]]
        scales[i] = total * fanout / (degree * degree) if degree > fanout else 1.0


@njit(nogil=True, cache=True)
def _improve(
    colptr: NDArray[np.int64],
    locals_: NDArray[np.int32],
    fanout: int,
    iterations: int,
    scales: NDArray[np.float64],
    inverses: NDArray[np.float64],
) -> None:
    """Run LABOR's fixed-point iteration.

    Args:
        colptr: Where the in-edges of each node start and end, shape ``(F + 1,)``.
        locals_: Local id of each in-edge's source, shape ``(E',)``.
        fanout: Number of equally likely in-neighbours whose variance is to be met.
        iterations: How many; -1: until convergence.
        scales: Output ``c``, shape ``(F,)``.
        inverses: ``1 / pi``, ones of shape ``(C,)``; improved in place.
    """
    largest = np.empty(len(inverses))
    expected, done = np.inf, 0
    for i in range(len(scales)):  # what _solve_scales finds for equal chances
        scales[i] = min(1.0, fanout / max(colptr[i + 1] - colptr[i], 1))
    while done != iterations:
        largest[:] = 0.0
        for i in range(len(scales)):
            for e in range(colptr[i], colptr[i + 1]):
                largest[locals_[e]] = max(largest[locals_[e]], scales[i])
        total = 0.0
        for t in range(len(inverses)):
            total += min(1.0, largest[t] / inverses[t])
        if iterations < 0 and total >= (1.0 - _TOLERANCE) * expected:
            return
        expected = total
        done += 1
        inverses /= largest
        _solve_scales(colptr, locals_, fanout, inverses, scales)


@njit(nogil=True, cache=True)
def _draw_weighted(
    colptr: NDArray[np.int64],
    offsets: NDArray[np.int64],
    locals_: NDArray[np.int32],
    nodes: NDArray[np.integer],
    key: np.uint64,
    scales: NDArray[np.float64],
    inverses: NDArray[np.float64],
    drawn_colptr: NDArray[np.int64],
    positions: NDArray[np.integer],
    norms: NDArray[np.float32],
) -> int:
    """Draw from the in-edges, as :func:`_improve` left the chances.

    Args:
        colptr: As of `InEdges`.
        offsets: As of `InEdges`.
        locals_: Local id of each in-edge's source, shape ``(E',)``.
        nodes: Global ids of the sources, shape ``(C,)``.
        key: Word that keys this hop's random numbers.
        scales: ``c``, shape ``(F,)``.
        inverses: ``1 / pi``, shape ``(C,)``.
        drawn_colptr: Output, as `Drawn.colptr`.
        positions: Output, room for ``E'`` positions.
        norms: Output, room for ``E'`` inverse chances.

    Returns:
        Number of drawn in-edges.
    """
    # An edge is drawn if r_t < c_s * pi_t, which is r_t / pi_t < c_s: one number of each source to look up.
    bars = np.empty(len(nodes))
    for t in range(len(nodes)):
        bars[t] = (mix64(key ^ np.uint64(nodes[t])) >> _11) * 2.0**-53 * inverses[t]
    at = 0
    drawn_colptr[0] = 0
    for i in range(len(scales)):
        scale = scales[i]
        for e in range(colptr[i], colptr[i + 1]):
            # Without a branch: written to the next place always, and kept there if it is drawn.
            positions[at] = e + offsets[i]
            norms[at] = max(1.0, inverses[locals_[e]] / scale)  # 1 where rounding left a chance just above it
            at += 1 if bars[locals_[e]] < scale else 0
        drawn_colptr[i + 1] = at
    return at
