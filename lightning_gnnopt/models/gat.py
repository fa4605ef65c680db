"""Graph attention network."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch_geometric.nn import GATConv
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN


class GAT(SampledGNN):
    """Graph attention network (Velickovic et al.: Graph Attention Networks, ICLR 2018).

    Hidden layers concatenate their heads, the last layer averages them.

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
            self.convs.append(GATConv(i, width, heads=heads, concat=not last, dropout=attention_dropout))

    @override
    def activate(self, x: Tensor) -> Tensor:
        return nn.functional.elu(x)
