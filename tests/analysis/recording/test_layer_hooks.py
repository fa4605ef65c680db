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

from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.layer_hooks import LayerHooks
from lightning_gnnopt.analysis.recording.layers import find_layers
from lightning_gnnopt.analysis.recording.marks import Marks
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


def hook_in(model: nn.Module, clock: HandClock) -> tuple[Marks, LayerHooks]:
    layers, _ = find_layers(model)
    marks = Marks(clock)
    hooks = LayerHooks(model, layers, marks)
    marks.open(Label("forward"))
    hooks.attach()
    return marks, hooks


def test_a_copy_that_is_made_while_hooks_are_there_has_none_that_do_anything(graph: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    model = GATConv(3, 4, dropout=0.5, add_self_loops=False)
    marks, hooks = hook_in(model, HandClock())
    twin = copy.deepcopy(model).eval()
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    before = len(marks.labels)
    out = twin(*graph)
    assert len(marks.labels) == before  # not heard
    assert torch.equal(out, twin(*graph))  # its own dropout, which is off
    assert out.abs().sum() > 0  # and its own weights
    assert torch.equal(again.eval()(*graph), out)
    hooks.detach()
    assert "edge_updater" in vars(GATConv)
    assert not hasattr(GATConv.edge_updater, "__wrapped__")


def test_what_was_computed_before_a_layer_and_is_added_after_it_is_not_the_layers(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()
    model = SpendingConv(clock)
    x, edge_index = graph
    x = x.clone().requires_grad_()

    def step() -> Tensor:
        skip = spend(x, clock, 1000, 3000)
        return (model(x, edge_index) + skip).sum()

    seconds, _ = profile(model, step, clock)
    assert seconds[Label("backward")] == 3000
    assert seconds[Label("backward", "", "vertex")] == 34


def test_a_layer_within_another_ones_forward_gives_the_name_back(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()

    class Outer(SpendingConv):
        other: list[SpendingConv]

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return super().forward(self.other[0](x, edge_index), edge_index)

    inner, outer = SpendingConv(clock, 100.0), Outer(clock)
    outer.other = [inner]  # not a child
    model = nn.ModuleDict({"inner": inner, "outer": outer})
    seconds, _ = profile(model, lambda: outer(*graph).sum(), clock)
    for phase, factor in (("forward", 1), ("backward", 2)):
        for layer, scale in (("outer", factor), ("inner", 100 * factor)):
            assert seconds[Label(phase, layer, "vertex")] == 17 * scale
            assert seconds[Label(phase, layer, "edge", "message")] == 2 * scale
    assert sum(seconds.values()) == clock.now


def test_a_propagate_of_a_layers_own_is_edge_computation_in_one(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()

    class Own(SpendingConv):
        def propagate(self, edge_index: Tensor, x: Tensor, **_: Any) -> Tensor:  # type: ignore[override]
            return spend(x, clock, 5, 50)

    model = Own(clock)
    seconds, _ = profile(model, lambda: model(*graph).sum(), clock)
    assert seconds == {
        Label("forward", "", "vertex"): 17.0,
        Label("backward", "", "vertex"): 34.0,
        Label("forward", "", "edge", "fused"): 5.0,
        Label("backward", "", "edge", "fused"): 50.0,
    }
    assert "__wrapped__" not in vars(Own.propagate)


def test_steps_that_are_called_past_forward_are_the_layers_still(graph: tuple[Tensor, Tensor]) -> None:
    clock = HandClock()
    model = nn.ModuleDict({"conv": SpendingConv(clock)})
    x = graph[0].clone().requires_grad_()
    seconds, _ = profile(model, lambda: model["conv"].propagate(graph[1], x=x, alpha=None).sum(), clock)
    assert seconds[Label("forward", "conv", "edge", "message")] == 2


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
