"""Where PyG's loaders meet our samplers: the key of a batch, and a batch in PyG's own types."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric.sampler import HeteroSamplerOutput, SamplerOutput

from lightning_gnnopt.sampling.hetero_subgraph import HeteroSubgraph
from lightning_gnnopt.sampling.hetero_topology import HeteroTopology
from lightning_gnnopt.sampling.rng import SampleKey
from lightning_gnnopt.sampling.subgraph import Subgraph
from lightning_gnnopt.sampling.topology import Topology


def torch_key() -> SampleKey:
    """Draw a batch's key from torch's global generator, which PyG's loaders seed in every worker."""
    return SampleKey(int(torch.randint(2**62, ())))


def long_tensor(ids: NDArray[np.integer]) -> Tensor:
    """Turn ids of any integer type into the int64 tensor PyG expects."""
    return torch.from_numpy(ids.astype(np.int64))


def sampler_output(
    subgraph: Subgraph | HeteroSubgraph, topology: Topology | HeteroTopology, metadata: Any
) -> SamplerOutput | HeteroSamplerOutput:
    """Say a batch in PyG's words.

    Args:
        subgraph: The batch.
        topology: The graph it was sampled from; its edge ids, where kept, become PyG's `edge`.
        metadata: What the loader that asked wants handed back.

    Returns:
        A `SamplerOutput`, or for a heterogeneous batch a `HeteroSamplerOutput` with an entry for every type.
    """
    if isinstance(subgraph, Subgraph):
        assert isinstance(topology, Topology)
        return SamplerOutput(
            node=long_tensor(subgraph.n_id),
            row=long_tensor(subgraph.row),
            col=long_tensor(subgraph.col),
            edge=_edge(topology, subgraph.positions),
            batch=None if subgraph.batch is None else long_tensor(subgraph.batch),
            num_sampled_nodes=subgraph.num_sampled_nodes,
            num_sampled_edges=subgraph.num_sampled_edges,
            metadata=metadata,
        )
    assert isinstance(topology, HeteroTopology)
    return HeteroSamplerOutput(
        node={name: long_tensor(ids) for name, ids in subgraph.n_id.items()},
        row={name: long_tensor(ids) for name, ids in subgraph.row.items()},
        col={name: long_tensor(ids) for name, ids in subgraph.col.items()},
        edge={name: _edge(topology.relations[name], places) for name, places in subgraph.positions.items()},
        batch=None if subgraph.batch is None else {name: long_tensor(ids) for name, ids in subgraph.batch.items()},
        num_sampled_nodes=subgraph.num_sampled_nodes,
        num_sampled_edges=subgraph.num_sampled_edges,
        metadata=metadata,
    )


def _edge(topology: Topology, positions: NDArray[np.integer]) -> Tensor | None:
    return None if topology.edge_ids is None else long_tensor(topology.edge_ids[positions])
