"""Which convolutions aggregate what is linear in their sources."""

from __future__ import annotations

import torch_geometric.nn as pyg
from torch_geometric.nn import MessagePassing

LINEAR = (
    pyg.APPNP, pyg.ARMAConv, pyg.GCN2Conv, pyg.GCNConv, pyg.GINConv, pyg.GatedGraphConv, pyg.GraphConv, pyg.LGConv,
    pyg.MFConv, pyg.RGCNConv, pyg.SAGEConv, pyg.SGConv, pyg.SSGConv, pyg.SimpleConv, pyg.TAGConv,
)  # fmt: skip
"""Convolutions whose messages are linear in their sources; which of them are is :func:`is_linear`."""


def is_linear(conv: MessagePassing) -> bool:
    """Whether a convolution's aggregate is linear in its sources: then scaled rows of a sampled halo do."""
    return isinstance(conv, LINEAR) and conv.aggr in ("add", "sum", "mean")
