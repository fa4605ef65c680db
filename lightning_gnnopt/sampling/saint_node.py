"""GraphSAINT's node sampler."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.saint import SaintSampler, first_above, inclusion_norms, uniform
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class SaintNodeSampler(SaintSampler):
    """Draw nodes independently, those that feed many others more often, and take the subgraph between them.

    GraphSAINT's node sampler (Zeng et al., ICLR 2020): a node is drawn with a chance proportional to the squared norm
    of its column in the normalised adjacency ``D^-1 (A + I)``. `A` is without the graph's own self loops, each node has
    one instead, and ``D`` holds the in-degrees: node `u` weighs ``1 / d(u)^2 + sum(1 / d(v)^2)`` over its out-edges to
    `v`. The self loop gives every node a chance, an isolated one too. Both norms are exact.

    Seeds only say how many draws are made: as many as there are. The drawn nodes are the batch's seeds.

    Args:
        topology: The graph. Two float64 arrays of shape ``(N,)`` are kept besides.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> graph = Topology.from_edge_index(torch.tensor([[0, 0, 0], [1, 2, 3]]), num_nodes=4)
        >>> sampler = SaintNodeSampler(graph)
        >>> sampler.chances.round(3)  # 0 feeds all others: 1 + 3 / 4, and 1 / 4 each
        array([0.7, 0.1, 0.1, 0.1])
        >>> batch = sampler.sample(np.arange(4), SampleKey(seed=0))
        >>> batch.n_id, batch.node_norm  # 1 / (1 - 0.3**4), 1 / (1 - 0.9**4)
        (array([0, 1], dtype=int32), array([1.0081662, 2.9078221], dtype=float32))
    """

    def __init__(self, topology: Topology) -> None:
        super().__init__(topology)
        weights = np.empty(topology.num_nodes)
        _squared_column_norms(topology.indptr, topology.indices, topology.in_degrees, weights)
        self.chances = weights / weights.sum()
        self._cumulative = np.cumsum(self.chances)

    @override
    def _draw_nodes(self, seeds: NDArray[np.integer], key: np.uint64) -> NDArray[np.integer]:
        drawn = np.empty(len(seeds), self.topology.indices.dtype)
        _draw(self._cumulative, key, drawn)
        return drawn

    @override
    def _norms(self, num_draws: int, batch: Subgraph) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        # One draw visits one node, never both ends of an edge.
        none = np.empty(0)
        return inclusion_norms(
            batch.row, batch.col, self.chances[batch.n_id], none, num_draws, none.astype(np.bool_), 0
        )


@njit(nogil=True, cache=True)
def _squared_column_norms(
    indptr: NDArray[np.int64],
    indices: NDArray[np.integer],
    degrees: NDArray[np.int32],
    out: NDArray[np.float64],
) -> None:
    times = np.zeros(len(out), np.int32)
    for v in range(len(out)):
        out[v] = 1 / (degrees[v] + 1.0) ** 2
    for v in range(len(out)):
        # Parallel edges are one larger entry: m of them add m * m.
        for p in range(indptr[v], indptr[v + 1]):
            times[indices[p]] += 1
        for p in range(indptr[v], indptr[v + 1]):
            if indices[p] != v:
                out[indices[p]] += times[indices[p]] / (degrees[v] + 1.0) ** 2
        for p in range(indptr[v], indptr[v + 1]):
            times[indices[p]] = 0


@njit(nogil=True, cache=True)
def _draw(cumulative: NDArray[np.float64], key: np.uint64, drawn: NDArray[np.integer]) -> None:
    for i in range(len(drawn)):
        drawn[i] = first_above(cumulative, uniform(key, i) * cumulative[-1])
