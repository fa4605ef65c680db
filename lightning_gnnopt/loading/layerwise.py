"""Exact evaluation over full neighbourhoods, one layer at a time.

Sampling a batch's whole neighbourhood multiplies with depth; evaluating a layer for all nodes that matter before going
on to the next touches each edge once per layer (Hamilton, Ying & Leskovec, NeurIPS 2017, evaluate so too).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import psutil
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore, feature_store
from lightning_gnnopt.loading.fields import array_field, edge_index_field, rows_field
from lightning_gnnopt.loading.pipeline import BatchPipeline, PipelineOptions, Stages
from lightning_gnnopt.loading.placement import HostPlacement, Placement
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph, Topology


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
    features: Tensor | FeatureStore,
    nodes: NDArray[np.int64],
    *,
    batch_size: int,
    options: PipelineOptions | None = None,
    placement: Placement | None = None,
    max_bytes: int | None = None,
) -> NodeOutputs:
    """Compute a model's outputs from full neighbourhoods, layer by layer, through the pipeline that training uses.

    Only nodes that the asked ones depend on are computed: those within ``L - k`` hops in layer ``k``. The device holds
    the batches in flight; the host holds two layers' outputs at a time, in temporary files if they are large.

    Args:
        model: The model, in evaluation mode; its layers run where its parameters lie, and get each batch's in-degrees
            in the whole graph if it has ``needs_in_degree``.
        topology: The graph.
        features: Node features of shape ``(N, F)``, dense or sparse, or a store of them.
        nodes: The asked nodes, global ids without repeats.
        batch_size: Destinations per batch.
        options: How far batches are prepared ahead; by default each when it is asked for.
        placement: Brings batches to the device; by default they are written in host memory and moved from there.
        max_bytes: Host memory for one layer's outputs, beyond which they lie in a temporary file. None allows a quarter
            of what is free.

    Returns:
        Outputs of the asked nodes.

    Raises:
        ValueError: If the model has no `inference_per_layer`, or mixes its layers' outputs (jumping knowledge).
    """
    if not isinstance(model, LayerwiseModel) or getattr(model, "jk_mode", None) is not None:
        raise ValueError(
            "`eval_mode='layerwise'` needs a network with `num_layers` and `inference_per_layer` and without"
            f" jumping knowledge, but got {type(model).__name__}. HINT: use `eval_mode='sampled'` with"
            " `eval_num_neighbors=[-1, ...]`."
        )
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    in_degree = bool(getattr(model, "needs_in_degree", False))
    options = PipelineOptions(num_workers=0) if options is None else options
    placement = HostPlacement() if placement is None else placement
    max_bytes = psutil.virtual_memory().available // 4 if max_bytes is None else max_bytes
    needed = _needed_per_layer(topology, nodes, model.num_layers)
    values: Tensor | FeatureStore = features
    row_of = np.arange(topology.num_nodes, dtype=np.int64)
    for layer, targets in enumerate(needed):
        stages = _LayerStages(topology, feature_store(values), row_of, targets, batch_size, in_degree, layer).stages()
        pipeline = BatchPipeline(stages, range(-(-len(targets) // batch_size)), options=options, placement=placement)
        outputs: Tensor | None = None
        with closing(iter(pipeline)) as batches:
            first = 0
            for placed, _ in batches:
                x, edge_index, size, extra = placed.take()
                on_device = {name: value.to(device) for name, value in extra.items()}
                out = model.inference_per_layer(layer, x.to(device), edge_index.to(device), size, **on_device)
                if outputs is None:
                    outputs = _room((len(targets), *out.shape[1:]), out.dtype, max_bytes)
                outputs[first : first + size].copy_(out)
                first += size
                del x, edge_index, extra, on_device, out  # before the next batch is waited for
        assert outputs is not None
        values = outputs
        row_of = np.full(topology.num_nodes, -1, dtype=np.int64)
        row_of[targets] = np.arange(len(targets))
    assert isinstance(values, Tensor)
    return NodeOutputs(values, torch.from_numpy(row_of))


@dataclass(frozen=True, eq=False)
class _LayerStages:
    """What is prepared for one layer: one-hop batches over full neighbourhoods."""

    topology: Topology
    inputs: FeatureStore
    row_of: NDArray[np.int64]
    targets: NDArray[np.int64]
    batch_size: int
    in_degree: bool
    layer: int

    def stages(self) -> Stages:
        sampler = NeighborSampler(self.topology, [-1])

        def sample(index: int) -> Subgraph:
            first = index * self.batch_size
            return sampler.sample(self.targets[first : first + self.batch_size], SampleKey(0))

        return Stages(
            sample=sample,
            plan=lambda index, subgraph: self._plan(subgraph),
            describe=lambda index: f"batch {index} of layer {self.layer} of a layer-wise evaluation",
        )

    def _plan(self, subgraph: Subgraph) -> BatchPlan:
        edges, _ = edge_index_field(subgraph.row, subgraph.col, subgraph.batch_size)
        fields = [rows_field(self.inputs, self.row_of[subgraph.n_id]), edges]
        if self.in_degree:
            fields.append(array_field(self.topology.in_degrees[subgraph.n_id]))

        def assemble(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, int, dict[str, Tensor]]:
            x, edge_index, *rest = tensors
            return x, edge_index, subgraph.batch_size, dict(zip(("in_degree",), rest, strict=False))

        return BatchPlan(fields, assemble, subgraph.num_nodes, subgraph.num_edges)


def _room(shape: tuple[int, ...], dtype: torch.dtype, max_bytes: int) -> Tensor:
    """Make room for a layer's outputs: in memory, or in a file that goes with the tensor."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes <= max_bytes:
        return torch.empty(shape, dtype=dtype, device="cpu")
    with tempfile.TemporaryFile(prefix="gnnopt-layer-") as file:
        mapped = np.memmap(file, np.uint8, "w+", shape=(nbytes,))
    return torch.from_numpy(mapped).view(dtype).view(shape)


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
