"""Gated attention network."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from typing_extensions import override

from lightning_gnnopt.models.base import SampledGNN
from lightning_gnnopt.models.gaan_conv import GaANConv


class GaAN(SampledGNN):
    """Gated attention network: attention whose heads each node weighs by a gate of its own.

    Zhang, Shi, Xie, Ma, King and Yeung: GaAN: Gated Attention Networks for Learning on Large and Spatiotemporal
    Graphs, UAI 2018. The layer is :class:`GaANConv`; the activation between layers is LeakyReLU(0.1).

    Args:
        in_channels: Number of features per node.
        hidden_channels: Width of the layers between the first and the last.
        out_channels: Number of outputs per node.
        num_layers: Number of layers, at least 1.
        heads: Number of attention heads in every layer.
        key_channels: Width of a head's queries and keys (d_a in the paper).
        value_channels: Width of a head's values (d_v).
        gate_channels: Width of the gate's pooled projection (d_m).
        dropout: Probability to drop an element of a hidden representation, in ``[0, 1)``.
        norm: Normalisation between two layers: ``"batch"``, ``"layer"`` or None.

    Raises:
        ValueError: If `heads` or a width is below 1.

    Examples:
        >>> import torch
        >>> GaAN(8, 16, 3, heads=2)(torch.randn(4, 8), torch.tensor([[0, 1, 2], [1, 2, 3]])).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        num_layers: int = 2,
        *,
        heads: int = 8,
        key_channels: int = 24,
        value_channels: int = 32,
        gate_channels: int = 64,
        dropout: float = 0.5,
        norm: str | None = None,
    ) -> None:
        super().__init__(in_channels, hidden_channels, out_channels, num_layers, dropout=dropout, norm=norm)
        options = {
            "heads": heads,
            "key_channels": key_channels,
            "value_channels": value_channels,
            "gate_channels": gate_channels,
        }
        for name, size in options.items():
            if size < 1:
                raise ValueError(f"`{name}` must be at least 1, but got {size}.")
        self.convs = nn.ModuleList(GaANConv(i, o, **options) for i, o in pairwise(self.channels))

    @override
    def activate(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x, 0.1)
