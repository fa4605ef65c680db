"""One rank's rows after the other's: exact, with few rows there at a time, and little kept."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn

from lightning_gnnopt.parallel import BNS, SAR, Quantized
from lightning_gnnopt.parallel.current import CurrentPart, computing_on
from lightning_gnnopt.parallel.installed import Installed
from lightning_gnnopt.parallel.policies import Policies
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from tests.parallel.ranks import graph, on_parts, on_whole, parts_of, plan_of
from tests.parallel.test_exact import CONVS, F, N, Net, assert_same, heads, owners, weighted

MERGED = [conv for conv in CONVS if conv not in ("sage-std", "general")]


@pytest.mark.parametrize("conv", MERGED)
@pytest.mark.parametrize("kind", ["random", "one-has-all"])
def test_gradients_are_exact(conv: str, kind: str) -> None:
    torch.manual_seed(0)
    net, edge_index = Net(CONVS[conv], pyg.GraphNorm(8)).double(), graph(N)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    got = on_parts(net, x, parts_of(edge_index, owners(kind, 3), 3), loss, policy=SAR())
    assert_same(got, on_whole(net, x, edge_index, loss), 1e-10)


@pytest.mark.parametrize("policy", ["exact", SAR(), BNS(0.5)], ids=str)
@pytest.mark.parametrize("conv", ["sage", "sage-max", "gcn", "gat", "gatv2", "transformer"])
def test_a_rank_that_only_sends_takes_part(conv: str, policy: object) -> None:
    """Edges go from lower ranks to higher ones only, and some targets have none."""
    torch.manual_seed(0)
    owner, edge_index = torch.arange(N) * 3 // N, graph(N)
    edge_index = edge_index[:, (owner[edge_index[0]] < owner[edge_index[1]]) & (edge_index[1] % 5 > 0)]
    net, parts = Net(CONVS[conv]).double(), parts_of(edge_index, owner.numpy(), 3)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    got = on_parts(net, x, parts, loss, policy=policy)
    if policy == BNS(0.5):
        assert bool(got.grad_x.isfinite().all())
    else:
        assert_same(got, on_whole(net, x, edge_index, loss), 1e-10)


def test_nodes_without_edges_are_zero_under_a_maximum() -> None:
    edge_index = torch.tensor([[0, 1, 2], [1, 0, 0]])
    net, x = pyg.SAGEConv(F, 8, aggr="max").double(), -torch.rand(6, F, dtype=torch.float64) - 1
    loss = weighted(torch.ones(6, 8))
    got = on_parts(net, x, parts_of(edge_index, [0, 1, 1, 0, 2, 2], 3), loss, policy=SAR())
    assert_same(got, on_whole(net, x, edge_index, loss), 1e-12)


@pytest.mark.parametrize("policy", [[SAR(), BNS(0.3)], [SAR(), Quantized(8)]], ids=str)
@pytest.mark.parametrize("conv", ["sage", "gat"])
def test_it_goes_with_others(conv: str, policy: list[object]) -> None:
    """With a sampled halo it is what the sampled halo is; with fewer bits it is near."""
    torch.manual_seed(0)
    net, parts = Net(CONVS[conv]).double(), parts_of(graph(N), owners("random", 3), 3)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    got = on_parts(net, x, parts, loss, policy=policy, step=4)
    if policy[1] == BNS(0.3):
        assert_same(got, on_parts(net, x, parts, loss, policy=BNS(0.3), step=4), 1e-10)
    else:
        assert 0 < (got.out - on_whole(net, x, graph(N), loss).out).abs().max() < 0.05


class Measured:
    """Runs a net on parts under a policy; keeps the most rows that were there, and the bytes that autograd kept."""

    def __init__(self, net: nn.Module, edge_index: Tensor, num_parts: int, policy: object) -> None:
        parts = parts_of(edge_index, torch.arange(N).mul(num_parts).div(N, rounding_mode="floor").numpy(), num_parts)
        self.sent = [part.recv_counts for part in parts]
        self.sizes = [(part.num_inner, len(part.edge_id), num_parts * part.num_inner) for part in parts]

        def work(channel: ThreadChannel) -> tuple[int, int]:
            part, model = parts[channel.rank], copy.deepcopy(net)
            current = CurrentPart(plan_of(part), channel, N, policies=Policies.of(policy))  # type: ignore[arg-type]
            current.start(0, training=True)
            kept = {}

            def pack(tensor: Tensor) -> Tensor:
                kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
                return tensor

            installed = Installed(model)
            rows = torch.randn(part.num_inner, F, requires_grad=True)
            edges = torch.from_numpy(part.edge_index)
            with computing_on(current):
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                    out = model(rows, edges)
                saved = sum(kept.values())
                out.sum().backward()
            installed.remove()
            return current.most_live_rows, saved

        found = run_ranks(num_parts, work)
        self.most_live, self.saved = [rows for rows, _ in found], [saved for _, saved in found]


@pytest.mark.parametrize("conv", ["sage", "gat", "transformer", "sage-max"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_what_is_fetched_ahead_changes_nothing(conv: str, prefetch: int) -> None:
    torch.manual_seed(0)
    net, parts = Net(CONVS[conv]).double(), parts_of(graph(N), owners("random", 4), 4)
    x, loss = torch.randn(N, F, dtype=torch.float64), weighted(torch.randn(N, 8, dtype=torch.float64))
    assert_same(on_parts(net, x, parts, loss, policy=SAR(prefetch)), on_whole(net, x, graph(N), loss), 1e-10)


@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_no_more_rows_are_there_than_some_ranks_send(prefetch: int) -> None:
    """One rank and those that are fetched ahead, of three others."""
    net = pyg.SAGEConv(F, 8)
    measured = Measured(net, graph(N), 4, SAR(prefetch))
    for most_live, sent in zip(measured.most_live, measured.sent, strict=True):
        assert sorted(sent)[-1] <= most_live <= sum(sorted(sent)[-1 - prefetch :])
    assert prefetch == 0 or measured.most_live[0] > max(measured.sent[0])


@pytest.mark.parametrize(("conv", "tensors"), [(pyg.GATConv, 1), (pyg.TransformerConv, 2)])
@pytest.mark.parametrize("prefetch", [0, 1, 2])
def test_rows_are_on_their_way_before_they_are_waited_for(
    conv: Any, tensors: int, prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three exchanges, forward and again in the backward pass, where gradients come in between."""
    told: list[str] = []
    start = ThreadChannel.start

    def record(self: ThreadChannel, *args: Any, kind: str = "forward") -> Callable[[], Tensor]:
        wait = start(self, *args, kind=kind)
        if self.rank or kind != "forward":
            return wait
        told.append("start")

        def waiting() -> Tensor:
            told.append("wait")
            return wait()

        return waiting

    monkeypatch.setattr(ThreadChannel, "start", record)
    Measured(conv(F, 8), graph(N), 4, SAR(prefetch))
    most, on_way = 0, 0
    for event in told:
        on_way += 1 if event == "start" else -1
        most = max(most, on_way)
    assert on_way == 0
    assert most == tensors * (1 + prefetch)


def test_no_message_of_attention_is_kept() -> None:
    """What autograd keeps does not grow with the edges, but for a logit of each."""
    net = partial(heads, pyg.GATConv)(F, 16)
    few, many = graph(N, 400), graph(N, 4000)
    exact = Measured(net, many, 2, "exact").saved[0] - Measured(net, few, 2, "exact").saved[0]
    sequential = Measured(net, many, 2, SAR()).saved[0] - Measured(net, few, 2, SAR()).saved[0]
    edges = 1800  # more, of a part
    assert exact > edges * 16 * 4  # a message of 16 values each
    assert sequential < edges * (2 * 4 + 8 + 2 * 8)  # attention of two heads, its place, the edge itself


@pytest.mark.parametrize("conv", ["gat", "transformer", "sage"])
def test_what_is_kept_falls_with_the_parts(conv: str) -> None:
    """So much for a node and an edge of one's own, and a number for each round and node: found with few parts, it says
    what more parts keep."""
    net, edge_index = CONVS[conv](F, 16), graph(N, 4000)
    few = [Measured(net, edge_index, num_parts, SAR(0)) for num_parts in (1, 2, 3)]
    more = Measured(net, edge_index, 6, SAR(0))
    sizes = np.array([size for run in few for size in run.sizes], dtype=float)
    costs = np.linalg.lstsq(sizes, np.array([saved for run in few for saved in run.saved], dtype=float), rcond=None)[0]
    assert more.saved == pytest.approx(np.array(more.sizes) @ costs, rel=0.02)
    of_rounds = costs[2] * np.array(
        [size[2] for size in more.sizes]
    )  # a number for each, which rows of features outweigh
    assert max(more.saved - of_rounds) < 0.2 * few[0].saved[0]


class Updating(pyg.MessagePassing):
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.propagate(edge_index, x=x)  # type: ignore[no-any-return]

    def update(self, aggr_out: Tensor) -> Tensor:
        return aggr_out.relu()


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (pyg.SAGEConv(F, 8, aggr="std"), "SAGEConv aggregates with 'std', which `SAR` cannot put together"),
        (Updating(), "Updating has an `update` of its own"),
    ],
    ids=["std", "update"],
)
def test_what_cannot_be_put_together_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_parts(net, torch.randn(N, F), parts_of(graph(N), owners("blocks", 2), 2), lambda o, _: o.sum(), policy=SAR())
