"""What a loader's batches are made from: inputs, a sampler and a builder."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.own_seeds import OwnSeeds
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.sampling import NodeSampler, SampleKey, Subgraph


class BatchSource(Protocol):
    """Samples around some of its inputs, and lays out the batch; safe to be called from many threads at once.

    One whose batches may be cut to their first inputs (by a transform that `returns_seeds`) also has
    ``num_seeds(sampled)``, which counts the inputs in a batch, and ``keeps_inputs``, which says whether these are the
    inputs that it was asked for.
    """

    @property
    def num_inputs(self) -> int:
        """Number of inputs: nodes, or links."""
        ...

    def sample(self, input_id: NDArray[np.int64], key: SampleKey) -> Any:
        """Draw what is around the inputs at these places, shape ``(B,)``."""
        ...

    def plan(self, sampled: Any, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of what was drawn."""
        ...


class NodeSource:
    """Batches around nodes.

    A sampler with `draws_own_seeds`, such as GraphSAINT's, is given seeds as any other, and what it draws is the batch:
    the input nodes among its nodes become the seeds.

    Args:
        sampler: Draws the subgraphs.
        builder: Slices the graph's attributes to them; None for a source that only samples.
        input_nodes: Seeds, global ids of shape ``(S,)``.
        input_time: The time of each seed, shape ``(S,)``, for a temporal sampler; None takes its nodes' own.

    Raises:
        ValueError: If `input_nodes` is empty or holds what is no node.
    """

    def __init__(
        self,
        sampler: NodeSampler,
        builder: BatchBuilder | None,
        input_nodes: NDArray[np.integer],
        *,
        input_time: NDArray[Any] | None = None,
    ) -> None:
        self.sampler = sampler
        self.builder = builder
        self.input_nodes = sampler.check_seeds(input_nodes)
        self.input_time = input_time
        self._own_seeds = OwnSeeds(sampler, self.input_nodes) if getattr(sampler, "draws_own_seeds", False) else None

    @property
    def num_inputs(self) -> int:
        """Number of input nodes."""
        return len(self.input_nodes)

    @property
    def keeps_inputs(self) -> bool:
        """Whether a batch has the inputs that it was asked for as its seeds."""
        return self._own_seeds is None

    def num_seeds(self, sampled: Subgraph) -> int:
        """Number of seeds of a subgraph."""
        return sampled.batch_size

    def sample(self, input_id: NDArray[np.int64], key: SampleKey) -> Subgraph:
        """Draw the subgraph around the nodes at these places, shape ``(B,)``."""
        sample = self.sampler.sample if self._own_seeds is None else self._own_seeds.sample
        # A sampler that knows no times need not take any.
        options = {} if self.input_time is None else {"time": self.input_time[input_id]}
        return sample(self.input_nodes[input_id], key, **options)

    def plan(self, sampled: Subgraph, input_id: NDArray[np.int64]) -> BatchPlan:
        """Lay out the batch of a subgraph."""
        if self._own_seeds is not None:
            input_id = self._own_seeds.input_id(sampled)
        assert self.builder is not None
        return self.builder.plan(sampled, input_id)

    def __repr__(self) -> str:
        return repr(self.sampler)
