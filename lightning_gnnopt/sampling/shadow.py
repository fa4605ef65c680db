"""shaDow-GNN: every seed has a small subgraph of its own."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_gnnopt.sampling.neighbor import NeighborSampler
from lightning_gnnopt.sampling.topology import Topology


class ShadowSampler(NeighborSampler):
    """Sample a bounded neighbourhood of each seed, and all of the graph's edges within it, for GNNs of any depth.

    shaDow-GNN (Zeng, Zhang, Xia, Srivastava, Malevich, Kannan, Prasanna, Jin & Chen, "Decoupling the depth and scope of
    graph neural networks", NeurIPS 2021): how far a seed sees is decided by `num_neighbors`, not by the number of
    layers. The batch is the disjoint union of the seeds' subgraphs: a node that two seeds reach is in it twice, and no
    edge joins two subgraphs. The seeds stand first, then the nodes hop by hop; ``Subgraph.batch`` says whose subgraph a
    node is in, and pooling a subgraph means to pool by it.

    It is `NeighborSampler` with ``disjoint=True, subgraph_type="induced"``. Where each node's in-edges stand by source,
    which they do if `edge_index` was sorted, it is faster around hubs.

    Args:
        topology: The graph.
        num_neighbors: How many in-neighbours of every node the neighbourhood takes in each hop; -1 takes all.
        replace: Whether to draw with replacement. A neighbour drawn twice is in the subgraph once.

    Raises:
        ValueError: If `num_neighbors` is empty, or a fan-out is 0 or below -1.

    Examples:
        >>> import numpy as np, torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> triangle = Topology.from_edge_index(torch.tensor([[0, 1, 2], [1, 2, 0]]), num_nodes=3)
        >>> batch = ShadowSampler(triangle, [-1]).sample(np.array([0, 1]), SampleKey(seed=0))
        >>> batch.n_id, batch.batch
        (array([0, 1, 2, 0], dtype=int32), array([0, 1, 0, 1], dtype=int32))
        >>> batch.row, batch.col  # 2 -> 0 in the first, 0 -> 1 in the second
        (array([2, 3], dtype=int32), array([0, 1], dtype=int32))
    """

    def __init__(self, topology: Topology, num_neighbors: Sequence[int], *, replace: bool = False) -> None:
        super().__init__(topology, num_neighbors, replace=replace, disjoint=True, subgraph_type="induced")
