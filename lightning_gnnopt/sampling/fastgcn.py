"""Layer-wise sampling with chances that are the same for all batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw, Drawn
from lightning_gnnopt.sampling.hopwise import HopwiseSampler
from lightning_gnnopt.sampling.layer_kernels import draw_with_replacement, edges_from_drawn, in_edges
from lightning_gnnopt.sampling.neighbor import check_fanouts
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES, TablePool
from lightning_gnnopt.sampling.topology import Topology

_NOTHING = np.empty(0, np.int32)


class FastGCNSampler(HopwiseSampler):
    """Draw `layer_sizes[k]` nodes of the whole graph in hop ``k``, and keep the edges from these.

    The method is FastGCN's (Chen, Ma & Xiao, "FastGCN: fast learning with graph convolutional networks via importance
    sampling", ICLR 2018). Nodes are drawn independently and with replacement. The chance ``p_u`` of node ``u`` is
    proportional to the squared norm of its column of the normalised adjacency: here that of mean aggregation,
    ``1 / indegree(v)`` for an edge ``u -> v``, so ``p_u`` is proportional to the sum of ``1 / indegree(v)**2`` over its
    out-edges. All edges from drawn nodes to the hop's nodes are kept, each with the `edge_norm` ``count_u / (n * p_u)``
    for ``count_u`` of ``n`` draws. A model must multiply messages by it and divide their sum by the true in-degree;
    `GraphDataModule` brings it into the batch, PyG's `NodeLoader` has no place for it.

    A node none of whose in-neighbours was drawn has no in-edge. On a large graph that is most nodes of a small batch:
    `LadiesSampler` draws among the in-neighbours only.

    The paper draws each layer's nodes anew. Here a batch is one graph as in PyG: a node is expanded once, by the hop
    that found it, and its in-edges serve all layers; those of the seeds come from the first hop. A hop draws for the
    nodes that the hop before it found first. All in-edges of these are looked at, so that time grows with their
    in-degrees.

    Args:
        topology: The graph.
        layer_sizes: Number of draws in each hop, the seeds' own first; -1 takes all in-edges.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `layer_sizes` is empty, or a size is 0 or below -1.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> chain = Topology.from_edge_index(torch.tensor([[2, 1], [1, 0]]), num_nodes=3)
        >>> batch = FastGCNSampler(chain, layer_sizes=[4]).sample(np.array([0]), SampleKey(seed=0))
        >>> batch.n_id, batch.edge_norm  # two of the four draws were node 1, whose chance is a half
        (array([0, 1], dtype=int32), array([1.], dtype=float32))
    """

    def __init__(
        self, topology: Topology, layer_sizes: Sequence[int], *, dense_limit_bytes: int = DENSE_LIMIT_BYTES
    ) -> None:
        self.layer_sizes = check_fanouts(layer_sizes, name="layer_sizes")
        super().__init__(topology, self.layer_sizes, dense_limit_bytes=dense_limit_bytes)
        self._draw = _FastGCNDraw(topology, dense_limit_bytes)

    @property
    @override
    def draw(self) -> Draw:
        return self._draw

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, layer_sizes={self.layer_sizes})"


class _FastGCNDraw(Draw):
    def __init__(self, topology: Topology, dense_limit_bytes: int) -> None:
        self.topology = topology
        squares = np.zeros(topology.num_nodes)
        _add_squares(topology.indptr, topology.indices, squares)
        # All that is kept for drawing, 8 bytes per node: differences of it are the chances that draws really have.
        self._cumulative = np.cumsum(squares)
        self._tables = TablePool(topology.num_nodes, dense_limit_bytes=dense_limit_bytes)

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        every = in_edges(self.topology, frontier)
        if size < 0 or len(every.sources) == 0:
            return every.take_all()
        drawn = draw_with_replacement(self._cumulative, size, np.uint64(key))
        with self._tables.borrow() as table:
            table.start(_NOTHING)
            nodes, places = table.number(drawn)
            locals_ = table.find(every.sources)
        chances = (self._cumulative[nodes] - np.where(nodes > 0, self._cumulative[nodes - 1], 0)) / self._cumulative[-1]
        return edges_from_drawn(every, locals_, np.bincount(places) / (size * chances))


@njit(nogil=True, cache=True)
def _add_squares(indptr: NDArray[np.int64], indices: NDArray[np.integer], squares: NDArray[np.float64]) -> None:
    """Add each edge's squared weight under mean aggregation to its source's entry of `squares`, shape ``(N,)``."""
    for v in range(len(indptr) - 1):
        degree = float(indptr[v + 1] - indptr[v])
        for p in range(indptr[v], indptr[v + 1]):
            squares[indices[p]] += 1.0 / (degree * degree)
