from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lightning_gnnopt.models import GAT

from .graphs import features, random_graph, small_net


def dense_layer(conv: torch.nn.Module, x: Tensor, edge_index: Tensor) -> Tensor:
    """One attention layer as loops; every node attends to itself once. Returns shape (N, heads, width)."""
    heads, width = conv.att_src.shape[1:]
    h = (x @ conv.lin.weight.t()).view(-1, heads, width)
    rows = []
    for node in range(x.size(0)):
        sources = [s for s, t in edge_index.t().tolist() if t == node and s != node] + [node]
        score = (h[sources] * conv.att_src[0]).sum(-1) + (h[node] * conv.att_dst[0]).sum(-1)
        alpha = torch.softmax(torch.where(score > 0, score, 0.2 * score), dim=0)
        rows.append((alpha.unsqueeze(-1) * h[sources]).sum(dim=0))
    return torch.stack(rows)


def test_equals_loops_over_nodes() -> None:
    edge_index, x = random_graph(10, 25), features(10, 5)
    net = small_net("gat", 2)

    hidden = torch.nn.functional.elu(dense_layer(net.convs[0], x, edge_index).flatten(1) + net.convs[0].bias)
    expected = dense_layer(net.convs[1], hidden, edge_index).mean(dim=1) + net.convs[1].bias

    assert_close(net(x, edge_index), expected)


def test_hidden_width_is_that_of_all_heads_together() -> None:
    net = GAT(5, 64, 3, num_layers=3)
    assert [(c.heads, c.out_channels, c.concat) for c in net.convs] == [(8, 8, True), (8, 8, True), (8, 3, False)]


def test_attention_dropout_acts_in_training_only() -> None:
    edge_index, x = random_graph(10, 25), features(10, 5, dtype=torch.float32)
    torch.manual_seed(0)
    net = GAT(5, 8, 3, heads=2, dropout=0.0, attention_dropout=0.5)
    plain = GAT(5, 8, 3, heads=2, dropout=0.0)
    plain.load_state_dict(net.state_dict())

    assert not torch.allclose(net(x, edge_index), plain(x, edge_index))
    assert_close(net.eval()(x, edge_index), plain(x, edge_index))


def test_bad_arguments_are_refused() -> None:
    message = r"`hidden_channels` must be divisible by `heads`, but got 60 and 8. HINT: .*; 64 would do."
    with pytest.raises(ValueError, match=message):
        GAT(5, 60, 3, heads=8)
    with pytest.raises(ValueError, match=r"`heads` must be at least 1, but got 0\."):
        GAT(5, 60, 3, heads=0)
    with pytest.raises(ValueError, match=r"`attention_dropout` must be at least 0 and below 1, but got 1\.5\."):
        GAT(5, 64, 3, attention_dropout=1.5)
