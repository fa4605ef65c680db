"""Layer-wise sampling among the in-neighbours of the batch."""

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


class LadiesSampler(HopwiseSampler):
    """Draw `layer_sizes[k]` of the in-neighbours that the nodes of hop ``k`` have together, and keep the edges.

    The method is LADIES (Zou et al., "Layer-dependent importance sampling for training deep and large graph
    convolutional networks", NeurIPS 2019). The candidates are the union of the hop's in-neighbours. The chance ``p_u``
    of candidate ``u`` is proportional to the sum of ``1 / indegree(v)**2`` over its edges to nodes ``v`` of the hop:
    the squared weights of mean aggregation. Candidates are drawn independently and with replacement. All edges from
    drawn nodes to the hop's nodes are kept, each with the `edge_norm` ``count_u / (n * p_u)`` for ``count_u`` of ``n``
    draws. A model must multiply messages by it and divide their sum by the true in-degree; `GraphDataModule` brings it
    into the batch, PyG's `NodeLoader` has no place for it.

    With ``n`` candidates or fewer all of them are taken, and every `edge_norm` is 1: no more nodes than were asked for,
    and no error at all. The authors' code, which draws without replacement, does so as well. A node none of whose
    in-neighbours was drawn has no in-edge.

    The paper draws each layer's nodes anew. Here a batch is one graph as in PyG: a node is expanded once, by the hop
    that found it, and its in-edges serve all layers; those of the seeds come from the first hop. A hop draws for the
    nodes that the hop before it found first. All in-edges of these are looked at, so that time grows with their
    in-degrees. A node that stands twice among the seeds counts twice in the chances; of parallel edges each counts.

    Args:
        topology: The graph.
        layer_sizes: Number of draws in each hop, the seeds' own first; -1 takes all in-edges.
        normalize: Scale the `edge_norm` of each node's in-edges so that they sum to its in-degree, as the authors' code
            normalises rows. The estimate varies less, but is no longer unbiased.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `layer_sizes` is empty, or a size is 0 or below -1.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> LadiesSampler(star, layer_sizes=[2]).sample(np.array([0]), SampleKey(seed=0)).edge_norm
        array([1.5, 1.5], dtype=float32)
        >>> LadiesSampler(star, layer_sizes=[3]).sample(np.array([0]), SampleKey(seed=0)).edge_norm
        array([1., 1., 1.], dtype=float32)
    """

    def __init__(
        self,
        topology: Topology,
        layer_sizes: Sequence[int],
        *,
        normalize: bool = False,
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        self.layer_sizes = check_fanouts(layer_sizes, name="layer_sizes")
        super().__init__(topology, self.layer_sizes, dense_limit_bytes=dense_limit_bytes)
        self.normalize = normalize
        self._draw = _LadiesDraw(topology, normalize, dense_limit_bytes)

    @property
    @override
    def draw(self) -> Draw:
        return self._draw

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, layer_sizes={self.layer_sizes})"


class _LadiesDraw(Draw):
    def __init__(self, topology: Topology, normalize: bool, dense_limit_bytes: int) -> None:
        self.topology = topology
        self.normalize = normalize
        self._tables = TablePool(topology.num_nodes, dense_limit_bytes=dense_limit_bytes)

    @override
    def __call__(
        self, frontier: NDArray[np.integer], size: int, key: np.uint64, *, time: NDArray[np.number] | None
    ) -> Drawn:
        every = in_edges(self.topology, frontier)
        with self._tables.borrow() as table:
            table.start(_NOTHING)
            candidates, locals_ = table.number(every.sources)
        if size < 0 or len(candidates) <= size:
            return every.take_all()
        squares = np.zeros(len(candidates))
        _add_squares(every.colptr, locals_, squares)
        cumulative = np.cumsum(squares)
        counts = np.bincount(draw_with_replacement(cumulative, size, np.uint64(key)), minlength=len(candidates))
        weights = counts / (size * np.diff(cumulative, prepend=0.0) / cumulative[-1])
        return edges_from_drawn(every, locals_, weights, normalize=self.normalize)


@njit(nogil=True, cache=True)
def _add_squares(colptr: NDArray[np.int64], locals_: NDArray[np.int32], squares: NDArray[np.float64]) -> None:
    """Add each edge's squared weight under mean aggregation to its source's entry of `squares`, shape ``(C,)``."""
    for i in range(len(colptr) - 1):
        degree = float(colptr[i + 1] - colptr[i])
        for e in range(colptr[i], colptr[i + 1]):
            squares[locals_[e]] += 1.0 / (degree * degree)
