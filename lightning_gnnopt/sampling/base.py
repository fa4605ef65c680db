"""What every sampler is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.sampler import BaseSampler, EdgeSamplerInput, NegativeSampling, NodeSamplerInput, SamplerOutput

from lightning_gnnopt.sampling.checks import checked_seeds
from lightning_gnnopt.sampling.link import LinkSampler, link_sampler_for
from lightning_gnnopt.sampling.pyg_seam import sampler_output, torch_key
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


class NodeSampler(BaseSampler):
    """A pure function ``(topology, seeds, key) -> subgraph``, which is a PyG `BaseSampler` as well.

    Subclasses implement :meth:`sample`. It may run in many threads at once.

    Attributes:
        topology: The graph it samples from.
        num_hops: How many message-passing layers a batch feeds; None if it feeds any number.
        disjoint: Whether each seed has its own tree.
    """

    topology: Topology
    num_hops: int | None
    disjoint: bool = False
    # Temporal samplers keep when each node came to be.
    _node_time: NDArray[Any] | None = None
    # PyG's loaders ask one batch after another for the same kind of links.
    _links: LinkSampler | None = None

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

    @property
    def node_time(self) -> NDArray[Any] | None:
        """When each node came to be, shape ``(N,)``; None where nodes have no times."""
        return self._node_time

    def sample_from_nodes(self, index: NodeSamplerInput) -> SamplerOutput:
        """Serve PyG's ``NodeLoader(data, node_sampler=...)``; the key comes from torch's global generator."""
        time = {} if index.time is None else {"time": index.time.numpy()}
        subgraph = self.sample(index.node.numpy(), torch_key(), **time)
        return sampler_output(subgraph, self.topology, (index.input_id, index.time))

    def sample_from_edges(self, index: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None) -> SamplerOutput:
        """Serve PyG's ``LinkLoader(data, link_sampler=...)`` through a `LinkSampler`."""
        self._links = links = link_sampler_for(self, index.input_type, neg_sampling, self._links)
        return links.sample_from_edges(index, neg_sampling)

    def refuse_time(self, time: object) -> None:
        """Refuse times of seeds where nothing goes by them.

        Raises:
            ValueError: If there are times.
        """
        if time is not None:
            raise ValueError(
                "`time` was given to a sampler that draws from all times."
                " HINT: make the sampler with `node_time` or `edge_time`, or leave out `time` (`input_time` of a"
                " loader)."
            )

    def check_seeds(self, seeds: Any) -> NDArray[np.integer]:
        """Take seeds as they come and refuse those that cannot be sampled.

        Args:
            seeds: Array, tensor or list of integers, shape ``(B,)``.

        Returns:
            The seeds as an array.

        Raises:
            ValueError: If they are not a one-dimensional array of integers, there is none, or one is not a node.
        """
        return checked_seeds(seeds, self.topology.num_nodes)
