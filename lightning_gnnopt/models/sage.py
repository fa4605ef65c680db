"""GraphSAGE with the mean aggregator."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch_geometric.nn import SAGEConv
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN
from lightning_gnnopt.models.edge_weights import weights_of_mean


class GraphSAGE(SampledGNN):
    """GraphSAGE-mean (Hamilton, Ying and Leskovec: Inductive Representation Learning on Large Graphs, NeurIPS 2017).

    Args:
        in_channels: Number of features per node.
        hidden_channels: Width of the layers between the first and the last.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers: ``"batch"``, ``"layer"`` or None.

    Examples:
        >>> import torch
        >>> net = GraphSAGE(8, 16, 3, num_layers=1)
        >>> x, edge_index = torch.randn(4, 8), torch.tensor([[1, 2, 3], [0, 0, 0]])
        >>> net(x, edge_index, num_sampled_nodes_per_hop=[1, 3], num_sampled_edges_per_hop=[3]).shape
        torch.Size([1, 3])
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
        self.convs = nn.ModuleList(_MeanLayer(i, o, aggr="mean") for i, o in pairwise(self.channels))


class _MeanLayer(SAGEConv):
    """PyG's layer, whose mean is a weighted one where the sampled edges have weights."""

    @override
    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor, *, edge_norm: Tensor | None = None
    ) -> Tensor:
        source, target = (x, x) if isinstance(x, Tensor) else x
        weight = None if edge_norm is None else weights_of_mean(edge_norm, edge_index[1], target.size(0))
        size = (source.size(0), target.size(0))
        # propagate_type: (x: tuple[Tensor, Tensor], weight: Tensor | None)
        mean = self.propagate(edge_index, x=(source, target), weight=weight, size=size)
        out: Tensor = self.lin_l(mean) + self.lin_r(target)
        return out

    @override
    def message(self, x_j: Tensor, weight: Tensor | None) -> Tensor:
        return x_j if weight is None else weight.unsqueeze(-1) * x_j
