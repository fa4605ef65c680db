"""Models on parts of a graph are what they are on the whole graph: outputs, gradients, statistics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch_geometric.nn as pyg
from torch import Tensor, nn
from torch_geometric.nn.conv import gcn_conv

from lightning_gnnopt.parallel.installed import Installed
from tests.parallel.ranks import Result, graph, on_parts, on_whole, parts_of

N, F = 60, 8
BARS = {torch.float64: 1e-10, torch.float32: 1e-5}


class Net(nn.Module):
    def __init__(self, make: Callable[[int, int], nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = make(F, 8), norm or nn.Identity(), make(8, 8)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x, edge_index)).relu(), edge_index)  # type: ignore[no-any-return]


class Relational(nn.Module):
    """RGCN calls ``propagate`` once for each relation, with some of the edges."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = pyg.RGCNConv(i, o, num_relations=3)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, (x[edge_index[1], 0] > 0).long())  # type: ignore[no-any-return]


class Gine(nn.Module):
    """Attributes of edges that a layer computes from sources and targets."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.conv = pyg.GATv2Conv(i, o // 2, heads=2, edge_dim=1, add_self_loops=False)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.conv(x, edge_index, x[edge_index[1], :1].tanh())  # type: ignore[no-any-return]


def heads(conv: Any, i: int, o: int) -> nn.Module:
    return conv(i, o // 2, heads=2)  # type: ignore[no-any-return]


CONVS: dict[str, Callable[[int, int], nn.Module]] = {
    "sage": pyg.SAGEConv,
    "sage-max": partial(pyg.SAGEConv, aggr="max"),
    "sage-std": partial(pyg.SAGEConv, aggr=["std", "median"]),
    "gcn": pyg.GCNConv,
    "gcn-improved": partial(pyg.GCNConv, improved=True),
    "gcn-without-loops": partial(pyg.GCNConv, add_self_loops=False),
    "gcn-cached": partial(pyg.GCNConv, cached=True),
    "gat": partial(heads, pyg.GATConv),
    "gatv2": partial(heads, pyg.GATv2Conv),
    "gatv2-edges": Gine,
    "transformer": partial(heads, pyg.TransformerConv),
    "gin": lambda i, o: pyg.GINConv(nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o)), train_eps=True),
    "rgcn": Relational,
    "edge": lambda i, o: pyg.EdgeConv(nn.Linear(2 * i, o)),
    "graph": pyg.GraphConv,
    "tag": pyg.TAGConv,
    "sg": partial(pyg.SGConv, K=3),
    "arma": partial(pyg.ARMAConv, num_stacks=2, num_layers=2),
    "gated": lambda i, o: pyg.GatedGraphConv(o, num_layers=3),
    "res-gated": pyg.ResGatedGraphConv,
    "general": partial(pyg.GeneralConv, attention=True),
}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: pyg.BatchNorm(8),
    "batch-cumulative": lambda: nn.BatchNorm1d(8, momentum=None, affine=False),
    "batch-untracked": lambda: nn.BatchNorm1d(8, track_running_stats=False),
    "instance": lambda: pyg.InstanceNorm(8, affine=True, track_running_stats=True),
    "graph": lambda: pyg.GraphNorm(8),
    "pair": pyg.PairNorm,
    "pair-individually": lambda: pyg.PairNorm(scale_individually=True),
    "mean-subtraction": pyg.MeanSubtractionNorm,
    "layer-graph": lambda: pyg.LayerNorm(8),
    "layer-node": lambda: pyg.LayerNorm(8, mode="node"),
    "diff-group": lambda: pyg.DiffGroupNorm(8, groups=3),
    "torch-layer": lambda: nn.LayerNorm(8),
}


def owners(kind: str, num_parts: int) -> np.ndarray:
    if kind == "one-has-all":  # the others have no node, no halo and no target
        return np.full(N, num_parts - 1)
    if kind == "blocks":
        return np.arange(N) * num_parts // N
    return np.random.default_rng(0).integers(0, num_parts, N)


def weighted(weights: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss over some of the nodes, none of which may be in a part."""

    def loss(out: Tensor, nodes: Tensor) -> Tensor:
        return (out * weights[nodes].to(out)).sum()

    return loss


def assert_same(got: Result, expected: Result, bar: float) -> None:
    def far(one: Tensor, other: Tensor) -> float:
        scale = max(1.0, float(other.abs().max())) if other.numel() else 1.0
        return float((one - other).abs().max()) / scale if other.numel() else 0.0

    assert far(got.out, expected.out) <= bar
    assert far(got.grad_x, expected.grad_x) <= bar
    assert got.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        assert far(got.grads[name], grad) <= bar, name
    for buffers in got.buffers:
        for name, buffer in expected.buffers[0].items():
            assert far(buffers[name].double(), buffer.double()) <= bar, name


def check(net: nn.Module, dtype: torch.dtype, kind: str, num_parts: int) -> Result:
    torch.manual_seed(1)
    net, edge_index = net.to(dtype), graph(N)
    x = torch.randn(N, F, dtype=torch.float64).to(dtype)
    weights = torch.randn(N, 8, dtype=torch.float64)
    weights[torch.arange(N) < N // 3] = 0.0  # with "blocks" of three, a part without targets
    expected = on_whole(net, x, edge_index, weighted(weights))
    got = on_parts(net, x, parts_of(edge_index, owners(kind, num_parts), num_parts), weighted(weights))
    assert_same(got, expected, BARS[dtype])
    return got


@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("conv", CONVS)
def test_convolutions(conv: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(Net(CONVS[conv]), dtype, "blocks", 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("training", [True, False])
def test_norms(norm: str, training: bool) -> None:
    torch.manual_seed(0)
    net = Net(pyg.SAGEConv, NORMS[norm]())
    for parameter in net.norm.parameters():  # else scales of one and shifts of zero hide what is forgotten
        nn.init.uniform_(parameter, 0.5, 1.5)
    check(net.train(training), torch.float64, "blocks", 3)


@pytest.mark.parametrize("num_parts", [1, 2, 4, 7])
@pytest.mark.parametrize("kind", ["random", "one-has-all"])
@pytest.mark.parametrize("conv", ["gcn", "gat", "sage-max"])
def test_parts_of_any_kind(conv: str, kind: str, num_parts: int) -> None:
    torch.manual_seed(0)
    check(Net(CONVS[conv], pyg.BatchNorm(8)), torch.float64, kind, num_parts)


def test_only_the_halo_travels_once_for_each_layer_there_and_back() -> None:
    torch.manual_seed(0)
    parts = parts_of(graph(N), owners("random", 3), 3)
    got = check(Net(partial(heads, pyg.GATv2Conv)), torch.float64, "random", 3)
    for part, traffic in zip(parts, got.traffic, strict=True):
        rows = sum(part.send_counts), part.num_halo
        assert traffic.by_kind == {"forward": 2 * rows[0] * 8 * 8, "backward": 2 * rows[1] * 8 * 8}
        assert traffic.exchanges == 4
    assert sum(t.by_kind["forward"] for t in got.traffic) == sum(t.by_kind["backward"] for t in got.traffic)


def test_gcn_fetches_its_norm_once() -> None:
    torch.manual_seed(0)
    got = check(Net(pyg.GCNConv), torch.float64, "random", 3)
    assert [traffic.exchanges for traffic in got.traffic] == [5, 5, 5]


def test_a_model_is_as_before_when_nothing_is_installed_any_more() -> None:
    torch.manual_seed(0)
    norm, before = gcn_conv.gcn_norm, Net(partial(heads, pyg.GATConv), pyg.GraphNorm(8))
    net = nn.ModuleList([before, Net(partial(pyg.GCNConv, cached=True), pyg.BatchNorm(8))])
    names = [set(vars(module)) for module in net.modules()]
    installed = Installed(net)
    x, edge_index = torch.randn(N, F), graph(N)
    with torch.no_grad():  # no part: nothing is exchanged
        net[1].eval()(x, edge_index)
    assert gcn_conv.gcn_norm is not norm
    installed.remove()
    assert gcn_conv.gcn_norm is norm
    assert [set(vars(module)) for module in net.modules()] == names
    convs = [module for module in net.modules() if isinstance(module, pyg.MessagePassing)]
    assert not any(conv._propagate_forward_pre_hooks or conv._forward_hooks for conv in convs)
    assert [conv._cached_edge_index for conv in convs[2:]] == [None, None]


class SeveralGraphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = pyg.GraphNorm(F)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.norm(x, torch.zeros(len(x), dtype=torch.long))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (SeveralGraphs(), "GraphNorm can be parallelised over the nodes of one graph only"),
        (Net(partial(pyg.SAGEConv, flow="target_to_source")), 'SAGEConv must have `flow="source_to_target"`'),
        (Net(partial(pyg.GCNConv, flow="target_to_source")), '`flow` must be "source_to_target" on a part'),
    ],
    ids=["batch", "flow", "gcn-flow"],
)
def test_what_cannot_be_done_is_refused(net: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_parts(net, torch.randn(N, F), parts_of(graph(N), owners("blocks", 2), 2), lambda out, nodes: out.sum())


def test_a_layer_on_other_rows_is_refused() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = pyg.SAGEConv(F, 8)

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.conv(x[:5], edge_index[:, :0])  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match=r"Rows of the 30 nodes of this part are needed, but there are 5\. HINT: "):
        on_parts(Pooled(), torch.randn(N, F), parts_of(graph(N), owners("blocks", 2), 2), lambda out, _: out.sum())
