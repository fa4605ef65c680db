"""Gated graph neural network."""

from __future__ import annotations

from torch import Tensor, nn
from torch_geometric.nn import GatedGraphConv
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN


class GGNN(SampledGNN):
    """Gated graph neural network (Li et al.: Gated Graph Sequence Neural Networks, ICLR 2016).

    A linear map lifts the features to the hidden width, each layer sums its neighbours' messages into a GRU cell whose
    state is the node, and a linear map reads the outputs off the last state. The first map belongs to layer 0 and
    the second to the last layer, so that the net has `num_layers` layers and each is one hop. Each layer has its
    own weights (the paper unrolls one set), and nothing but dropout and `norm` stands between two layers.

    Args:
        in_channels: Number of features per node.
        hidden_channels: Width of the GRU state.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers: ``"batch"``, ``"layer"`` or None.

    Examples:
        >>> import torch
        >>> GGNN(8, 16, 3)(torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])).shape
        torch.Size([4, 3])
    """

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
        self.lin_in = nn.Linear(in_channels, hidden_channels)
        self.lin_out = nn.Linear(hidden_channels, out_channels)
        self.convs = nn.ModuleList(_GatedLayer(hidden_channels, num_layers=1) for _ in range(num_layers))

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
        if layer == 0:
            x = self.lin_in(x)
        x = self.convs[layer](x, edge_index, num_targets, edge_norm)
        return self.lin_out(x) if layer == self.num_layers - 1 else x

    @override
    def activate(self, x: Tensor) -> Tensor:
        return x


class _GatedLayer(GatedGraphConv):
    """PyG's layer, with the GRU (most of its cost) run for the first `num_targets` nodes only."""

    @override
    def forward(self, x: Tensor, edge_index: Tensor, num_targets: int, edge_norm: Tensor | None) -> Tensor:
        size = (x.size(0), num_targets)
        messages = self.propagate(edge_index, x=x @ self.weight[0], edge_weight=edge_norm, size=size)
        out: Tensor = self.rnn(messages, x[:num_targets])
        return out
