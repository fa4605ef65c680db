"""Batches around nodes of one type in a heterogeneous graph."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.sampling.hetero import HeteroNeighborSampler
from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.rng import SampleKey


class HeteroNodeSource:
    """A `BatchSource` of batches around nodes of one type.

    Args:
        sampler: Draws the subgraphs.
        builder: Slices the graph's attributes to them.
        input_type: The seeds' node type.
        input_nodes: Seeds, an array, tensor or list of ids among the nodes of that type, shape ``(S,)``.

    Raises:
        ValueError: If the type is unknown, or `input_nodes` is empty or holds what is no node of it.
    """

    def __init__(
        self, sampler: HeteroNeighborSampler, builder: HeteroBatchBuilder, input_type: str, input_nodes: Any
    ) -> None:
        self.sampler = sampler
        self.builder = builder
        self.input_type = input_type
        self.input_nodes = sampler.check_seeds({input_type: input_nodes})[input_type]

    @property
    def num_inputs(self) -> int:
        """Number of input nodes."""
        return len(self.input_nodes)

    @property
    def keeps_inputs(self) -> bool:
        """Whether a batch has the inputs that it was asked for as its seeds: it has."""
        return True

    def num_seeds(self, sampled: HeteroSubgraph) -> int:
        """Number of seeds of a subgraph."""
        return sampled.num_sampled_nodes[self.input_type][0]

    def sample(self, input_id: NDArray[np.int64], key: SampleKey) -> HeteroSubgraph:
        """Draw the subgraph around the nodes at these places, shape ``(B,)``."""
        return self.sampler.sample({self.input_type: self.input_nodes[input_id]}, key)

    def plan(self, sampled: HeteroSubgraph, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of a subgraph."""
        return self.builder.plan(sampled, self.input_type, input_id)

    def __repr__(self) -> str:
        return repr(self.sampler)
