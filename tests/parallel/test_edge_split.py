"""Edges on several ranks, nodes on all: outputs and gradients are those of one process, on each rank."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch_geometric.nn as pyg
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.nn.conv import gcn_conv
from torch_geometric.utils import scatter

from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.parallel.edge_reduce import global_max
from lightning_gnnopt.parallel.edge_split import EdgeSplit
from lightning_gnnopt.parallel.thread_channel import ThreadChannel, run_ranks
from tests.parallel import fits
from tests.parallel.ranks import Result, graph, on_whole
from tests.parallel.test_exact import CONVS, F, N, Net, assert_same, weighted

SPLIT = {name: make for name, make in CONVS.items() if name != "sage-std"}


class EdgeWeighted(nn.Module):
    """Weights of edges that are learned, which GCN normalises."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv, self.scorer = pyg.GCNConv(i, o), nn.Linear(i, 1)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        weight = self.scorer(x[edge_index[0]] + x[edge_index[1]]).sigmoid().view(-1)
        return self.conv(x, edge_index, weight)  # type: ignore[no-any-return]


class Matrices(nn.Module):
    """A network within messages, of what belongs to edges."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = pyg.NNConv(i, o, nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, i * o)), aggr="mean")

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, x[edge_index[0], :2])  # type: ignore[no-any-return]


class Attributed(nn.Module):
    """Attention whose weights of edges a rank without edges never uses: GAT returns early there."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = pyg.GATConv(i, o, edge_dim=2, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, x[edge_index[1], :2])  # type: ignore[no-any-return]


SPLIT |= {
    "gcn-weighted": EdgeWeighted,
    "nn-mean": Matrices,
    "gat-attributes": Attributed,
    "gat-many": lambda i, o: pyg.GATConv(i, o, heads=3, concat=False, residual=True),
    "gin-min": lambda i, o: pyg.GINConv(nn.Linear(i, o), aggr="min"),
    "graph-max": partial(pyg.GraphConv, aggr="max"),
    "edge-mlp": lambda i, o: pyg.EdgeConv(nn.Sequential(nn.Linear(2 * i, 8), nn.ReLU(), nn.Linear(8, o)), aggr="mean"),
    "agnn": lambda i, o: pyg.AGNNConv(),
    "turned": partial(pyg.SAGEConv, flow="target_to_source"),
    "module": partial(pyg.SAGEConv, aggr=pyg.MeanAggregation()),
}


def on_ranks(
    net: nn.Module, x: Tensor, edge_index: Tensor, loss: Callable[[Tensor, Tensor], Tensor], num_ranks: int,
    shares: Sequence[float] | None = None,
) -> list[Result]:  # fmt: skip
    """What each rank has; all of them compute the whole loss."""

    def work(channel: ThreadChannel) -> Result:
        model, rows = copy.deepcopy(net), x.clone().requires_grad_()
        with EdgeSplit(channel, shares=shares).on(model):
            out = model(rows, edge_index)
        whole_loss: Any = loss(out, torch.arange(len(x)))
        whole_loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert rows.grad is not None
        return Result(out.detach(), rows.grad, grads, [dict(model.named_buffers())], [channel.traffic])

    return run_ranks(num_ranks, work, timeout_s=30.0)


def check(
    net: nn.Module, num_ranks: int, shares: Sequence[float] | None = None, edge_index: Tensor | None = None
) -> list[Result]:
    torch.manual_seed(1)
    net, edge_index = net.double(), graph(N) if edge_index is None else edge_index
    x, weights = torch.randn(N, F, dtype=torch.float64), torch.randn(N, 8, dtype=torch.float64)
    expected = on_whole(net, x, edge_index, weighted(weights))
    got = on_ranks(net, x, edge_index, weighted(weights), num_ranks, shares)
    assert len(got) == num_ranks
    for each in got:
        assert_same(each, expected, 1e-10)
    return got


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("conv", SPLIT)
def test_each_rank_has_what_one_process_has(conv: str, num_ranks: int) -> None:
    torch.manual_seed(0)
    check(Net(SPLIT[conv], pyg.BatchNorm(8)), num_ranks)


@pytest.mark.parametrize("shares", [(0.0, 1.0, 0.0), (0.7, 0.05, 0.25)], ids=str)
@pytest.mark.parametrize("conv", ["sage", "sage-max", "gcn", "gatv2-edges", "gat-attributes", "transformer", "edge"])
def test_uneven_shares_and_ranks_without_edges(conv: str, shares: tuple[float, ...]) -> None:
    torch.manual_seed(0)
    check(Net(SPLIT[conv]), 3, shares)


@pytest.mark.parametrize("conv", ["sage", "sage-max", "gat", "gat-attributes", "transformer"])
@pytest.mark.parametrize("num_edges", [0, 2])
def test_fewer_edges_than_ranks(conv: str, num_edges: int) -> None:
    torch.manual_seed(0)
    check(Net(SPLIT[conv]), 3, edge_index=graph(N, num_edges))


def test_all_ranks_go_through_the_backward_pass_where_only_weights_of_edges_learn() -> None:
    """The score of a rank without edges depends on none of them."""
    torch.manual_seed(0)
    net, x, edge_index = Attributed(F, 8).double(), torch.randn(N, F, dtype=torch.float64), graph(N)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_("edge" in name)
    net(x, edge_index).square().sum().backward()

    def work(channel: ThreadChannel) -> None:
        model = copy.deepcopy(net)
        model.zero_grad()
        with EdgeSplit(channel, shares=(0, 1, 2)).on(model):
            loss: Any = model(x, edge_index).square().sum()
        loss.backward()
        for (name, parameter), expected in zip(model.named_parameters(), net.parameters(), strict=True):
            assert (parameter.grad is None) == (expected.grad is None) == ("edge" not in name)
            assert parameter.grad is None or torch.allclose(parameter.grad, expected.grad, rtol=0, atol=1e-10)  # type: ignore[arg-type]

    run_ranks(3, work, timeout_s=10.0)


@pytest.mark.parametrize("num_edges", [0, 1, 7, 400])
@pytest.mark.parametrize("shares", [None, (1, 0, 0), (3, 1, 2)], ids=str)
def test_each_edge_is_one_ranks(num_edges: int, shares: Sequence[float] | None) -> None:
    split = EdgeSplit(ThreadChannel.connected(3)[0], shares=shares)
    edges = [torch.arange(num_edges)[split.edges_of(rank, num_edges)] for rank in range(3)]
    assert torch.cat(edges).tolist() == list(range(num_edges))
    if num_edges == 400:
        assert (
            list(map(len, edges))
            == {None: [133, 134, 133], (1, 0, 0): [400, 0, 0], (3, 1, 2): [200, 67, 133]}[
                shares if shares is None else tuple(shares)  # type: ignore[index]
            ]
        )


@pytest.mark.parametrize("aggr", ["max", "min"])
@pytest.mark.parametrize("values", [[1.0, 2.0], [-1.0, 0.0], [0.0, 3.0]], ids=str)
def test_equally_large_messages_share_the_gradient(aggr: str, values: list[float]) -> None:
    """Nodes of two values only: nearly each target has several that are equally large, on several ranks."""
    torch.manual_seed(0)
    conv, edge_index = pyg.SimpleConv(aggr=aggr), graph(N)
    x = torch.tensor(values, dtype=torch.float64)[torch.randint(2, (N, F))]
    loss = weighted(torch.randn(N, F, dtype=torch.float64))
    of_target = x[edge_index[0]] == conv(x, edge_index)[edge_index[1]]
    ties = scatter(of_target.long(), edge_index[1], dim=0, dim_size=N, reduce="sum")
    assert (ties > 1).double().mean() > 0.7
    for each in on_ranks(conv, x, edge_index, loss, 3):
        assert_same(each, on_whole(conv, x, edge_index, loss), 1e-12)


@pytest.mark.parametrize("shape", [(5,), (7, 3), (2, 0, 3), (1, 1)])
def test_the_maximum_over_ranks(shape: tuple[int, ...]) -> None:
    tensors = torch.randn(3, *shape)
    got = run_ranks(3, lambda channel: (global_max(tensors[channel.rank], channel), channel.traffic.bytes_sent))
    for largest, num_bytes in got:
        assert torch.equal(largest, tensors.amax(0))
        assert num_bytes <= 2 * (tensors[0].numel() + 3) * 4


def test_nothing_is_computed_for_the_backward_pass_in_evaluation() -> None:
    torch.manual_seed(0)
    net, x, edge_index = Net(SPLIT["gat"]).eval(), torch.randn(N, F), graph(N)

    def work(channel: ThreadChannel) -> Tensor:
        model = copy.deepcopy(net)
        with EdgeSplit(channel).on(model), torch.no_grad():
            out: Tensor = model(x, edge_index)
        assert not out.requires_grad
        return out

    for out in run_ranks(2, work):
        assert torch.allclose(out, net(x, edge_index), atol=1e-5)


class Alone(ThreadChannel):
    """A rank whose others have nothing to say."""

    def __init__(self, rank: int) -> None:
        super().__init__(rank, [None] * 2, None)  # type: ignore[arg-type]

    def start(self, rows: Tensor, send_counts: Any, recv_counts: Any, *, kind: str = "forward") -> Any:
        return lambda: rows.new_full((sum(recv_counts), *rows.shape[1:]), float("-inf"))

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor * 2 if tensor.dtype == torch.int64 else tensor  # the check of edges and weights


def test_messages_take_less_memory() -> None:
    torch.manual_seed(0)
    net, edge_index, x = pyg.TransformerConv(16, 16, heads=4), graph(500, 40_000), torch.randn(500, 16)

    def peak(shares: tuple[float, float]) -> int:
        with PeakMeter("cpu") as meter, EdgeSplit(Alone(0), shares=shares).on(net):
            loss: Any = net(x, edge_index).sum()
            loss.backward()
        return int(meter.peak.allocated_bytes)

    assert peak((1, 7)) < 0.3 * peak((1, 0))


def test_dropout_within_messages_is_each_ranks_own_and_that_of_nodes_the_same() -> None:
    net, x, edge_index = pyg.GATConv(F, 8, dropout=0.5), torch.ones(N, F), graph(N)
    outs, after = [], []
    for rank, shares in [(0, (1.0, 0.0)), (1, (0.0, 1.0)), (1, (0.9, 0.1))]:
        torch.manual_seed(7)
        with EdgeSplit(Alone(rank), shares=shares).on(net):
            outs.append(net(x, edge_index))
        after.append(torch.rand(3))
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])
    assert not torch.allclose(outs[0], outs[1])


def test_a_parameter_that_no_rank_uses_has_no_gradient() -> None:
    conv = pyg.EdgeConv(nn.ModuleDict({"used": nn.Linear(2 * F, 8), "unused": nn.Linear(3, 3)}))
    conv.nn.forward = conv.nn["used"].forward
    for each in check(conv, 2):
        assert set(each.grads) == {"nn.used.weight", "nn.used.bias"}


def test_a_model_is_as_before_when_nothing_is_installed_any_more() -> None:
    norm, net = gcn_conv.gcn_norm, nn.ModuleList([Net(SPLIT["gat"], pyg.BatchNorm(8)), Net(pyg.GCNConv)])
    names = [set(vars(module)) for module in net.modules()]
    with EdgeSplit(Alone(0)).on(net):
        assert gcn_conv.gcn_norm is not norm
        net[1](torch.randn(N, F), graph(N)).sum().backward()
    assert gcn_conv.gcn_norm is norm
    assert [set(vars(module)) for module in net.modules()] == names
    assert not any(module._forward_pre_hooks for module in net.modules())
    assert all(type(parameter) is nn.Parameter for parameter in net.parameters())


class OwnUpdate(pyg.SimpleConv):
    def update(self, inputs: Tensor) -> Tensor:
        return inputs + 1


def edge_conv_with_norm() -> nn.Module:
    return pyg.EdgeConv(nn.Sequential(nn.Linear(2 * F, 8), nn.BatchNorm1d(8)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (pyg.SAGEConv(F, 8, aggr="median"), "SAGEConv aggregates with 'median', .*only sum, mean, max, min. HINT: "),
        (pyg.SAGEConv(F, 8, aggr=["mean", "max"]), r"SAGEConv aggregates with \['mean', 'max'\]"),
        (pyg.GENConv(F, 8), "GENConv aggregates with 'softmax'"),
        (pyg.FastRGCNConv(F, 8, 2), "FastRGCNConv has an `aggregate` of its own"),
        (OwnUpdate(), "OwnUpdate has an `update` of its own"),
        (edge_conv_with_norm(), "EdgeConv's `nn.1` is a BatchNorm1d over messages"),
        (pyg.EdgeConv(pyg.Linear(-1, 8)), "EdgeConv has weights whose shape is not known yet"),
        (nn.Linear(F, 8), "Linear has no convolution of PyG"),
    ],
    ids=["median", "several", "softmax", "aggregate", "update", "norm", "lazy", "none"],
)
def test_what_cannot_be_divided_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_ranks(net, torch.randn(N, F), graph(N), lambda out, nodes: out.sum(), 2)


def test_a_norm_of_nodes_within_a_convolution_is_not_refused() -> None:
    torch.manual_seed(0)
    check(pyg.GINConv(nn.Sequential(nn.Linear(F, 8), nn.BatchNorm1d(8))), 2)


@pytest.mark.parametrize("what", ["edge_index", "weights"])
def test_ranks_that_differ_are_refused_on_all_of_them(what: str) -> None:
    torch.manual_seed(0)
    net, edge_index = pyg.SAGEConv(F, 8), graph(N)

    def work(channel: ThreadChannel) -> None:
        model, edges = copy.deepcopy(net), edge_index
        if channel.rank == 1 and what == "edge_index":
            edges = edge_index.flip(1)  # the same edges in another order
        elif channel.rank == 1:
            with torch.no_grad():
                model.lin_l.weight[0, 0] += 1e-6
        with (
            EdgeSplit(channel).on(model),
            pytest.raises(ValueError, match=rf"All processes must have the same {what} in SAGEConv to divide"),
        ):
            model(torch.randn(N, F), edges)

    run_ranks(3, work)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: EdgeSplit(shares=[1, -1]), r"`shares` must be numbers from 0 that are not all 0, but got \[1, -1\]"),
        (lambda: EdgeSplit(shares=[0, 0]), "`shares` must be numbers from 0"),
        (lambda: EdgeSplit().install(pyg.SimpleConv()), "`EdgeSplit` needs a `channel` outside of a Trainer"),
        (lambda: EdgeSplit(Alone(0), shares=[1]).install(pyg.SimpleConv()), "each of the 2 processes, but there are 1"),
        (lambda: EdgeSplit().setup(None, None, "fit"), "needs several processes, but this Trainer has one"),  # type: ignore[arg-type]
    ],
    ids=["negative", "zero", "channel", "number", "one"],
)
def test_what_makes_no_sense_is_refused(wrong: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wrong()


def test_a_sparse_graph_is_refused() -> None:
    adjacency = torch.eye(N).to_sparse_csr()
    with EdgeSplit(Alone(0)).on(conv := pyg.SAGEConv(F, 8)), pytest.raises(ValueError, match="SAGEConv must get"):
        conv(torch.randn(N, F), adjacency)


class Fitted(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = fits.Net()

    def training_step(self, data: Any, batch_idx: int) -> Tensor:
        out = self.net(data.x, data.edge_index)
        return nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(num_processes: int) -> dict[str, Tensor]:
    L.seed_everything(3, verbose=False)
    module = Fitted()
    trainer = L.Trainer(
        accelerator="cpu", devices=num_processes, max_epochs=15, use_distributed_sampler=False,
        strategy=DDPStrategy(start_method="fork") if num_processes > 1 else "auto",
        callbacks=[EdgeSplit(shares=(0.8, 0.2))] if num_processes > 1 else [],
        logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([fits.make_graph()], batch_size=None))  # type: ignore[arg-type]
    assert not any("propagate" in vars(conv) for conv in module.modules())
    return module.state_dict()


def main() -> None:
    """Fit over two processes and in one, and print how far the weights are apart."""
    warnings.simplefilter("ignore")
    two, one = fit(2), fit(1)
    start = Fitted().state_dict()
    print("MOVED", max(float((one[name] - start[name]).abs().max()) for name in one))
    print("APART", max(float((one[name].double() - two[name].double()).abs().max()) for name in one))


@pytest.mark.slow
def test_a_trainer_over_two_processes_trains_what_one_does() -> None:
    """In a process of its own, that forks."""
    root, env = Path(__file__).resolve().parents[2], {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.parallel.test_edge_split"]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("MOVED", "APART")))
    assert float(found["MOVED"]) > 0.1
    assert float(found["APART"]) < 1e-4


if __name__ == "__main__":
    main()
