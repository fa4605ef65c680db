"""The gated attention layer, which PyG does not have."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing, SimpleConv
from torch_geometric.utils import softmax
from typing_extensions import override

from lightning_gnnopt.models.edge_weights import weights_of_mean


class GaANConv(MessagePassing):
    r"""Gated attention aggregator (Zhang, Shi, Xie, Ma, King and Yeung: GaAN, UAI 2018).

    With neighbours :math:`z_j` of node :math:`x_i` and heads :math:`k`:

    .. math::
        y_i &= FC_o\Big(x_i \oplus \big\Vert_k\, g_i^k \sum_j w_{ij}^k\, \mathrm{LeakyReLU}_{0.1}(FC_v^k(z_j))\Big)

        w_{ij}^k &= \mathrm{softmax}_j \langle FC_{xa}^k(x_i), FC_{za}^k(z_j) \rangle

        g_i &= \sigma\Big(FC_g\big(x_i \oplus \max_j FC_m(z_j) \oplus \mathrm{mean}_j\, z_j\big)\Big)

    A node without neighbours has zeros in place of the attention, the maximum and the mean. The attention runs through
    this layer's ``edge_updater`` and ``propagate``, the gate's two pools through a ``SimpleConv`` each.

    Args:
        in_channels: Number of features of sources and destinations alike.
        out_channels: Number of outputs per destination.
        heads: Number of attention heads.
        key_channels: Width of a head's queries and keys (d_a in the paper).
        value_channels: Width of a head's values (d_v).
        gate_channels: Width of the gate's pooled projection (d_m).

    Examples:
        >>> conv = GaANConv(8, 3, heads=2)
        >>> conv(torch.randn(4, 8), torch.tensor([[1, 2, 3], [0, 0, 1]])).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 8,
        key_channels: int = 24,
        value_channels: int = 32,
        gate_channels: int = 64,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.key_channels = key_channels
        self.value_channels = value_channels
        self.query = nn.Linear(in_channels, heads * key_channels)
        self.key = nn.Linear(in_channels, heads * key_channels)
        self.value = nn.Linear(in_channels, heads * value_channels)
        self.pool = nn.Linear(in_channels, gate_channels)
        self.gate = nn.Linear(2 * in_channels + gate_channels, heads)
        self.out = nn.Linear(in_channels + heads * value_channels, out_channels)
        self.max_pool = SimpleConv(aggr="max")
        self.mean_pool = SimpleConv(aggr="mean")

    @override
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for module in self.children():
            if isinstance(module, nn.Linear):
                module.reset_parameters()

    @override
    def forward(
        self, x: Tensor | tuple[Tensor, Tensor], edge_index: Tensor, *, edge_norm: Tensor | None = None
    ) -> Tensor:
        """Compute the destinations' outputs.

        Args:
            x: Features of shape ``(N, in_channels)``, or a pair of sources ``(N, in_channels)`` and destinations
                ``(M, in_channels)``.
            edge_index: Long tensor of shape ``(2, E)``, source above destination.
            edge_norm: Shape ``(E,)``: an edge of weight ``w`` counts ``w`` times in the softmax and in the mean. The
                maximum is that of the given edges.

        Returns:
            Tensor of shape ``(M, out_channels)``, where ``M = N`` for a single `x`.
        """
        x_src, x_dst = (x, x) if isinstance(x, Tensor) else x
        size = (x_src.size(0), x_dst.size(0))

        query = self.query(x_dst).view(-1, self.heads, self.key_channels)
        key = self.key(x_src).view(-1, self.heads, self.key_channels)
        log_norm = None if edge_norm is None else edge_norm.log()
        # edge_updater_type: (query: Tensor, key: Tensor, log_norm: Tensor | None)
        alpha = self.edge_updater(edge_index, query=query, key=key, log_norm=log_norm, size=size)
        value = nn.functional.leaky_relu(self.value(x_src), 0.1).view(-1, self.heads, self.value_channels)
        # propagate_type: (value: Tensor, alpha: Tensor)
        attended = self.propagate(edge_index, value=value, alpha=alpha, size=size)

        max_pooled = self.max_pool((self.pool(x_src), None), edge_index, size=size)
        weight = None if edge_norm is None else weights_of_mean(edge_norm, edge_index[1], x_dst.size(0))
        mean_pooled = self.mean_pool((x_src, None), edge_index, weight, size=size)
        gate = torch.sigmoid(self.gate(torch.cat([x_dst, max_pooled, mean_pooled], dim=-1)))
        gated = (gate.unsqueeze(-1) * attended).flatten(start_dim=1)
        out: Tensor = self.out(torch.cat([x_dst, gated], dim=-1))
        return out

    @override
    def edge_update(
        self, query_i: Tensor, key_j: Tensor, log_norm: Tensor | None, index: Tensor, size_i: int | None
    ) -> Tensor:
        logit = (query_i * key_j).sum(dim=-1)
        if log_norm is not None:
            logit = logit + log_norm.unsqueeze(-1)
        alpha: Tensor = softmax(logit, index, num_nodes=size_i)
        return alpha

    @override
    def message(self, value_j: Tensor, alpha: Tensor) -> Tensor:
        return alpha.unsqueeze(-1) * value_j
