"""What can be asked of sampled subgraphs, batches around links and PyG batches alike."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
from torch_geometric.data import Data

from lightning_gnnopt.memory.cutting import cut_batch, cut_subgraph
from lightning_gnnopt.memory.structure import BatchStructure, Selection
from lightning_gnnopt.sampling import SampleKey, Subgraph


def names_seeds(batch: Any) -> bool:
    """Whether the loss is over the first rows of a batch of nodes, as far as the batch says."""
    return isinstance(batch, Data) and "batch_size" in batch and "edge_label_index" not in batch


def edges_of(batch: Any) -> Any:
    """Give the sampled part of a batch around links; the batch itself otherwise."""
    return getattr(batch, "subgraph", batch) if not hasattr(batch, "num_edges") else batch


def structure_of(batch: Any) -> BatchStructure:
    """Read the edges.

    Raises:
        TypeError: If the batch has several types of nodes.
    """
    nodes = edges_of(batch)
    if isinstance(nodes, Subgraph):
        return BatchStructure.of_subgraph(nodes)
    if hasattr(nodes, "edge_types") or isinstance(getattr(nodes, "row", None), dict):
        raise TypeError("batches of heterogeneous graphs cannot be cut")
    return BatchStructure.of_batch(nodes)


def cut(batch: Any, selection: Selection) -> Any:
    """Make the batch that is left, of the same kind."""
    nodes = edges_of(batch)
    if nodes is not batch:
        return replace(batch, subgraph=cut_subgraph(nodes, selection))
    return cut_subgraph(batch, selection) if isinstance(batch, Subgraph) else cut_batch(batch, selection)


def key_of(batch: Any) -> SampleKey:
    """Key random numbers by what the batch holds, so that they are the same in any thread and on every run."""
    nodes = edges_of(batch)
    ids = getattr(nodes, "n_id", None)
    if ids is None:
        return SampleKey(0, 0, int(nodes.num_edges))
    ids = ids if isinstance(ids, np.ndarray) else ids.cpu().numpy()
    return SampleKey(zlib.crc32(np.ascontiguousarray(ids).tobytes()), 0, int(nodes.num_edges))
