"""Normalisations over all nodes of a graph whose nodes are on several ranks.

Each function does what a class of torch's or PyG's does on the whole graph, with the same parameters and buffers.
Sums over nodes are taken over all ranks, twice: first the mean, then the squares around it, as sums of squares lose
digits. The gradients of these sums go to all ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from lightning_gnnopt.parallel.current import CurrentPart
from lightning_gnnopt.parallel.halo import global_sum


def mean_over_nodes(x: Tensor, part: CurrentPart) -> Tensor:
    """Average rows over the nodes of all ranks.

    Args:
        x: Shape ``(n, ...)``.
        part: The rank's part.

    Returns:
        Shape ``(1, ...)``.

    Raises:
        ValueError: If there are not as many rows as nodes.
    """
    if x.size(0) != part.plan.num_inner:
        raise ValueError(
            f"Statistics over the {part.plan.num_inner:,} nodes of this part are needed, but there are {x.size(0):,}"
            " rows. HINT: a norm after pooling, say, cannot be parallelised."
        )
    return global_sum(x.sum(0, keepdim=True), part.channel) / part.num_nodes


def centred(x: Tensor, part: CurrentPart) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows less their mean, the mean, and the mean of the squares of what is left."""
    mean = mean_over_nodes(x, part)
    x = x - mean
    return x, mean, mean_over_nodes(x * x, part)


def batch_norm(module: Any, part: CurrentPart, x: Tensor) -> Tensor:
    """``torch.nn.BatchNorm1d`` on ``(n, C)``, of which the running statistics are those of the whole graph."""
    uses_batch = module.training or module.running_mean is None
    if not uses_batch:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    if x.dim() != 2:
        raise ValueError(
            f"Rows of shape (n, C) are needed, but got {tuple(x.shape)}. HINT: flatten them before the norm."
        )
    x, mean, var = centred(x, part)
    if module.training and module.track_running_stats and module.running_mean is not None:
        module.num_batches_tracked.add_(1)
        momentum = 1.0 / float(module.num_batches_tracked) if module.momentum is None else module.momentum
        unbiased = var.detach()[0] * (part.num_nodes / max(1, part.num_nodes - 1))
        module.running_mean.lerp_(mean.detach()[0].to(module.running_mean.dtype), momentum)
        module.running_var.lerp_(unbiased.to(module.running_var.dtype), momentum)
    return _affine(x * torch.rsqrt(var + module.eps), module)


def instance_norm(
    module: Any, part: CurrentPart, x: Tensor, batch: Any = None, batch_size: int | None = None
) -> Tensor:
    """PyG's ``InstanceNorm`` on one graph."""
    _one_graph(module, batch)
    if not module.training and module.track_running_stats:
        return type(module).forward(module, x)  # type: ignore[no-any-return]
    x, mean, var = centred(x, part)
    if module.training and module.track_running_stats and module.running_mean is not None:
        unbiased = var.detach()[0] * (part.num_nodes / max(1, part.num_nodes - 1))
        module.running_mean.lerp_(mean.detach()[0], module.momentum)
        module.running_var.lerp_(unbiased, module.momentum)
    return _affine(x * torch.rsqrt(var + module.eps), module)


def graph_norm(module: Any, part: CurrentPart, x: Tensor, batch: Any = None, batch_size: int | None = None) -> Tensor:
    """PyG's ``GraphNorm`` (Cai et al., ICML 2021) on one graph."""
    _one_graph(module, batch)
    x = x - mean_over_nodes(x, part) * module.mean_scale
    var = mean_over_nodes(x * x, part)
    return module.weight * x / (var + module.eps).sqrt() + module.bias  # type: ignore[no-any-return]


def pair_norm(module: Any, part: CurrentPart, x: Tensor, batch: Any = None, batch_size: int | None = None) -> Tensor:
    """PyG's ``PairNorm`` (Zhao & Akoglu, ICLR 2020) on one graph."""
    _one_graph(module, batch)
    x = x - mean_over_nodes(x, part)
    if module.scale_individually:
        return module.scale * x / (module.eps + x.norm(2, -1, keepdim=True))  # type: ignore[no-any-return]
    squares = mean_over_nodes((x * x).sum(-1, keepdim=True), part)
    return module.scale * x / (module.eps + squares).sqrt()  # type: ignore[no-any-return]


def mean_subtraction_norm(
    module: Any, part: CurrentPart, x: Tensor, batch: Any = None, dim_size: int | None = None
) -> Tensor:
    """PyG's ``MeanSubtractionNorm`` (Yang et al., 2022) on one graph."""
    _one_graph(module, batch)
    return x - mean_over_nodes(x, part)


def layer_norm(module: Any, part: CurrentPart, x: Tensor, batch: Any = None, batch_size: int | None = None) -> Tensor:
    """PyG's ``LayerNorm``; its ``mode="graph"``, the default, is over all nodes and channels."""
    if module.mode != "graph":
        return type(module).forward(module, x, batch, batch_size)  # type: ignore[no-any-return]
    _one_graph(module, batch)
    x = x - mean_over_nodes(x.mean(-1, keepdim=True), part)
    std = mean_over_nodes((x * x).mean(-1, keepdim=True), part).sqrt()
    return _affine(x / (std + module.eps), module)


GLOBAL_NORMS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.BatchNorm1d: batch_norm,
    nn.SyncBatchNorm: batch_norm,
    pyg.InstanceNorm: instance_norm,
    pyg.GraphNorm: graph_norm,
    pyg.PairNorm: pair_norm,
    pyg.MeanSubtractionNorm: mean_subtraction_norm,
    pyg.LayerNorm: layer_norm,
}
"""What computes a class's output on all ranks together: a function of the module, the part and what `forward` takes."""


def _affine(x: Tensor, module: Any) -> Tensor:
    if module.weight is not None:
        x = x * module.weight
    return x if module.bias is None else x + module.bias


def _one_graph(module: nn.Module, batch: Tensor | None) -> None:
    if batch is not None:
        raise ValueError(
            f"{type(module).__name__} can be parallelised over the nodes of one graph only, but got a `batch` of"
            " several. HINT: leave `batch` out, or use data parallelism."
        )
