"""Make the batch that a selection describes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_geometric import EdgeIndex

from lightning_gnnopt.memory.structure import Selection, num_seeds_of
from lightning_gnnopt.sampling import Subgraph

_TRIPLETS = ("src_index", "dst_pos_index", "dst_neg_index")
_OF_LINKS = ("edge_label", "edge_label_time", "input_id", "seed_time")
_OF_SEEDS = ("input_id", "seed_time")
_OF_NODES = ("n_id", "in_degree", "node_norm")
_OF_EDGES = ("e_id", "edge_norm")
_COUNTS = ("num_nodes", "batch_size", "num_sampled_nodes", "num_sampled_edges")


def cut_subgraph(subgraph: Subgraph, selection: Selection) -> Subgraph:
    """Cut a sampled subgraph.

    Args:
        subgraph: What was sampled.
        selection: What is left of it.

    Returns:
        What is left; `subgraph` itself if that is all of it.
    """
    if selection.is_identity:
        return subgraph
    nodes, edges = selection.nodes, selection.edges
    batch, edge_norm, node_norm = subgraph.batch, subgraph.edge_norm, subgraph.node_norm
    if batch is not None:
        batch = _renumbered_trees(batch, selection, subgraph.batch_size)
    return replace(
        subgraph,
        n_id=subgraph.n_id[nodes],
        row=selection.row,
        col=selection.col,
        positions=subgraph.positions[edges],
        num_sampled_nodes=selection.num_sampled_nodes,
        num_sampled_edges=selection.num_sampled_edges,
        batch_size=selection.num_seeds,
        batch=batch,
        edge_norm=None if edge_norm is None else edge_norm[edges],
        node_norm=None if node_norm is None else node_norm[nodes],
    )


def cut_batch(batch: Any, selection: Selection) -> Any:
    """Cut a PyG batch.

    Tensors and arrays with a row for each node or edge are cut, on the device where they are; all else is passed on.
    Which is which, PyG says (`Data.is_node_attr`, `Data.is_edge_attr`), except for the names that loaders give. Should
    the batch have as many nodes as edges, what is called ``edge...`` is of the edges and all else of the nodes.

    `input_id` and `seed_time` follow the seeds. A batch around links keeps the links and negatives whose ends are all
    kept, and what belongs to them: `edge_label_index`, `edge_label`, `input_id`, or the three parts of a triplet.

    Args:
        batch: A ``Data``, on any device; stays as it is.
        selection: What is left of it.

    Returns:
        A new batch of the same class; `batch` itself if nothing goes.
    """
    if selection.is_identity:
        return batch
    out, take = copy.copy(batch), _Take()
    cut = _cut_links(batch, selection)
    cut["edge_index"] = _edge_index(batch.edge_index, selection)
    num_nodes = int(batch.num_nodes)
    for name in batch.keys():  # noqa: SIM118 - iterating over a `Data` gives pairs
        value = batch[name]
        if name in cut or name in _COUNTS or not isinstance(value, (Tensor, np.ndarray)) or value.ndim == 0:
            continue
        dim = batch.__cat_dim__(name, value)
        if name in _OF_SEEDS:
            # Around links there are as many as links, and these are cut already.
            if len(value) == num_seeds_of(batch):
                cut[name] = take(value, selection.nodes[: selection.num_seeds])
        elif name == "batch" and isinstance(value, Tensor) and len(value) == num_nodes:
            trees = _renumbered_trees(value.cpu().numpy(), selection, num_seeds_of(batch))
            cut[name] = torch.from_numpy(trees).to(value.device)
        elif name in _OF_NODES or (name not in _OF_EDGES and batch.is_node_attr(name)):
            cut[name] = take(value, selection.nodes, dim)
        elif name in _OF_EDGES or batch.is_edge_attr(name):
            cut[name] = take(value, selection.edges, dim)
    for name, value in cut.items():
        out[name] = value
    out.num_nodes = len(selection.nodes)
    for name in _COUNTS[1:]:
        if batch.get(name) is not None:
            out[name] = selection.num_seeds if name == "batch_size" else getattr(selection, name)
    return out


class _Take:
    """Takes rows of tensors and arrays, each set of ids being copied to a device once."""

    def __init__(self) -> None:
        self._ids: dict[tuple[int, int, torch.device], tuple[NDArray[np.integer], Tensor]] = {}

    def __call__(self, value: Tensor | NDArray[Any], ids: NDArray[np.integer], dim: int = 0) -> Any:
        if isinstance(value, np.ndarray):
            return np.take(value, ids, axis=dim)
        key = (ids.ctypes.data, len(ids), value.device)
        if key not in self._ids:
            self._ids[key] = ids, torch.from_numpy(ids).to(value.device)  # `ids` keeps its address its own
        return value.index_select(dim, self._ids[key][1])


def _edge_index(old: Any, selection: Selection) -> Any:
    """Make the edges of a batch in the type, and on the device, that they had."""
    ids = np.stack([selection.row, selection.col])
    new = torch.from_numpy(ids).to(device=old.device, dtype=old.dtype)
    if not isinstance(old, EdgeIndex):
        return new
    num_nodes = len(selection.nodes)
    size = tuple(None if known is None else num_nodes for known in old.sparse_size())
    sorted_ids = ids[0] if old.is_sorted_by_row else ids[1]
    if not old.is_sorted or (sorted_ids[1:] < sorted_ids[:-1]).any():
        return EdgeIndex(new, sparse_size=size)
    result = EdgeIndex(new, sparse_size=size, sort_order=old.sort_order)
    if old._indptr is not None:
        pointers = np.zeros(num_nodes + 1, np.int64)
        np.cumsum(np.bincount(sorted_ids, minlength=num_nodes), out=pointers[1:])
        result._indptr = torch.from_numpy(pointers).to(device=old.device, dtype=old._indptr.dtype)
    return result


def _renumbered_trees(trees: NDArray[Any], selection: Selection, num_seeds: int) -> NDArray[Any]:
    """Number the trees of a disjoint batch anew, in the order of the seeds that are left; shape ``(N',)``.

    A node whose tree has no seed any more is counted to the first tree: `select` leaves none, others may.

    Args:
        trees: The trees' numbers, shape ``(N,)``; those of an attribute that only has the name are not changed.
        selection: What is left.
        num_seeds: How many seeds there were.
    """
    left: NDArray[Any] = trees[selection.nodes]
    if np.array_equal(selection.nodes[: selection.num_seeds], np.arange(num_seeds)):
        return left
    known = np.unique(trees[:num_seeds])
    if not np.array_equal(known, np.arange(len(known))) or trees.max(initial=0) >= len(known):
        return left
    of_seeds = left[: selection.num_seeds]
    first = np.sort(np.unique(of_seeds, return_index=True)[1])
    numbers = np.zeros(len(known), trees.dtype)
    numbers[of_seeds[first]] = np.arange(len(first))
    left = numbers[left]
    return left


def _cut_links(batch: Any, selection: Selection) -> dict[str, Any]:
    """Cut what a batch around links says of them to the links between seeds that stay."""
    names = [name for name in ("edge_label_index", *_TRIPLETS) if batch.get(name) is not None]
    if not names:
        return {}
    place = np.full(int(batch.num_nodes), -1, np.int64)
    place[selection.nodes[: selection.num_seeds]] = np.arange(selection.num_seeds)
    ends = {name: place[batch[name].cpu().numpy()] for name in names}
    # One row for each link: its two ends, or in triplets also all its negatives.
    rows = [
        values.T if name == "edge_label_index" else values.reshape(len(values), -1) for name, values in ends.items()
    ]
    kept: NDArray[np.bool_] = np.all(np.concatenate(rows, axis=1) >= 0, axis=1)
    cut: dict[str, Any] = {}
    for name, values in ends.items():
        left = values[:, kept] if name == "edge_label_index" else values[kept]
        cut[name] = torch.from_numpy(left).to(batch[name].device)
    for name in _OF_LINKS:
        value = batch.get(name)
        if isinstance(value, Tensor) and value.ndim:
            # Negatives stand behind the links, and have no place among the inputs.
            cut[name] = value[torch.from_numpy(np.flatnonzero(kept[: len(value)])).to(value.device)]
    return cut
