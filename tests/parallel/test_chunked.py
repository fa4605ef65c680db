"""Targets in chunks: the same outputs and gradients, for less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_geometric.nn as pyg
from torch import nn

from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.parallel import ChunkedPropagate
from lightning_gnnopt.parallel.chunked import chunks_of
from tests.parallel.ranks import graph, on_whole
from tests.parallel.test_exact import CONVS, F, N, Net, weighted


@pytest.mark.parametrize("keep", ["nothing", "on-host", "all"])
@pytest.mark.parametrize("conv", CONVS)
def test_outputs_and_gradients_are_the_same(conv: str, keep: str) -> None:
    torch.manual_seed(0)
    net, edge_index = Net(CONVS[conv], pyg.BatchNorm(8)).double(), graph(N)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    expected = on_whole(net, x, edge_index, loss)
    rows = x.clone().requires_grad_()
    with ChunkedPropagate(4, keep=keep, min_edges=0).on(net):
        out = net(rows, edge_index)
        loss(out, torch.arange(N)).backward()
    assert (out - expected.out).abs().max() <= 1e-10
    assert (rows.grad - expected.grad_x).abs().max() <= 1e-10 * max(1.0, float(expected.grad_x.abs().max()))
    for name, parameter in net.named_parameters():
        assert torch.allclose(parameter.grad, expected.grads[name], atol=1e-10), name  # type: ignore[arg-type]
    assert not any({"propagate", "edge_updater"} & vars(module).keys() for module in net.modules())


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_chunks_have_all_edges_of_their_targets_once(num_chunks: int, is_sorted: bool) -> None:
    edge_index = graph(20, 90)
    edge_index[1][edge_index[1] < 3] = 5  # some targets without edges
    if is_sorted:
        edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    chunks = chunks_of(edge_index, 20, num_chunks)
    assert len(chunks) <= num_chunks
    assert [chunk.first for chunk in chunks] == [0, *(chunk.last for chunk in chunks[:-1])]
    assert chunks[-1].last == 20
    places = torch.cat([torch.arange(90)[chunk.edges] for chunk in chunks])
    assert sorted(places.tolist()) == list(range(90))
    for chunk in chunks:
        assert isinstance(chunk.edges, slice) == is_sorted
        edges = edge_index[:, chunk.edges]
        assert torch.equal(chunk.edge_index + torch.tensor([[0], [chunk.first]]), edges)
        if num_chunks < 10:
            assert edges.size(1) <= 90 / num_chunks + 15  # a target's edges stay together


def test_a_graph_without_edges() -> None:
    conv, x = pyg.GATConv(F, 8), torch.randn(5, F)
    nothing = torch.empty(2, 0, dtype=torch.long)
    with ChunkedPropagate(3, min_edges=0).on(conv):
        out = conv(x, nothing)
    assert torch.equal(out, conv(x, nothing))


def test_it_takes_less_memory() -> None:
    torch.manual_seed(0)
    net, edge_index = pyg.GATConv(16, 16, heads=4), graph(500, 40_000)
    x = torch.randn(500, 16)

    def peak(chunked: ChunkedPropagate | None) -> int:
        net.zero_grad()
        with PeakMeter("cpu") as meter:
            if chunked is None:
                net(x, edge_index).sum().backward()
            else:
                with chunked.on(net):
                    net(x, edge_index).sum().backward()
        return int(meter.peak.allocated_bytes)

    messages = 40_500 * 64 * 4
    assert peak(None) > 2 * messages
    assert peak(ChunkedPropagate(16)) < 0.6 * messages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ChunkedPropagate(0), "`num_chunks` must be at least 1, but got 0"),
        (lambda: ChunkedPropagate(keep="everything"), "everything"),
        (lambda: ChunkedPropagate().install(nn.Linear(2, 2)), "Linear has no convolution of PyG"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_edges_the_other_way_round_are_refused() -> None:
    conv = pyg.SAGEConv(F, 8, flow="target_to_source")
    with (
        ChunkedPropagate(2, min_edges=0).on(conv),
        pytest.raises(ValueError, match=r'SAGEConv must have `flow="source_to_target"` to be divided'),
    ):
        conv(torch.randn(N, F), graph(N))
