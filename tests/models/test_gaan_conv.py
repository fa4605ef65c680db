from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch_geometric.nn import MessagePassing

from lightning_gnnopt.models import GaANConv

from .graphs import features, random_graph


def make_conv(seed: int = 0) -> GaANConv:
    torch.manual_seed(seed)
    return GaANConv(4, 3, heads=2, key_channels=3, value_channels=5, gate_channels=2).double()


def dense(conv: GaANConv, x_src: Tensor, x_dst: Tensor, edge_index: Tensor) -> Tensor:
    """The paper's equations, node by node and head by head."""
    rows = []
    for i, x in enumerate(x_dst):
        z = x_src[[source for source, target in edge_index.t().tolist() if target == i]]
        if len(z):
            max_pooled, mean_pooled = conv.pool(z).amax(dim=0), z.sum(dim=0) / len(z)
        else:
            max_pooled, mean_pooled = x.new_zeros(2), x.new_zeros(4)
        gate = 1 / (1 + torch.exp(-conv.gate(torch.cat([x, max_pooled, mean_pooled]))))
        parts = [x]
        for k in range(2):
            attended = x.new_zeros(5)
            if len(z):
                query = conv.query(x)[3 * k : 3 * (k + 1)]
                score = torch.exp(conv.key(z)[:, 3 * k : 3 * (k + 1)] @ query)
                value = conv.value(z)[:, 5 * k : 5 * (k + 1)]
                value = torch.where(value > 0, value, 0.1 * value)
                attended = (score / score.sum()) @ value
            parts.append(gate[k] * attended)
        rows.append(conv.out(torch.cat(parts)))
    return torch.stack(rows)


def graph_with_everything() -> Tensor:
    """Node 9 is isolated, node 8 only sends, 1 -> 0 stands three times and 2 has a self loop."""
    edges = random_graph(8, 14)
    special = torch.tensor([[1, 1, 1, 8, 2], [0, 0, 0, 5, 2]])
    return torch.cat([edges, special], dim=1)


def test_equals_the_dense_reference_forward_and_backward() -> None:
    conv, edge_index = make_conv(), graph_with_everything()
    x = features(10, 4).requires_grad_()
    cotangent = features(10, 3, seed=1)
    wrt = [x, *conv.parameters()]

    out, reference = conv(x, edge_index), dense(conv, x, x, edge_index)

    assert_close(out, reference)
    grads = torch.autograd.grad(out, wrt, cotangent)
    assert_close(grads, torch.autograd.grad(reference, wrt, cotangent))
    assert all(grad.abs().sum() > 0 for grad in grads)


def test_gradcheck() -> None:
    conv, edge_index = make_conv(), random_graph(5, 8)
    assert torch.autograd.gradcheck(lambda x: conv(x, edge_index), features(5, 4).requires_grad_())


def test_bipartite_equals_the_dense_reference() -> None:
    conv = make_conv()
    x_src, x_dst = features(7, 4), features(3, 4, seed=1)
    edge_index = torch.tensor([[6, 2, 2, 0, 5], [0, 0, 0, 2, 2]])  # destination 1 has no neighbour

    out = conv((x_src, x_dst), edge_index)

    assert out.shape == (3, 3)
    assert_close(out, dense(conv, x_src, x_dst, edge_index))


def test_a_node_without_neighbours_has_only_itself() -> None:
    conv, x = make_conv(), features(1, 4)
    out = conv(x, torch.empty(2, 0, dtype=torch.long))
    alone = torch.cat([x, torch.zeros(1, 10, dtype=x.dtype)], dim=-1)
    assert_close(out, conv.out(alone))


def test_large_scores_do_not_overflow() -> None:
    conv, edge_index = make_conv(), graph_with_everything()
    assert conv(1e3 * features(10, 4), edge_index).isfinite().all()


def test_the_hooks_of_message_passing_see_every_part() -> None:
    conv, seen = make_conv(), []
    for module in conv.modules():
        if isinstance(module, MessagePassing):
            for part in ("edge_update", "message", "aggregate", "propagate"):
                register = getattr(module, f"register_{part}_forward_hook")
                register(lambda m, *args, part=part: seen.append((type(m).__name__, part, tuple(args[-1].shape))))

    conv((features(7, 4), features(3, 4)), torch.tensor([[6, 2, 2, 0], [0, 0, 0, 2]]))

    pools = [("SimpleConv", part, (n, width)) for width in (2, 4) for part, n in zip(PARTS, (4, 3, 3), strict=True)]
    attention = [("GaANConv", part, (n, 2, 5)) for part, n in zip(PARTS, (4, 3, 3), strict=True)]
    assert seen == [("GaANConv", "edge_update", (4, 2)), *attention, *pools]


PARTS = ("message", "aggregate", "propagate")


def test_reset_parameters_repeats_with_the_seed() -> None:
    conv = make_conv()
    torch.manual_seed(3)
    conv.reset_parameters()
    first = conv.query.weight.clone()
    conv.reset_parameters()
    assert not torch.equal(conv.query.weight, first)
    torch.manual_seed(3)
    conv.reset_parameters()
    assert torch.equal(conv.query.weight, first)


@pytest.mark.parametrize("heads", [1, 3])
def test_heads_shape_the_layer(heads: int) -> None:
    conv = GaANConv(4, 3, heads=heads, key_channels=2, value_channels=5, gate_channels=6)
    assert conv.query.weight.shape == (2 * heads, 4)
    assert conv.value.weight.shape == (5 * heads, 4)
    assert conv.gate.weight.shape == (heads, 4 + 6 + 4)
    assert conv.out.weight.shape == (3, 4 + 5 * heads)
