"""What a graph must be before anything is trained on it: one sentence for each way it can be wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch_geometric.data import Data

from lightning_gnnopt.sampling import NodeSampler

_CHECKED_AT_ONCE = 1 << 22  # values


def check_graph(data: Data, *, has_features: bool = False, labelled: bool = True) -> None:
    """Refuse a graph that cannot be sampled or would train to NaN.

    Whether ``edge_index`` stays inside the graph is checked where it is sorted (`Topology.from_edge_index`).

    Args:
        data: The graph.
        has_features: Whether its features lie elsewhere than in ``x``, which is then not looked at.
        labelled: Whether ``y`` is to be trained on; it is not looked at otherwise.

    Raises:
        TypeError: If it is not a homogeneous PyG `Data`.
        ValueError: If it has no nodes, no ``edge_index``, no ``x``, a row of ``x`` or ``y`` too few or too many, a
            feature that is not finite, or one label per node that is not an integer.
    """
    if not isinstance(data, Data):
        raise TypeError(
            f"`data` must be a `torch_geometric.data.Data`, but got {type(data).__name__}."
            " HINT: a `Dataset` holds it as `dataset[0]`; `HeteroData.to_homogeneous()` makes one of several types."
        )
    if not data.num_nodes:
        raise ValueError("`data` must hold at least one node, but it is empty. HINT: check how the graph was loaded.")
    if data.edge_index is None:
        raise ValueError(
            "`data` must hold `edge_index` of shape (2, E), but it has none."
            " HINT: leave out the `ToSparseTensor` transform; the sampler sorts the edges itself."
        )
    if not has_features:
        _check_x(data)
    if labelled and data.y is not None:
        check_y(data.y, data.num_nodes)
        if not is_multilabel(data.y) and data.y.is_floating_point():
            raise ValueError(
                f"`y` must hold integers, the class of each node, but its type is {data.y.dtype}."
                " HINT: `data.y = data.y.long()` if they are classes; there is no regression yet."
            )


def check_y(y: Tensor, num_nodes: int) -> None:
    """Refuse labels that are not one row for each node.

    Raises:
        ValueError: If `y` is not of shape ``(N,)`` or ``(N, C)``.
    """
    if y.dim() not in (1, 2) or y.size(0) != num_nodes:
        raise ValueError(
            f"`y` must be of shape (N,) or (N, C) for the graph's {num_nodes:,} nodes, but its shape is"
            f" {tuple(y.shape)}. HINT: unlabelled nodes have label -1 and stay out of the masks."
        )


def _check_x(data: Data) -> None:
    if data.x is None:
        raise ValueError(
            "`data` must hold node features `x` of shape (N, F), but it has none."
            " HINT: `torch_geometric.transforms.OneHotDegree` or a table of embeddings can serve as features."
        )
    if data.x.dim() != 2:
        raise ValueError(
            f"`x` must be of shape (N, F), but its shape is {tuple(data.x.shape)}."
            " HINT: `x.view(len(x), -1)` makes one row of features per node."
        )
    if data.x.size(0) != data.num_nodes:
        raise ValueError(
            f"`x` must hold one row per node, but has {data.x.size(0):,} rows for {data.num_nodes:,} nodes."
            " HINT: set `data.num_nodes` to the number of rows, or drop it."
        )
    check_finite(data.x, "x")


def check_finite(x: Tensor, name: str) -> None:
    """Refuse features that are NaN or infinite.

    Raises:
        ValueError: If there is one.
    """
    values = x.coalesce() if x.layout == torch.sparse_coo else x
    values = values if values.layout == torch.strided else values.values()
    if values.is_floating_point():
        # In parts: a mask of all values, and what it is computed from, would take more memory than they do.
        parts = torch.split(values.reshape(-1), _CHECKED_AT_ONCE)
        num_bad = sum(part.numel() - int(torch.isfinite(part).sum()) for part in parts)
        if num_bad:
            raise ValueError(
                f"`{name}` must be finite, but {num_bad:,} of its {values.numel():,} values are NaN or infinite."
                " HINT: `torch.nan_to_num` replaces them; find out first where they come from."
            )


def check_same_graph(num_nodes: int, num_edges: int, data: Any) -> None:
    """Refuse a built sampler of another graph.

    Args:
        num_nodes: Number of nodes of the sampler's graph, of all types.
        num_edges: Number of its edges.
        data: The graph whose attributes are to be cut.

    Raises:
        ValueError: If the numbers are not the graph's.
    """
    if (num_nodes, num_edges) != (data.num_nodes, data.num_edges):
        raise ValueError(
            f"`sampler` must be of the graph in `data`, of {data.num_nodes:,} nodes and {data.num_edges:,} edges, but"
            f" its own has {num_nodes:,} and {num_edges:,}. HINT: build its topology from `data`."
        )


def to_cpu(values: Any) -> Tensor:
    """Bring values to the CPU as a tensor, whatever torch's default device is."""
    return values.detach().cpu() if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def split_nodes(data: Data, stage: str) -> Tensor | None:
    """Find the nodes of a split.

    Args:
        data: The graph, with boolean masks ``train_mask``, ``val_mask``, ``test_mask``, ``predict_mask``.
        stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

    Returns:
        Long tensor of node ids in ascending order, or None if the graph has no such mask.

    Raises:
        ValueError: If the mask is not boolean of shape ``(N,)``, or has no node.
    """
    name = f"{stage}_mask"
    mask = getattr(data, name, None)
    if mask is None:
        return None
    mask = to_cpu(mask)
    if mask.dtype != torch.bool or mask.shape != (data.num_nodes,):
        raise ValueError(
            f"`{name}` must be a boolean tensor of shape ({data.num_nodes},), but got {mask.dtype} of shape"
            f" {tuple(mask.shape)}. HINT: of several splits choose one, as in `data.{name} = data.{name}[:, 0]`."
        )
    nodes: Tensor = mask.nonzero().view(-1).cpu()
    if not len(nodes):
        raise ValueError(
            f"`{name}` must choose at least one node, but all of its {data.num_nodes:,} values are False."
            f" HINT: remove `data.{name}` to go without this split, or make one with"
            " `torch_geometric.transforms.RandomNodeSplit`."
        )
    return nodes


def is_multilabel(y: Tensor | None) -> bool:
    """Whether a node can have several labels: `y` of shape ``(N, C)``. OGB's ``(N, 1)`` holds classes."""
    return y is not None and y.dim() == 2 and y.size(1) > 1


def count_classes(y: Tensor) -> int:
    """Number of classes in labels of shape ``(N,)`` (negative: unlabelled), or of columns in ``(N, C)``."""
    return int(y.size(1)) if is_multilabel(y) else max(int(y.max()) + 1, 1)


def check_labels(y: Tensor | None, splits: Iterable[tuple[str, Tensor]], num_classes: int) -> None:
    """Refuse labels that a loss would crash on.

    Args:
        y: Long tensor of shape ``(N,)`` or ``(N, 1)``; for multi-label graphs 0 and 1 in a tensor of shape ``(N, C)``.
        splits: Names of the splits and their nodes.
        num_classes: Number of classes ``C``.

    Raises:
        ValueError: If there are no labels, or a node of a split has a label outside ``0 .. C - 1``.
    """
    if y is None:
        raise ValueError("`data` must hold labels `y` to train on, but it has none. HINT: use only `predict`.")
    for stage, nodes in splits:
        labels = y[nodes]
        if is_multilabel(y):
            wrong = labels[(labels != 0) & (labels != 1)]
            expected = "0 or 1 (multi-label)"
        else:
            wrong = labels[(labels < 0) | (labels >= num_classes)]
            expected = f"from 0 to {num_classes - 1} ({num_classes} classes)"
        if wrong.numel():
            raise ValueError(
                f"`y` must be {expected} for every node of `{stage}_mask`, but {wrong.numel():,} of"
                f" {labels.numel():,} labels are not, such as {wrong[0].item():g}."
                " HINT: leave unlabelled nodes out of the masks."
            )


def check_model(
    module: L.LightningModule, samplers: Mapping[str, NodeSampler], *, num_classes: int | None, layerwise: bool
) -> None:
    """Refuse a model that the batches do not fit. A module is asked only for what it declares.

    Args:
        module: May declare `num_layers`, `out_channels` and `supports_layerwise`.
        samplers: Samplers, by the argument that says how many hops they have.
        num_classes: Number of classes of the graph, if known.
        layerwise: Whether evaluation relies on the module asking for layer-wise outputs.

    Raises:
        ValueError: If a sampler has fewer hops than the model has layers, the model has fewer outputs than there are
            classes, or it does not evaluate layer by layer though it should.
    """
    depth = getattr(module, "num_layers", None)
    for name, sampler in samplers.items():
        if not isinstance(depth, int) or sampler.num_hops is None:
            continue
        hops = f"{sampler.num_hops} {'hop' if sampler.num_hops == 1 else 'hops'}"
        if sampler.num_hops < depth:
            raise ValueError(
                f"`{name}` must hold one fan-out for each of the model's {depth} layers, but samples {hops}"
                f" ({getattr(sampler, name.removeprefix('eval_'), sampler)})."
                " HINT: lengthen it, or lower the model's `num_layers`."
            )
        if sampler.num_hops > depth:
            rank_zero_warn(
                f"`{name}` samples {hops}, but the model has {depth} {'layer' if depth == 1 else 'layers'}:"
                " what lies beyond is sampled and never used. HINT: shorten it."
            )
    out_channels = getattr(module, "out_channels", None)
    if isinstance(out_channels, int) and num_classes is not None and out_channels < num_classes:
        raise ValueError(
            f"The model's `out_channels` must be at least the graph's {num_classes} classes, but is {out_channels}."
            " HINT: build it with `out_channels=datamodule.num_classes`."
        )
    if layerwise and not getattr(module, "supports_layerwise", False):
        raise ValueError(
            f"`eval_mode='layerwise'` needs a LightningModule that asks for layer-wise outputs, but"
            f" {type(module).__name__} does not declare `supports_layerwise = True`."
            " HINT: use `NodeClassifier`, or `eval_mode='sampled'` with `eval_num_neighbors=[-1, ...]`."
        )
