from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from lightning_gnnopt.models import GCN, GraphSAGE
from lightning_gnnopt.models.base import check_hops, count_in_edges

from .graphs import OPTIONS, features, in_degrees, random_graph, sample_full, small_net

N, E, SEEDS = 30, 70, [4, 0, 17]


@pytest.mark.parametrize("extra_hops", [0, 1])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_full_neighbour_batch_gives_the_full_graphs_outputs(name: str, depth: int, extra_hops: int) -> None:
    edge_index, x = random_graph(N, E), features(N, 5)
    net = small_net(name, depth, norm="batch")
    degree = in_degrees(edge_index, N)
    full = net(x, edge_index)
    assert full.shape == (N, 3)

    batch = sample_full(edge_index, SEEDS, depth + extra_hops)
    inputs = {"x": x[batch.n_id], "edge_index": batch.edge_index, "in_degree": degree[batch.n_id]}
    untrimmed, trimmed = net(**inputs), net(**inputs, **batch.counts)

    assert trimmed.shape == (len(SEEDS), 3)
    assert_close(untrimmed[: len(SEEDS)], full[SEEDS])
    assert_close(trimmed, full[SEEDS])


@pytest.mark.parametrize("name", OPTIONS)
def test_trimming_changes_no_gradient(name: str) -> None:
    edge_index, x = random_graph(N, E), features(N, 5)
    net = small_net(name, 2, norm="layer")
    batch = sample_full(edge_index, SEEDS, 2)
    inputs = {"x": x[batch.n_id], "edge_index": batch.edge_index, "in_degree": in_degrees(edge_index, N)[batch.n_id]}

    parameters = list(net.parameters())
    untrimmed = torch.autograd.grad(net(**inputs)[: len(SEEDS)].square().sum(), parameters)
    trimmed = torch.autograd.grad(net(**inputs, **batch.counts).square().sum(), parameters)

    assert_close(trimmed, untrimmed)
    assert all(grad.abs().sum() > 0 for grad in trimmed)


@pytest.mark.parametrize("norm", [None, "batch", "layer"])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_layer_by_layer_equals_forward(name: str, depth: int, norm: str | None) -> None:
    edge_index, x = random_graph(N, E), features(N, 5)
    net = small_net(name, depth, norm=norm)
    degree = in_degrees(edge_index, N)
    expected = net(x, edge_index)

    whole = x
    for layer in range(net.num_layers):
        whole = net.inference_per_layer(layer, whole, edge_index, N)
    assert_close(whole, expected)

    by_batches = x
    one_hop = [sample_full(edge_index, nodes.tolist(), 1) for nodes in torch.arange(N).split(7)]
    for layer in range(net.num_layers):
        outs = [
            net.inference_per_layer(layer, by_batches[b.n_id], b.edge_index, b.num_nodes[0], in_degree=degree[b.n_id])
            for b in one_hop
        ]
        by_batches = torch.cat(outs)
    assert_close(by_batches, expected)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_outputs_follow_a_renumbering_of_the_nodes(name: str, data: st.DataObject) -> None:
    num_nodes = data.draw(st.integers(1, 8))
    node = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(node, node), max_size=20))
    order = torch.tensor(data.draw(st.permutations(range(num_nodes))))
    edge_index = torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t()
    x, net = features(num_nodes, 5), small_net(name, 2)

    new_id = torch.empty_like(order)
    new_id[order] = torch.arange(num_nodes)

    assert_close(net(x[order], new_id[edge_index]), net(x, edge_index)[order])


def test_batch_norm_sees_only_rows_the_seeds_read() -> None:
    edge_index, x = random_graph(N, E), features(N, 5)
    net = small_net("sage", 2, norm="batch", dropout=0.0)
    batch = sample_full(edge_index, SEEDS, 2)
    hidden = net.convs[0](x, edge_index)[batch.n_id[: sum(batch.num_nodes[:2])]]
    net.norms[0].reset_running_stats()

    net.train()(x[batch.n_id], batch.edge_index, **batch.counts)

    assert_close(net.norms[0].running_mean, 0.1 * hidden.mean(dim=0))


def test_dropout_acts_between_layers_in_training_only() -> None:
    edge_index, x = random_graph(N, E), features(N, 5)
    net = small_net("sage", 2, dropout=0.5)
    expected = net(x, edge_index)
    assert torch.equal(net(x, edge_index), expected)

    net.train()
    torch.manual_seed(1)
    dropped = net(x, edge_index)
    torch.manual_seed(1)
    hidden = torch.nn.functional.dropout(net.convs[0](x, edge_index).relu(), 0.5)
    assert_close(dropped, net.convs[1](hidden, edge_index))
    assert not torch.allclose(dropped, expected)
    assert_close(net.inference_per_layer(0, x, edge_index, N), net.convs[0](x, edge_index).relu())


@pytest.mark.parametrize("name", OPTIONS)
def test_reset_parameters_draws_every_weight_anew(name: str) -> None:
    net = small_net(name, 3, norm="batch")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(5)
    net.reset_parameters()
    first = {key: value.clone() for key, value in net.state_dict().items()}
    torch.manual_seed(5)
    net.reset_parameters()

    assert_close(net.state_dict(), first, rtol=0, atol=0)
    matrices = [key for key, value in first.items() if value.dim() > 1]
    assert matrices
    assert all(not torch.equal(first[key], before[key]) for key in matrices)
    assert torch.equal(net.norms[0].running_mean, torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("name", OPTIONS)
def test_a_batch_without_any_edge_runs(name: str) -> None:
    net, x = small_net(name, 2), features(3, 5)
    no_edges = torch.empty(2, 0, dtype=torch.long)
    counts = {"num_sampled_nodes_per_hop": [3, 0, 0], "num_sampled_edges_per_hop": [0, 0]}

    assert_close(net(x, no_edges, **counts), net(x, no_edges))


def test_count_in_edges_leaves_self_loops_out() -> None:
    edge_index = random_graph(N, E)
    assert (edge_index[0] == edge_index[1]).any()
    assert_close(count_in_edges(edge_index, N), in_degrees(edge_index, N))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_layers": 0}, "`num_layers` must be at least 1, but got 0."),
        ({"hidden_channels": 0}, "`hidden_channels` must be at least 1, but got 0."),
        ({"in_channels": -1}, "`in_channels` must be at least 1, but got -1."),
        ({"out_channels": 0}, "`out_channels` must be at least 1, but got 0."),
        ({"dropout": 1.0}, "`dropout` must be at least 0 and below 1, but got 1.0."),
        ({"dropout": -0.1}, "`dropout` must be at least 0 and below 1, but got -0.1."),
        (
            {"norm": "bacth"},
            "Unknown norm 'bacth'. Did you mean 'batch'? Known: batch, layer."
            " HINT: pass `norm=None` for no normalisation.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"must be|Unknown") as error:
        GraphSAGE(**{"in_channels": 5, "hidden_channels": 6, "out_channels": 3, **arguments})
    assert str(error.value) == message


def test_fewer_hops_than_layers_are_refused() -> None:
    edge_index = random_graph(N, E)
    batch = sample_full(edge_index, SEEDS, 2)
    with pytest.raises(ValueError, match=r"the net has 3 layers and the batch has 2 hops. HINT: give the sampler one"):
        small_net("sage", 3)(features(len(batch.n_id), 5), batch.edge_index, **batch.counts)


def test_counts_that_do_not_describe_the_batch_are_refused() -> None:
    x, edge_index = torch.zeros(4, 5), torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(
        ValueError, match="`num_sampled_nodes_per_hop` must sum to the 4 nodes of the batch, but sums to 3"
    ):
        check_hops(1, [1, 2], [3], x, edge_index)
    with pytest.raises(
        ValueError, match="`num_sampled_edges_per_hop` must sum to the 3 edges of the batch, but sums to 2"
    ):
        check_hops(1, [1, 3], [2], x, edge_index)


def test_one_kind_of_counts_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="must be given together, but one is None"):
        GCN(5, 6, 3)(torch.zeros(1, 5), torch.zeros(2, 0, dtype=torch.long), num_sampled_nodes_per_hop=[1, 0, 0])
