"""GraphSAINT's edge sampler."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.saint import SaintSampler, first_above, inclusion_norms, uniform
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology

_BLOCK = 64


class SaintEdgeSampler(SaintSampler):
    """Draw edges independently, those between nodes of few neighbours more often; take the subgraph between their ends.

    GraphSAINT's edge sampler (Zeng et al., ICLR 2020): an edge from `u` to `v` is drawn with a chance proportional to
    ``1 / deg(u) + 1 / deg(v)``. The degree is the number of in-edges from other nodes, at least 1: what a mean over
    messages divides by. Both norms are exact. A node without any edge is never drawn, and `node_norm` makes up for the
    chances of all others.

    Seeds only say how many draws are made: as many as there are. The drawn edges' end points are the batch's seeds.

    Args:
        topology: The graph. A float64 per node and one per 64 edges are kept besides.

    Raises:
        ValueError: If the graph has no edge.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> path = Topology.from_edge_index(torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]]), num_nodes=4)
        >>> batch = SaintEdgeSampler(path).sample(np.array([0]), SampleKey(seed=0))
        >>> batch.n_id, batch.row, batch.col
        (array([0, 1], dtype=int32), array([1, 0], dtype=int32), array([0, 1], dtype=int32))
        >>> batch.node_norm, batch.edge_norm  # node 1 is an end of every edge, node 0 of half of them
        (array([2., 1.], dtype=float32), array([1., 2.], dtype=float32))
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        if topology.num_edges == 0:
            raise ValueError(
                f"`topology` must have edges to draw from, but got {topology!r}."
                " HINT: SaintNodeSampler takes graphs without edges."
            )
        self._degrees = np.maximum(topology.in_degrees, 1)
        self._visits = np.zeros(topology.num_nodes)
        self._cumulative = np.zeros((topology.num_edges - 1) // _BLOCK + 1)
        _sum_weights(topology.indptr, topology.indices, self._degrees, self._cumulative, self._visits)
        np.cumsum(self._cumulative, out=self._cumulative)
        self._visits /= self._cumulative[-1]

    @override
    def _draw_nodes(self, seeds: NDArray[np.integer], key: np.uint64) -> NDArray[np.integer]:
        graph = self.topology
        ends = np.empty(2 * len(seeds), graph.indices.dtype)
        _draw(graph.indptr, graph.indices, self._degrees, self._cumulative, key, ends)
        return ends

    @override
    def _norms(self, num_draws: int, batch: Subgraph) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        both = np.empty(batch.num_edges)
        _visit_both(batch.row, batch.col, self._degrees[batch.n_id], self._cumulative[-1], both)
        return inclusion_norms(
            batch.row, batch.col, self._visits[batch.n_id], both, num_draws, np.empty(0, np.bool_), 0
        )


@njit(nogil=True, cache=True)
def _sum_weights(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    degrees: NDArray[np.int32],
    blocks: NDArray[np.float64],
    nodes: NDArray[np.float64],
) -> None:
    """Add the weight of each edge to its block of the CSC order, and to its end points."""
    for v in range(len(nodes)):
        for p in range(indptr[v], indptr[v + 1]):
            u = indices[p]
            weight = 1 / degrees[u] + 1 / degrees[v]
            blocks[p // _BLOCK] += weight
            nodes[v] += weight
            if u != v:
                nodes[u] += weight


@njit(nogil=True, cache=True)
def _draw(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    degrees: NDArray[np.int32],
    cumulative: NDArray[np.float64],
    key: np.uint64,
    ends: NDArray[np.integer],
) -> None:
    """Write source and destination of each drawn edge in turn: find its block, then walk to it."""
    for i in range(len(ends) // 2):
        rest = uniform(key, i) * cumulative[-1]
        block = first_above(cumulative, rest)
        rest -= cumulative[block - 1] if block > 0 else 0.0
        p = block * _BLOCK
        last = min(p + _BLOCK, len(indices)) - 1
        v = first_above(indptr, p) - 1
        while True:
            while indptr[v + 1] <= p:
                v += 1
            rest -= 1 / degrees[indices[p]] + 1 / degrees[v]
            if rest < 0 or p == last:  # rounding may leave a rest
                break
            p += 1
        ends[2 * i] = indices[p]
        ends[2 * i + 1] = v


@njit(nogil=True, cache=True)
def _visit_both(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    degrees: NDArray[np.int32],
    total: float,
    out: NDArray[np.float64],
) -> None:
    """For each edge of a batch the chance that one draw takes it, a parallel or an opposite one.

    All of them are in the batch: count them per destination, which `col` is grouped by in ascending order.
    """
    num_nodes, num_edges = len(degrees), len(row)
    starts = np.zeros(num_nodes + 1, np.int64)  # out-edges by source
    for e in range(num_edges):
        starts[row[e] + 1] += 1
    for u in range(num_nodes):
        starts[u + 1] += starts[u]
    targets = np.empty(num_edges, np.int32)
    cursor = starts[:-1].copy()
    for e in range(num_edges):
        targets[cursor[row[e]]] = col[e]
        cursor[row[e]] += 1
    times = np.zeros(num_nodes, np.int64)
    first = 0
    while first < num_edges:
        v = col[first]
        end = first
        while end < num_edges and col[end] == v:
            times[row[end]] += 1
            end += 1
        for p in range(starts[v], starts[v + 1]):
            times[targets[p]] += 1
        for e in range(first, end):
            u = row[e]
            out[e] = times[u] * (1 / degrees[u] + 1 / degrees[v]) / total
        for e in range(first, end):
            times[row[e]] = 0
        for p in range(starts[v], starts[v + 1]):
            times[targets[p]] = 0
        first = end
