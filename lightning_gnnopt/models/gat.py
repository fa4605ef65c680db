"""Graph attention network."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch_geometric.nn import GATConv
from torch_geometric.utils import softmax
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN


class GAT(SampledGNN):
    """Graph attention network (Velickovic et al.: Graph Attention Networks, ICLR 2018).

    Hidden layers concatenate their heads, the last layer averages them. An edge that stands for ``w`` edges of the full
    graph (`edge_norm`) counts ``w`` times in the softmax.

    Args:
        in_channels: Number of features per node.
        hidden_channels: Total width of a hidden layer, i.e. `heads` times the width of one head.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        heads: Number of attention heads in every layer.
        attention_dropout: Probability to drop a normalised attention coefficient while training.
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers: ``"batch"``, ``"layer"`` or None.

    Raises:
        ValueError: If `heads` is below 1 or does not divide `hidden_channels`, or `attention_dropout` is outside
            ``[0, 1)``.

    Examples:
        >>> net = GAT(8, 64, 3, heads=8)
        >>> [(conv.heads, conv.out_channels) for conv in net.convs]
        [(8, 8), (8, 3)]
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        heads: int = 8,
        attention_dropout: float = 0.0,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, out_channels, num_layers, dropout=dropout, norm=norm)
        if heads < 1:
            raise ValueError(f"`heads` must be at least 1, but got {heads}.")
        if hidden_channels % heads:
            raise ValueError(
                f"`hidden_channels` must be divisible by `heads`, but got {hidden_channels} and {heads}."
                f" HINT: it is the width of all heads together; {hidden_channels // heads * heads + heads} would do."
            )
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"`attention_dropout` must be at least 0 and below 1, but got {attention_dropout}.")
        for layer, (i, o) in enumerate(pairwise(self.channels)):
            last = layer == num_layers - 1
            width = o if last else o // heads
            self.convs.append(_AttentionLayer(i, width, heads=heads, concat=not last, dropout=attention_dropout))

    @override
    def activate(self, x: Tensor) -> Tensor:
        return nn.functional.elu(x)


class _AttentionLayer(GATConv):
    """PyG's layer, whose softmax counts each edge as often as it stands for an edge of the full graph."""

    def __init__(self, in_channels: int, out_channels: int, **kwargs: Any) -> None:
        # Edge features without parameters for them: `forward` only brings them into the order of the edges it attends
        # over. The self loops it adds stand for themselves, and log(1) is 0.
        super().__init__(in_channels, out_channels, fill_value=0.0, **kwargs)

    @override
    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor, *, edge_norm: Tensor | None = None
    ) -> Tensor:
        out: Tensor = super().forward(x, edge_index, None if edge_norm is None else edge_norm.log())
        return out

    @override
    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: Tensor,
        edge_attr: Tensor | None,
        index: Tensor,
        ptr: Tensor | None,
        dim_size: int | None,
    ) -> Tensor:
        logit = nn.functional.leaky_relu(alpha_i + alpha_j, self.negative_slope)
        if edge_attr is not None:
            logit = logit + edge_attr.unsqueeze(-1)
        alpha = softmax(logit, index, ptr, dim_size)
        return nn.functional.dropout(alpha, self.dropout, self.training)
