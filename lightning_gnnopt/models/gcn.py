"""Graph convolutional network whose normalisation is right on sampled batches."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN, count_in_edges


class GCN(SampledGNN):
    """Graph convolutional network (Kipf and Welling: Semi-Supervised Classification with GCNs, ICLR 2017).

    PyG's ``gcn_norm`` counts degrees in the batch, where the outermost nodes have no in-edges at all and the others
    only the sampled ones. Here the degrees come from the full graph, and a node that sampled only some of its
    neighbours scales their sum up, so that the aggregate is unbiased. See :func:`symmetric_weights`.

    Args:
        in_channels: Number of features per node.
        hidden_channels: Width of the layers between the first and the last.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers: ``"batch"``, ``"layer"`` or None.

    Examples:
        >>> net = GCN(8, 16, 3)
        >>> net(torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])).shape
        torch.Size([4, 3])
    """

    needs_in_degree = True

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, out_channels, num_layers, dropout=dropout, norm=norm)
        self.convs = nn.ModuleList(GCNConv(i, o, normalize=False) for i, o in pairwise(self.channels))

    @override
    def convolve(
        self,
        layer: int,
        x: Tensor,
        edge_index: Tensor,
        num_targets: int,
        in_degree: Tensor | None,
        edge_norm: Tensor | None,
    ) -> Tensor:
        assert in_degree is not None  # the base counts the edges where the batch brings no degrees
        edge_index, weight = symmetric_weights(edge_index, in_degree, num_targets, edge_norm)
        out: Tensor = self.convs[layer](x, edge_index, weight.to(x.dtype))
        return out[:num_targets]


def symmetric_weights(
    edge_index: Tensor, in_degree: Tensor, num_targets: int, edge_norm: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight edges by ``1 / sqrt((d_source + 1) * (d_target + 1))`` and give every target one self loop.

    A target with ``d`` in-edges in the full graph, of which ``s`` are in `edge_index`, has its neighbours' weights
    multiplied by ``d / s``: if the ``s`` are a uniform sample, the expected neighbour sum is the full one. Where the
    sampler says how many edges each one stands for (`edge_norm`), that takes the place of ``d / s``.
    Self loops that `edge_index` brings get weight 0, as the one added instead already counts.

    Args:
        edge_index: Long tensor of shape ``(2, E)``, source above destination.
        in_degree: Shape ``(N,)``, in-degrees ``d`` in the full graph, self loops not counted.
        num_targets: Number of nodes, the first of the ``N``, that receive messages.
        edge_norm: Shape ``(E,)``: with it, the sum over the sampled edges estimates that over all.

    Returns:
        The edges followed by the self loops, long of shape ``(2, E + num_targets)``, and their weights, float64 if
        `in_degree` is float64, else float32, of shape ``(E + num_targets,)``.

    Examples:
        Node 0 has two in-neighbours, of which only node 1 was sampled; its weight doubles from 1 / sqrt(3):

        >>> edges, weights = symmetric_weights(torch.tensor([[1], [0]]), torch.tensor([2, 0]), num_targets=1)
        >>> edges
        tensor([[1, 0],
                [0, 0]])
        >>> weights
        tensor([1.1547, 0.3333])
    """
    source, target = edge_index
    degree = in_degree if in_degree.is_floating_point() else in_degree.float()
    inv_sqrt = (degree + 1).rsqrt()
    if edge_norm is None:
        # Nodes without sampled in-edges have no edge to weight; the clamp only keeps the division finite.
        stands_for = (degree / count_in_edges(edge_index, in_degree.size(0)).clamp(min=1))[target]
    else:
        stands_for = edge_norm.to(degree.dtype)
    weight = inv_sqrt[source] * inv_sqrt[target] * stands_for * (source != target)
    loops = torch.arange(num_targets, device=edge_index.device).expand(2, -1)
    loop_weight = (degree[:num_targets] + 1).reciprocal()
    return torch.cat([edge_index, loops], dim=1), torch.cat([weight, loop_weight])
