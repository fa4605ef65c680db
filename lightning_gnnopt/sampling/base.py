"""What every sampler is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_geometric.sampler import BaseSampler, EdgeSamplerInput, NegativeSampling, NodeSamplerInput, SamplerOutput

from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class NodeSampler(BaseSampler):
    """A pure function ``(topology, seeds, key) -> subgraph``, which is a PyG `BaseSampler` as well.

    Subclasses implement :meth:`sample`. It may run in many threads at once.

    Attributes:
        topology: The graph it samples from.
        num_hops: How many message-passing layers a batch feeds; None if it feeds any number.
    """

    topology: Topology
    num_hops: int | None

    @abstractmethod
    def sample(self, seeds: NDArray[np.integer], key: SampleKey, *, time: NDArray[Any] | None = None) -> Subgraph:
        """Draw one batch.

        Args:
            seeds: Global ids, shape ``(B,)``; a node may stand twice.
            key: What the random numbers are keyed by.
            time: The time of each seed, shape ``(B,)``; only temporal samplers take it.

        Returns:
            The batch's subgraph, the seeds in the given order first.

        Raises:
            ValueError: If there is no seed, or an id is not a node of the graph.
        """

    def sample_from_nodes(self, index: NodeSamplerInput) -> SamplerOutput:
        """Serve PyG's ``NodeLoader(data, node_sampler=...)``; the key comes from torch's global generator."""
        key = SampleKey(int(torch.randint(2**62, ())))
        subgraph = self.sample(index.node.numpy(), key)
        edge_ids = self.topology.edge_ids
        return SamplerOutput(
            node=torch.from_numpy(subgraph.n_id.astype(np.int64)),
            row=torch.from_numpy(subgraph.row.astype(np.int64)),
            col=torch.from_numpy(subgraph.col.astype(np.int64)),
            edge=None if edge_ids is None else torch.from_numpy(edge_ids[subgraph.positions].astype(np.int64)),
            batch=None if subgraph.batch is None else torch.from_numpy(subgraph.batch.astype(np.int64)),
            num_sampled_nodes=subgraph.num_sampled_nodes,
            num_sampled_edges=subgraph.num_sampled_edges,
            metadata=(index.input_id, index.time),
        )

    def sample_from_edges(self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None) -> SamplerOutput:
        """Refuse: a node sampler starts from nodes.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} samples around nodes, but was asked to sample around edges."
            " HINT: use it with `NodeLoader` or `GraphDataModule`; link-level loaders need an edge sampler."
        )

    def check_seeds(self, seeds: NDArray[np.integer]) -> None:
        """Refuse an empty batch and ids outside the graph.

        Raises:
            ValueError: As said.
        """
        if seeds.size == 0:
            raise ValueError("`seeds` must hold at least one node, but it is empty. HINT: check the split's mask.")
        lowest, highest = int(seeds.min()), int(seeds.max())
        if lowest < 0 or highest >= self.topology.num_nodes:
            raise ValueError(
                f"`seeds` must be node ids from 0 to {self.topology.num_nodes - 1:,}, but found"
                f" {lowest if lowest < 0 else highest:,}. HINT: seeds are global ids of the graph that is sampled."
            )
