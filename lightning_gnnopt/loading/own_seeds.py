"""Batches of samplers that draw the seeds themselves, such as GraphSAINT's."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.sampling import NodeSampler, SampleKey, Subgraph

# Tries of a batch without an input node are numbered above the attempts that a transform asks for.
_TRY = 1 << 32
_MAX_TRIES = 100


class OwnSeeds:
    """Makes the loader's input nodes the seeds of each batch that a sampler drew on its own.

    Args:
        sampler: Draws whole batches; all of their nodes are seeds to it.
        input_nodes: Global ids of the nodes that count, shape ``(S,)``.
    """

    def __init__(self, sampler: NodeSampler, input_nodes: NDArray[np.integer]) -> None:
        self._sampler = sampler
        self._place: NDArray[np.int64] = np.full(sampler.topology.num_nodes, -1, np.int64)
        self._place[input_nodes] = np.arange(len(input_nodes))

    def sample(self, seeds: NDArray[np.integer], key: SampleKey, **options: Any) -> Subgraph:
        """Draw a batch, its input nodes first; one without any is drawn anew.

        Args:
            seeds: What the sampler is given, shape ``(B,)``.
            key: What the random numbers are keyed by.
            **options: Further arguments of the sampler.

        Returns:
            The batch, of which the input nodes are the seeds.

        Raises:
            ValueError: If 100 draws find no input node.
        """
        for number in range(_MAX_TRIES):
            subgraph = self._sampler.sample(seeds, key._replace(attempt=key.attempt + number * _TRY), **options)
            is_input = self._place[subgraph.n_id] >= 0
            if is_input.any():
                return seeds_first(subgraph, is_input)
        raise ValueError(
            f"{type(self._sampler).__name__} found none of the {int((self._place >= 0).sum()):,} input nodes in"
            f" {_MAX_TRIES} draws of {len(seeds):,}. HINT: raise `batch_size`, or `drop_last=True` if only the last"
            " batch is so small."
        )

    def input_id(self, subgraph: Subgraph) -> NDArray[np.int64]:
        """Look up where the seeds of a batch stand among the input nodes, shape ``(B,)``."""
        places: NDArray[np.int64] = self._place[subgraph.n_id[: subgraph.batch_size]]
        return places


def seeds_first(subgraph: Subgraph, is_seed: NDArray[np.bool_]) -> Subgraph:
    """Renumber a batch so that the given nodes come first and are its seeds; otherwise the order stays.

    Args:
        subgraph: The batch.
        is_seed: Which of its nodes are to be seeds, shape ``(N,)``.

    Returns:
        The same nodes and edges, without per-hop counts. Edges stay where they stand.

    Examples:
        >>> ids = np.array([7, 8, 9])
        >>> batch = Subgraph(ids, np.array([0, 1]), np.array([1, 2]), np.array([4, 5]), None, None, batch_size=3)
        >>> batch = seeds_first(batch, np.array([False, True, True]))
        >>> batch.n_id, batch.row, batch.col, batch.batch_size
        (array([8, 9, 7]), array([2, 0], dtype=int32), array([0, 1], dtype=int32), 2)
    """
    order = np.argsort(~is_seed, kind="stable")
    local = np.empty(len(order), np.int32)
    local[order] = np.arange(len(order), dtype=np.int32)
    return Subgraph(
        n_id=subgraph.n_id[order],
        row=local[subgraph.row],
        col=local[subgraph.col],
        positions=subgraph.positions,
        num_sampled_nodes=None,
        num_sampled_edges=None,
        batch_size=int(is_seed.sum()),
        batch=None if subgraph.batch is None else subgraph.batch[order],
        edge_norm=subgraph.edge_norm,
        node_norm=None if subgraph.node_norm is None else subgraph.node_norm[order],
    )
