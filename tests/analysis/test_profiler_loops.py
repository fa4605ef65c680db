"""Loops that are not Lightning's."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv, GCNConv
from typing_extensions import override

from lightning_gnnopt.analysis import GNNProfiler
from tests.analysis.profiled import total


def test_a_loop_of_ones_own() -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([GATConv(8, 8), GCNConv(8, 4)])

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = model

        @override
        def forward(self, batch: Data) -> Tensor:
            hidden = self.convs[0](batch.x, batch.edge_index).relu()
            return self.convs[1](hidden, batch.edge_index)

    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    batches = [Data(x=torch.randn(20, 8), edge_index=torch.randint(20, (2, 50 + place))) for place in range(6)]
    profiler = GNNProfiler(skip_batches=1, memory_every=2, detail_batches=0)
    with profiler.watch(net):
        for batch in profiler.steps(batches):
            loss = net(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    records = profiler.records
    assert [(b.nodes, b.edges, b.timed) for b in records.batches] == [
        (20, 50, False), (20, 51, False), (20, 52, True), (20, 53, True), (20, 54, False), (20, 55, False),
    ]  # fmt: skip
    assert [b.peak_bytes is not None for b in records.batches] == [False, True, False, False, True, True]
    for phase in ("wait", "forward", "backward", "optimizer", "other"):
        assert total(records, phase=phase) > 0, phase
    for layer, part in (("convs.0", "edge_update"), ("convs.0", "message"), ("convs.1", "normalize")):
        assert total(records, phase="forward", layer=layer, part=part) > 0
    assert total(records, phase="backward", layer="convs.0", part="message") > 0
    assert records.info["static_bytes"] >= 3 * sum(p.nbytes for p in net.parameters())
    assert records.info["steps"] == 6
    assert not net._forward_hooks
    assert not net.convs[0]._forward_pre_hooks


def test_steps_that_are_not_recorded_are_counted() -> None:
    model = GCNConv(4, 2)
    batches = [Data(x=torch.randn(5, 4), edge_index=torch.randint(5, (2, 9)))] * 5
    profiler = GNNProfiler(skip_batches=0, memory_every=0, max_batches=2)
    hooked = []
    with profiler.watch(model):
        for batch in profiler.steps(batches):
            hooked.append(bool(model._message_forward_hooks))
            model(batch.x, batch.edge_index).sum().backward()
    assert (len(profiler.records.batches), profiler.records.info["steps"]) == (2, 5)
    assert hooked == [True, True, False, False, False]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with profiler.watch(model):
        for batch in batches:
            model(batch.x, batch.edge_index).sum().backward()
            optimizer.step()
    assert (len(profiler.records.batches), profiler.records.info["steps"]) == (2, 5)


def test_a_loop_without_a_loader_has_a_step_for_each_backward_pass() -> None:
    x, edge_index = torch.randn(10, 4), torch.randint(10, (2, 30))
    model, profiler = GCNConv(4, 2), GNNProfiler(skip_batches=1, memory_every=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with profiler.watch(model):
        for _ in range(4):
            (model(x, edge_index).sum() + model(x, edge_index).square().sum()).backward()  # twice, but one step
            optimizer.step()
            with torch.no_grad():
                model(x, edge_index)
    records = profiler.records
    assert [b.timed for b in records.batches] == [False, True, True, True]
    # in each step twice; once more without gradients, which is no new step, and counts as validation
    assert records.layers[0].calls == 8
    assert {r.phase for r in records.times if r.layer == "" and r.part == "message"} >= {"forward", "validation"}
    assert {r.calls for r in records.times if (r.phase, r.part) == ("forward", "message")} == {2}


def test_a_model_may_be_copied_and_saved_within_a_loop(tmp_path: Path) -> None:
    model, profiler = GCNConv(4, 2), GNNProfiler(skip_batches=0, memory_every=0)
    x, edge_index = torch.randn(5, 4), torch.randint(5, (2, 9))
    with profiler.watch(model):
        model(x, edge_index).sum().backward()
        best = copy.deepcopy(model)
        torch.save(model, tmp_path / "model.pt")
        best(x, edge_index).sum().backward()  # nobody hears it
    assert profiler.records.layers[0].calls == 1
    assert torch.equal(best(x, edge_index), model(x, edge_index))


def test_a_loop_that_raises_keeps_what_it_has() -> None:
    model, profiler = GCNConv(4, 2), GNNProfiler(skip_batches=0, memory_every=0)
    batches = [Data(x=torch.randn(5, 4), edge_index=torch.randint(5, (2, 9)))] * 3

    def loop() -> None:
        for place, batch in enumerate(profiler.steps(batches)):
            model(batch.x, batch.edge_index).sum().backward()
            if place == 2:
                raise KeyError("lost")

    with pytest.raises(KeyError), profiler.watch(model):
        loop()
    assert len(profiler.records.batches) == 2
    assert profiler.records.info["notes"] == ["The loop ended early, in step 2: KeyError: 'lost'"]
    assert not model._forward_hooks
    with profiler.watch(model):  # and can go on
        pass


def test_misuse_is_refused() -> None:
    profiler = GNNProfiler()
    with pytest.raises(RuntimeError, match=r"has recorded nothing yet\. HINT: call `trainer.fit` with it"):
        profiler.report()
    with pytest.raises(RuntimeError, match=r"`steps` belongs into a `with profiler\.watch"):
        profiler.steps([])
    with pytest.raises(RuntimeError, match=r"traced nothing\. HINT: `trace_batches=20`"):
        profiler.write_trace("trace.json")
    with (
        profiler.watch(nn.Linear(1, 1)),
        pytest.raises(RuntimeError, match="profiling already"),
        profiler.watch(nn.Linear(1, 1)),
    ):
        pass
    with pytest.raises(ValueError, match="`limit` must be a number of bytes, but got '6 apples'"):
        GNNProfiler(limit="6 apples")
