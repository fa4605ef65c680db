"""What every sampler returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Subgraph:
    """A sampled batch before any feature is copied: ids and counts only.

    Attributes:
        n_id: Global ids of the batch's nodes, shape ``(N,)``: the seeds first. Samplers that work hop by hop let the
            other nodes follow hop by hop.
        row: Local sources of the edges, shape ``(E,)``.
        col: Local destinations of the edges, shape ``(E,)``; of a hop-wise sampler the edges stand hop by hop.
        positions: Each edge's position in the topology's CSC order, shape ``(E,)``.
        num_sampled_nodes: ``[seeds, new in hop 1, ..., new in hop L]``, sums to ``N``; None where a batch has no hops:
            every layer then runs on all nodes.
        num_sampled_edges: ``[hop 1, ..., hop L]``, sums to ``E``; None where a batch has no hops.
        batch_size: Number of seeds ``B``; by default ``num_sampled_nodes[0]``.
        batch: The number of the seed in whose tree each node stands, shape ``(N,)``; None unless the trees are
            disjoint.
        edge_norm: Weight of each edge, float32 of shape ``(E,)``, that makes up for unequal chances: over a node's
            sampled in-edges, ``sum(edge_norm * f(source))`` estimates ``sum(f(source))`` over all its in-edges. None
            where all sampled in-edges of a node stand for equally many.
        node_norm: Weight of each node in the loss, float32 of shape ``(N,)``; None where all seeds count alike.
    """

    n_id: NDArray[np.integer]
    row: NDArray[np.integer]
    col: NDArray[np.integer]
    positions: NDArray[np.integer]
    num_sampled_nodes: list[int] | None
    num_sampled_edges: list[int] | None
    batch_size: int = -1
    batch: NDArray[np.int32] | None = None
    edge_norm: NDArray[np.float32] | None = None
    node_norm: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.batch_size == -1:
            assert self.num_sampled_nodes is not None
            object.__setattr__(self, "batch_size", self.num_sampled_nodes[0])

    @property
    def num_nodes(self) -> int:
        """Number of nodes ``N``."""
        return len(self.n_id)

    @property
    def num_edges(self) -> int:
        """Number of edges ``E``."""
        return len(self.row)
