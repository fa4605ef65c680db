"""Batches of seeds alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.sampling.base import NodeSampler
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class SeedsOnlySampler(NodeSampler):
    """Sample nothing: a batch is its seeds, without an edge.

    For passes that need labels but no neighbours, such as evaluation from outputs that were computed beforehand.

    Args:
        topology: The graph.
    """

    num_hops: int | None = 0

    def __init__(self, topology: Topology) -> None:
        self.topology = topology

    @override
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        self.refuse_time(time)
        seeds = self.check_seeds(seeds)
        none = np.empty(0, np.int32)
        return Subgraph(
            n_id=seeds.astype(self.topology.indices.dtype),
            row=none,
            col=none,
            positions=np.empty(0, np.int64),
            num_sampled_nodes=[len(seeds)],
            num_sampled_edges=[],
        )
