"""What a sampler of heterogeneous graphs returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling.hetero_topology import EdgeType


@dataclass(frozen=True, eq=False)
class HeteroSubgraph:
    """A sampled heterogeneous batch before any feature is copied: ids and counts only.

    Every node type and every edge type of the graph has its entry, if need be an empty one.

    Attributes:
        n_id: For each node type the global ids of its nodes: the seeds first, then hop by hop.
        row: For each edge type the local sources of its edges, int32, hop by hop.
        col: For each edge type the local destinations of its edges, int32.
        positions: For each edge type its edges' positions in the CSC order of that relation.
        num_sampled_nodes: For each node type ``[seeds, new in hop 1, ..., new in hop L]``.
        num_sampled_edges: For each edge type ``[hop 1, ..., hop L]``.
        batch: For each node type the number of the seed in whose tree each node stands; seeds are numbered through all
            types in the order in which they were given. None unless the trees are disjoint.
    """

    n_id: dict[str, NDArray[np.integer]]
    row: dict[EdgeType, NDArray[np.int32]]
    col: dict[EdgeType, NDArray[np.int32]]
    positions: dict[EdgeType, NDArray[np.integer]]
    num_sampled_nodes: dict[str, list[int]]
    num_sampled_edges: dict[EdgeType, list[int]]
    batch: dict[str, NDArray[np.int32]] | None = None

    @property
    def num_nodes(self) -> int:
        """Number of nodes of all types."""
        return sum(len(ids) for ids in self.n_id.values())

    @property
    def num_edges(self) -> int:
        """Number of edges of all types."""
        return sum(len(ids) for ids in self.row.values())
