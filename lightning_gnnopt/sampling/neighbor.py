"""Node-wise neighbour sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from lightning_gnnopt.sampling.draws import Draw, UniformDraw
from lightning_gnnopt.sampling.hopwise import HopwiseSampler, SubgraphType
from lightning_gnnopt.sampling.node_table import DENSE_LIMIT_BYTES
from lightning_gnnopt.sampling.topology import Topology


class NeighborSampler(HopwiseSampler):
    """Sample up to `num_neighbors[k]` in-neighbours of every node in hop ``k``.

    The method is GraphSAGE's (Hamilton, Ying & Leskovec, "Inductive representation learning on large graphs", NeurIPS
    2017). Nodes are numbered as PyG's `NeighborLoader` numbers them: the seeds in the given order, then the nodes of
    each hop as they are found. A node is expanded once. A node that stands twice among the seeds is expanded at both
    places, each with its own draw; as a neighbour it is the first of them.

    Args:
        topology: The graph.
        num_neighbors: Fan-out of each hop, the seeds' own first; -1 takes all in-neighbours.
        replace: Whether an edge can be drawn several times. A node with an in-edge then always has as many as asked.
        disjoint: Whether each seed has its own tree; a node reached from two seeds is then in the batch twice.
        subgraph_type: ``"directional"``: the drawn edges. ``"bidirectional"``: these, and the reverse of each whose
            reverse was not drawn. ``"induced"``: all of the graph's edges between the batch's nodes (of one tree). The
            last two have no per-hop counts.
        dense_limit_bytes: A numbering table above this size (4 bytes per node and thread) is hashed instead.

    Raises:
        ValueError: If `num_neighbors` is empty, a fan-out is 0 or below -1, or `subgraph_type` is unknown.

    Examples:
        >>> import torch
        >>> from lightning_gnnopt.sampling import SampleKey
        >>> star = Topology.from_edge_index(torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)
        >>> batch = NeighborSampler(star, num_neighbors=[2]).sample(np.array([0]), SampleKey(seed=0))
        >>> batch.num_sampled_nodes, batch.num_sampled_edges, batch.col
        ([1, 2], [2], array([0, 0], dtype=int32))
    """

    def __init__(
        self,
        topology: Topology,
        num_neighbors: Sequence[int],
        *,
        replace: bool = False,
        disjoint: bool = False,
        subgraph_type: SubgraphType = "directional",
        dense_limit_bytes: int = DENSE_LIMIT_BYTES,
    ) -> None:
        self.num_neighbors = check_fanouts(num_neighbors)
        super().__init__(
            topology,
            self.num_neighbors,
            disjoint=disjoint,
            subgraph_type=subgraph_type,
            dense_limit_bytes=dense_limit_bytes,
        )
        self.replace = replace
        self._draw = UniformDraw(topology, replace=replace)

    @property
    @override
    def draw(self) -> Draw:
        return self._draw

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.topology!r}, num_neighbors={self.num_neighbors})"


def check_fanouts(num_neighbors: Sequence[int], *, name: str = "num_neighbors") -> list[int]:
    """Refuse fan-outs that cannot be sampled.

    Args:
        num_neighbors: One fan-out per hop.
        name: What the user calls them.

    Returns:
        The fan-outs as a list of plain integers.

    Raises:
        ValueError: If there is none, or one is neither positive nor -1.
    """
    if isinstance(num_neighbors, int):
        raise ValueError(
            f"`{name}` must be a list with one fan-out per hop, but got {num_neighbors}."
            f" HINT: [{num_neighbors}, {num_neighbors}] samples two hops."
        )
    fanouts = list(num_neighbors)
    if not fanouts:
        raise ValueError(
            f"`{name}` must hold one fan-out per hop, but it is empty."
            " HINT: [15, 10] samples 15 neighbours of each seed and 10 of each of those."
        )
    for fanout in fanouts:
        if isinstance(fanout, bool) or not isinstance(fanout, int | np.integer) or fanout == 0 or fanout < -1:
            raise ValueError(
                f"`{name}` must hold integers that are positive or -1 (all neighbours), but got {fanout!r}"
                f" in {fanouts}. HINT: to use fewer hops, shorten the list."
            )
    return [int(fanout) for fanout in fanouts]
