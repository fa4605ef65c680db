"""Exact evaluation over full neighbourhoods, one layer at a time.

Sampling a batch's whole neighbourhood multiplies with depth; evaluating a layer for all nodes that matter before going
on to the next touches each edge once per layer (Hamilton, Ying & Leskovec, NeurIPS 2017, evaluate so too).
"""

from __future__ import annotations

from contextlib import closing
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.ordered import OrderedPrefetch
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology


@runtime_checkable
class LayerwiseModel(Protocol):
    """A model whose layers can be evaluated one by one; PyG's `BasicGNN` models are such, and ours."""

    num_layers: int

    def inference_per_layer(self, layer: int, x: Tensor, edge_index: Tensor, batch_size: int) -> Tensor:
        """Run one layer over a one-hop batch whose first `batch_size` rows are the destinations."""
        ...


class NodeOutputs:
    """A model's outputs for some nodes of a graph.

    Args:
        values: Shape ``(n, C)``.
        row_of: Each node's row in `values`, -1 for none; shape ``(N,)``.
    """

    def __init__(self, values: Tensor, row_of: Tensor) -> None:
        self.values = values
        self._row_of = row_of

    def rows(self, n_id: Tensor) -> Tensor:
        """Look outputs up.

        Args:
            n_id: Global ids, long tensor of shape ``(b,)``.

        Returns:
            Tensor of shape ``(b, C)`` on the device of `n_id`.

        Raises:
            KeyError: If a node was not evaluated.
        """
        rows = self._row_of[n_id.cpu()]
        if (rows < 0).any():
            raise KeyError(f"Node {int(n_id.cpu()[rows < 0][0])} was not evaluated; only the asked nodes have outputs.")
        return self.values[rows].to(n_id.device)


@torch.no_grad()
def layerwise_outputs(
    model: LayerwiseModel,
    topology: Topology,
    features: Tensor,
    nodes: NDArray[np.int64],
    *,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    in_degree: bool = False,
) -> NodeOutputs:
    """Compute a model's outputs from full neighbourhoods, layer by layer.

    Only nodes that the asked ones depend on are computed: those within ``L - k`` hops in layer ``k``. One layer's
    outputs are held in host memory at a time; the device holds one batch.

    Args:
        model: The model, in evaluation mode.
        topology: The graph.
        features: Node features of shape ``(N, F)``, dense or sparse.
        nodes: The asked nodes, global ids without repeats.
        batch_size: Destinations per batch.
        num_workers: Threads that prepare batches.
        device: Where the layers run.
        in_degree: Pass each batch's in-degrees in the whole graph to the model.

    Returns:
        Outputs of the asked nodes, in host memory.
    """
    needed = _needed_per_layer(topology, nodes, model.num_layers)
    sampler = NeighborSampler(topology, [-1])
    values, row_of = features, np.arange(topology.num_nodes, dtype=np.int64)
    for layer, targets in enumerate(needed):
        inputs = FeatureStore(values)

        def prepare(
            first: int,
            targets: NDArray[np.int64] = targets,
            inputs: FeatureStore = inputs,
            row_of: NDArray[np.int64] = row_of,
        ) -> tuple[Tensor, Tensor, int, dict[str, Tensor]]:
            batch = sampler.sample(targets[first : first + batch_size], SampleKey(0))
            x = inputs.rows(torch.from_numpy(row_of[batch.n_id]))
            edge_index = torch.from_numpy(np.stack([batch.row, batch.col]).astype(np.int64))
            extra = {"in_degree": torch.from_numpy(topology.in_degrees[batch.n_id])} if in_degree else {}
            return x, edge_index, batch.batch_size, extra

        firsts = range(0, len(targets), batch_size)
        prefetch = OrderedPrefetch(prepare, firsts, num_workers=num_workers, max_ahead=max(1, 2 * num_workers))
        outputs = []
        with closing(iter(prefetch)) as batches:
            for x, edge_index, size, extra in batches:
                on_device = {name: value.to(device) for name, value in extra.items()}
                outputs.append(
                    model.inference_per_layer(layer, x.to(device), edge_index.to(device), size, **on_device).cpu()
                )
        values = torch.cat(outputs)
        row_of = np.full(topology.num_nodes, -1, dtype=np.int64)
        row_of[targets] = np.arange(len(targets))
    return NodeOutputs(values, torch.from_numpy(row_of))


def _needed_per_layer(topology: Topology, nodes: NDArray[np.int64], num_layers: int) -> list[NDArray[np.int64]]:
    """For each layer, the nodes whose output the layers after it look at; the last layer's are `nodes`, ascending."""
    mask = np.zeros(topology.num_nodes, np.bool_)
    mask[nodes] = True
    needed = [np.flatnonzero(mask)]
    for _ in range(num_layers - 1):
        _mark_in_neighbors(topology.indptr, topology.indices, needed[0], mask)
        needed.insert(0, np.flatnonzero(mask))
    return needed


@njit(nogil=True, cache=True)
def _mark_in_neighbors(
    indptr: NDArray[np.int64], indices: NDArray[np.integer], nodes: NDArray[np.int64], mask: NDArray[np.bool_]
) -> None:
    """Set `mask` at every in-neighbour of `nodes`."""
    for v in nodes:
        for p in range(indptr[v], indptr[v + 1]):
            mask[indices[p]] = True
