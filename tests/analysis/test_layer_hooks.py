from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch_geometric.nn import (
    ARMAConv,
    ChebConv,
    EdgeConv,
    FiLMConv,
    GATConv,
    GatedGraphConv,
    GATv2Conv,
    GCNConv,
    GINConv,
    GraphConv,
    MessagePassing,
    PNAConv,
    ResGatedGraphConv,
    RGCNConv,
    SAGEConv,
    SGConv,
    TAGConv,
    TransformerConv,
)

from lightning_gnnopt.analysis.labels import Label
from lightning_gnnopt.analysis.layer_hooks import LayerHooks
from lightning_gnnopt.analysis.layers import find_layers
from lightning_gnnopt.analysis.marks import Marks
from lightning_gnnopt.models.gaan_conv import GaANConv
from tests.analysis.spending import HandClock, SpendingConv, spend

NODES, EDGES = 12, 40


@pytest.fixture
def graph() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(NODES, 3, generator=generator), torch.randint(NODES, (2, EDGES), generator=generator)


def profile(model: nn.Module, step: Callable[[], Tensor], clock: HandClock) -> tuple[dict[Label, float], LayerHooks]:
    """Run a step as a session does, and add up the seconds of each label."""
    layers, _ = find_layers(model)
    marks = Marks(clock)
    hooks = LayerHooks(model, layers, marks)
    marks.open()
    hooks.attach()
    marks.push(Label("forward"))
    loss = step()
    marks.pop()
    marks.push(Label("backward"))
    loss.backward()
    marks.pop()
    hooks.detach()
    labels, stamps = marks.close()
    seconds: dict[Label, float] = {}
    for label, start, end in zip(labels, stamps, stamps[1:], strict=False):
        seconds[label] = seconds.get(label, 0.0) + end - start
    return {label: spent for label, spent in seconds.items() if spent}, hooks


@pytest.mark.parametrize("needs_grad", [True, False])
@pytest.mark.parametrize("attends", [True, False])
def test_each_step_of_message_passing_gets_the_time_it_spends_both_ways(
    graph: tuple[Tensor, Tensor], attends: bool, needs_grad: bool
) -> None:
    clock = HandClock()
    model = nn.ModuleList([SpendingConv(clock, attends=attends), SpendingConv(clock, 100.0)])
    x, edge_index = graph
    x = x.clone().requires_grad_(needs_grad)

    def step() -> Tensor:
        hidden = spend(model[0](x, edge_index).relu(), clock, 7000, 9000)
        return spend(model[1](hidden, edge_index).sum(), clock, 50_000, 30_000)

    seconds, hooks = profile(model, step, clock)

    expected = {Label("forward"): 57_000.0, Label("backward"): 39_000.0}
    for layer, scale in (("0", 1.0), ("1", 100.0)):
        for phase, times in (("forward", scale), ("backward", 2 * scale)):
            expected[Label(phase, layer, "vertex")] = 17 * times
            expected[Label(phase, layer, "edge", "message")] = 2 * times
            expected[Label(phase, layer, "edge", "aggregate")] = 4 * times
            expected[Label(phase, layer, "edge", "update")] = 8 * times
            if attends and layer == "0":
                expected[Label(phase, layer, "edge", "edge_update")] = 32 * times
    assert seconds == expected
    assert hooks.calls == {"0": 1, "1": 1}
    assert not hooks.fused


def test_gather_is_what_lies_before_the_message(graph: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock()
    model = GATConv(3, 2)

    def select(self: Any, source: Tensor, index: Tensor) -> Tensor:
        return spend(source.index_select(self.node_dim, index), clock, 1, 10)

    monkeypatch.setattr(MessagePassing, "_index_select", select)
    seconds, _ = profile(model, lambda: model(*graph).sum(), clock)
    # sources' rows of x, and of both ends of the attention
    assert seconds == {Label("forward", "", "edge", "gather"): 3.0, Label("backward", "", "edge", "gather"): 30.0}


def test_weights_of_edges_are_edge_computation_and_no_longer_wrapped_afterwards(
    graph: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_geometric.nn.conv.gcn_conv as module

    clock = HandClock()
    plain = module.gcn_norm

    def norm(*args: Any, **kwargs: Any) -> Any:
        clock.now += 5
        return plain(*args, **kwargs)

    monkeypatch.setattr(module, "gcn_norm", norm)
    model = GCNConv(3, 2)
    seconds, _ = profile(model, lambda: model(*graph).sum(), clock)
    assert seconds == {Label("forward", "", "edge", "normalize"): 5.0}
    assert module.gcn_norm is norm


def test_the_fused_path_is_named_and_counted(graph: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock()
    model = SAGEConv(3, 2)
    x, edge_index = graph
    values = torch.ones(EDGES)
    adj_t = torch.sparse_coo_tensor(edge_index.flip(0), values, (NODES, NODES)).coalesce().to_sparse_csr()
    plain = SAGEConv.message_and_aggregate

    def fused(self: SAGEConv, adj_t: Tensor, x: Any) -> Tensor:
        return spend(plain(self, adj_t, x), clock, 3, 5)

    monkeypatch.setattr(SAGEConv, "message_and_aggregate", fused)
    seconds, hooks = profile(model, lambda: model(x.clone().requires_grad_(), adj_t).sum(), clock)
    assert seconds == {Label("forward", "", "edge", "fused"): 3.0, Label("backward", "", "edge", "fused"): 5.0}
    assert hooks.fused == {"": 1}


def test_recomputed_layers_count_for_the_backward_pass(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()
    model = SpendingConv(clock)
    x, edge_index = graph

    def step() -> Tensor:
        out: Tensor = checkpoint(model, x, edge_index, use_reentrant=False)
        return spend(out.sum(), clock, 1000, 3000)

    seconds, hooks = profile(model, step, clock)
    assert seconds[Label("forward", "", "edge", "message")] == 2
    assert seconds[Label("backward", "", "edge", "message")] == 2 + 4
    # no tensor is saved after the message, so torch breaks the recomputation off there, with an error of its own
    assert seconds[Label("backward", "", "edge", "aggregate")] == 8
    assert sum(seconds.values()) == clock.now
    assert hooks.calls == {"": 2}


def test_a_layer_that_raises_leaves_the_labels_in_order(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()

    class Breaking(SpendingConv):
        def message(self, x_j: Tensor, alpha: Tensor | None) -> Tensor:
            clock.now += 1
            raise RuntimeError("no message")

    model = Breaking(clock)
    layers, _ = find_layers(model)
    marks = Marks(clock)
    hooks = LayerHooks(model, layers, marks)
    marks.open()
    hooks.attach()
    marks.push(Label("forward"))
    with pytest.raises(RuntimeError, match="no message"):
        model(*graph)
    assert marks.current == Label("forward")
    assert marks.depth == 1
    hooks.detach()
    assert "edge_updater" not in vars(model)


def dense(width: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 4), nn.ReLU(), nn.Linear(4, 4))


CONVS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "GCN": (lambda: GCNConv(3, 4), {"normalize", "gather", "message", "aggregate"}),
    "SAGE": (lambda: SAGEConv(3, 4), {"gather", "aggregate"}),
    "GAT": (lambda: GATConv(3, 4, heads=2), {"normalize", "gather", "edge_update", "message", "aggregate"}),
    "GATv2": (lambda: GATv2Conv(3, 4), {"normalize", "gather", "edge_update", "message", "aggregate"}),
    "GIN": (lambda: GINConv(dense()), {"gather", "aggregate"}),
    "Transformer": (lambda: TransformerConv(3, 4), {"gather", "message", "aggregate"}),
    "Edge": (lambda: EdgeConv(dense(6)), {"gather", "message", "aggregate"}),
    "PNA": (lambda: PNAConv(3, 4, ["mean", "max"], ["identity"], torch.tensor([0, 3, 5])), {"gather", "message"}),
    "Cheb": (lambda: ChebConv(3, 4, K=3), {"gather", "message", "aggregate"}),
    "SG": (lambda: SGConv(3, 4, K=2), {"normalize", "gather", "message", "aggregate"}),
    "TAG": (lambda: TAGConv(3, 4), {"normalize", "gather", "message", "aggregate"}),
    "ARMA": (lambda: ARMAConv(3, 4), {"normalize", "gather", "message", "aggregate"}),
    "Graph": (lambda: GraphConv(3, 4), {"gather", "aggregate"}),
    "GatedGraph": (lambda: GatedGraphConv(4, 2), {"gather", "aggregate"}),
    "ResGated": (lambda: ResGatedGraphConv(3, 4), {"gather", "message", "aggregate"}),
    "FiLM": (lambda: FiLMConv(3, 4), {"gather", "message", "aggregate"}),
    "RGCN": (lambda: RGCNConv(3, 4, num_relations=2), {"gather", "aggregate"}),
    "GaAN": (lambda: GaANConv(3, 4, heads=2), {"gather", "edge_update", "message", "aggregate"}),
}


@pytest.mark.parametrize("name", CONVS)
def test_any_convolution_computes_the_same_bits_and_keeps_no_trace(graph: tuple[Tensor, Tensor], name: str) -> None:
    build, parts = CONVS[name]
    torch.manual_seed(0)
    model = build()
    twin = copy.deepcopy(model)
    x, edge_index = graph
    extra = (torch.arange(EDGES) % 2,) if name == "RGCN" else ()

    def step(module: nn.Module) -> Tensor:
        out: Tensor = module(x, edge_index, *extra)
        return out.square().sum()

    seconds, hooks = profile(model, lambda: step(model), HandClock())
    step(twin).backward()

    assert seconds == {}
    assert hooks.calls == {"": 1}
    assert vars(model).keys() == vars(twin).keys()
    assert not any(value for key, value in vars(model).items() if key.endswith("_hooks"))
    for (parameter_name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        if mine.grad is not None and theirs.grad is not None:
            assert torch.equal(mine.grad, theirs.grad), parameter_name
    pickle.dumps(copy.deepcopy(model).state_dict())

    layers, _ = find_layers(model)
    assert [layer.name for layer in layers] == [""]
    marks = Marks(HandClock())
    LayerHooks(model, layers, marks).attach()
    marks.open(Label("forward"))
    step(model)
    labels, _ = marks.close()
    assert parts <= {label.part for label in labels}
    assert {label.kind for label in labels} == {"", "vertex", "edge"}
