from __future__ import annotations

import pytest
import torch
import torch_geometric.nn as pyg
from torch.testing import assert_close

from .graphs import features, random_graph, sample_full, small_net


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_pygs_model_on_full_and_sampled_graphs(depth: int) -> None:
    edge_index, x, seeds = random_graph(20, 50), features(20, 5), [3, 11]
    net = small_net("sage", depth)
    reference = pyg.GraphSAGE(5, 6, depth, out_channels=3).double().eval()
    reference.load_state_dict(net.state_dict())
    assert_close(net(x, edge_index), reference(x, edge_index))

    batch = sample_full(edge_index, seeds, depth)
    expected = reference(x[batch.n_id], batch.edge_index, **batch.counts)[: len(seeds)]
    assert_close(net(x[batch.n_id], batch.edge_index, **batch.counts), expected)


def test_a_layer_equals_loops_over_nodes() -> None:
    edge_index, x = random_graph(10, 15), features(10, 5)
    net = small_net("sage", 1)
    conv = net.convs[0]
    for node in range(10):
        neighbours = [x[source] for source, target in edge_index.t().tolist() if target == node]
        mean = torch.stack(neighbours).mean(dim=0) if neighbours else torch.zeros(5, dtype=x.dtype)
        expected = conv.lin_l.weight @ mean + conv.lin_l.bias + conv.lin_r.weight @ x[node]
        assert_close(net(x, edge_index)[node], expected)
