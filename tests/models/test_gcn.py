from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch
from torch.testing import assert_close
from torch_geometric.nn import GCNConv

from lightning_gnnopt.models import GCN
from lightning_gnnopt.models.gcn import symmetric_weights

from .graphs import features, in_degrees, random_graph, small_net


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_full_graph_equals_pygs_layers(depth: int) -> None:
    edge_index, x = random_graph(20, 60), features(20, 5, dtype=torch.float32)
    net = small_net("gcn", depth).float()

    expected = x
    for layer, (i, o) in enumerate(pairwise(net.channels)):
        conv = GCNConv(i, o)
        conv.load_state_dict(net.convs[layer].state_dict())
        expected = conv(expected, edge_index)
        expected = expected if layer == depth - 1 else expected.relu()

    assert_close(net(x, edge_index), expected, rtol=1e-5, atol=1e-5)


def test_full_graph_equals_the_normalised_adjacency_matrix() -> None:
    edge_index, x = random_graph(12, 40), features(12, 5)
    net = small_net("gcn", 1)
    adjacency = torch.eye(12, dtype=torch.float64)
    for source, target in edge_index.t().tolist():
        adjacency[target, source] += source != target
    inv_sqrt = adjacency.sum(dim=1).rsqrt()
    propagation = inv_sqrt[:, None] * adjacency * inv_sqrt[None, :]

    weight, bias = net.convs[0].lin.weight, net.convs[0].bias
    assert_close(net(x, edge_index), propagation @ x @ weight.t() + bias)


@pytest.mark.parametrize("fan_out", [1, 2, 4, 5])
def test_the_mean_over_all_samples_is_the_full_aggregate(fan_out: int) -> None:
    # Node 0 has five in-neighbours, one of them over two edges; the neighbours' own degrees differ.
    edges = torch.tensor([[1, 2, 3, 4, 4], [0, 0, 0, 0, 0]])
    x, in_degree = features(5, 5), torch.tensor([5, 0, 3, 7, 1])
    net = small_net("gcn", 1)
    expected = net(x, edges, in_degree=in_degree)[0]

    subsets = list(combinations(range(5), fan_out))
    outputs = [net(x, edges[:, list(subset)], in_degree=in_degree)[0] for subset in subsets]

    assert_close(torch.stack(outputs).mean(dim=0), expected)
    if fan_out < 5:
        assert max((out - expected).abs().max() for out in outputs) > 1e-3


def test_degrees_of_the_batch_would_be_wrong() -> None:
    edges = torch.tensor([[1], [0]])
    x, net = features(2, 5), small_net("gcn", 1)
    in_degree = torch.tensor([1, 9])  # the neighbour's own in-edges are beyond the batch

    source, target = net.convs[0].lin(x[1]), net.convs[0].lin(x[0])
    right = source / (2 * 10) ** 0.5 + target / 2 + net.convs[0].bias
    assert_close(net(x, edges, in_degree=in_degree)[0], right)
    assert not torch.allclose(net(x, edges)[0], right)


def test_weights_by_hand() -> None:
    # 0 <- 1 (sampled twice of d = 4), 0 <- 0 (a self loop, replaced), 1 <- 2 (d = 1).
    edges = torch.tensor([[1, 1, 0, 2], [0, 0, 0, 1]])
    out_edges, weights = symmetric_weights(edges, torch.tensor([4, 1, 0]), num_targets=2)

    assert out_edges.tolist() == [[1, 1, 0, 2, 0, 1], [0, 0, 0, 1, 0, 1]]
    assert_close(weights, torch.tensor([2 / 10**0.5, 2 / 10**0.5, 0, 1 / 2**0.5, 1 / 5, 1 / 2]))


def test_weights_follow_the_precision_of_the_features() -> None:
    net, edge_index = GCN(5, 6, 3).eval(), random_graph(10, 30)
    assert net.bfloat16()(features(10, 5).bfloat16(), edge_index).dtype == torch.bfloat16
    in_degree = in_degrees(edge_index, 10)
    assert symmetric_weights(edge_index, in_degree, 10)[1].dtype == torch.float32
    assert symmetric_weights(edge_index, in_degree.double(), 10)[1].dtype == torch.float64
