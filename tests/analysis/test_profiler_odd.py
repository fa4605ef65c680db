"""The profiler in odd company: training stays the same bits, nothing is left behind, and the time is told right."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.nn import GATConv, GCNConv
from typing_extensions import override

from lightning_gnnopt import GraphDataModule, MemoryControl
from lightning_gnnopt.analysis import GNNProfiler
from lightning_gnnopt.analysis.fits import loader_stages
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.profile_options import ProfileOptions
from lightning_gnnopt.analysis.recording.session import ProfileSession
from lightning_gnnopt.sampling import NeighborSampler, Topology
from tests.analysis.spending import HandClock, SpendingConv, spend

QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
    "accelerator": "cpu", "num_sanity_val_steps": 0, "max_epochs": 3,
}  # fmt: skip


def make_data() -> Data:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(300) < 200
    return Data(
        x=torch.randn(300, 8, generator=generator),
        edge_index=torch.randint(300, (2, 2000), generator=generator),
        y=torch.randint(3, (300,), generator=generator),
        train_mask=mask,
        val_mask=~mask,
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = GCNConv(8, 8), GATConv(8, 3, dropout=0.5)

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.b(self.a(x, edge_index).relu(), edge_index)


class Plain(L.LightningModule):
    """Trains the network."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = Net() if net is None else net

    @override
    def training_step(self, batch: Data, batch_idx: int) -> Any:
        out = self.net(batch.x, batch.edge_index)
        return functional.cross_entropy(out[: batch.batch_size], batch.y[: batch.batch_size])

    @override
    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.net(batch.x, batch.edge_index)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def profile(**options: Any) -> GNNProfiler:
    return GNNProfiler(**({"skip_batches": 1, "memory_every": 3, "detail_batches": 1} | options))


def fit(profiler: GNNProfiler | None, make: Callable[[], L.LightningModule] = Plain, *, loaders: Any = None,
        **options: Any) -> tuple[L.Trainer, L.LightningModule]:  # fmt: skip
    torch.manual_seed(0)
    model = make()
    trainer = L.Trainer(profiler=profiler, **(QUIET | options))
    torch.manual_seed(1)
    if loaders is None:
        loaders = GraphDataModule(make_data(), num_neighbors=[4, 4], batch_size=64, num_workers=0)
    trainer.fit(model, loaders)
    return trainer, model


def traces(model: nn.Module) -> list[str]:
    found = []
    for name, module in model.named_modules():
        found += [f"{name}.{key}" for key, value in vars(module).items() if "forward" in key and value]
        found += [f"{name}.{key}" for key in ("edge_updater", "propagate") if key in vars(module)]
    return found


class Penalty(Plain):
    """Has a backward pass within the step, and one through it."""

    @override
    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        x = batch.x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(self.net(x, batch.edge_index).sum(), x, create_graph=True)
        return super().training_step(batch, batch_idx) + grad.pow(2).mean()


class Teacher(Plain):
    """Copies the network in the middle of the step, and sends it away."""

    @override
    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        teacher = copy.deepcopy(self.net).eval()
        sent = pickle.loads(pickle.dumps(self.net)).eval()
        with torch.no_grad():
            for module in (teacher, sent):
                for parameter in module.parameters():
                    parameter.mul_(0.5)
            wanted, same = teacher(batch.x, batch.edge_index), sent(batch.x, batch.edge_index)
            assert torch.equal(wanted, same)
        return (self.net(batch.x, batch.edge_index) - wanted).pow(2).mean()


class Checkpointed(Net):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return self.b(checkpoint(self.a, x, edge_index, use_reentrant=self.reentrant), edge_index)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (Penalty, {}),
        (Teacher, {}),
        (lambda: Plain(Checkpointed(reentrant=False)), {}),
        (lambda: Plain(Checkpointed(reentrant=True)), {}),
        (Plain, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
        (Plain, {"precision": "bf16-mixed"}),
        (Plain, {"callbacks": lambda: [WeightAveraging()]}),
    ],
)
def test_training_is_the_same_bits_in_odd_company(make: Callable[[], Plain], options: dict[str, Any]) -> None:
    states = []
    profiler = profile(trace_batches=2)
    for used in (None, profiler):
        called = {key: value() if callable(value) else value for key, value in options.items()}
        _, model = fit(used, make, **called)
        assert traces(model) == []
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    assert [batch.batch for batch in profiler.records.batches] == list(range(12))
    assert all(layer.calls for layer in profiler.records.layers)


@pytest.mark.parametrize(("budget", "on_exceed"), [("80KiB", "prune"), ("80KiB", "split"), ("2MiB", "prune")])
def test_memory_control_learns_and_does_the_same(budget: str, on_exceed: str) -> None:
    tallies, states = [], []
    for profiler in (None, profile()):
        control = MemoryControl(budget, on_exceed=on_exceed, measure_every=1, verbose=False)
        _, model = fit(profiler, callbacks=[control])
        states.append(model.state_dict())
        tally = dataclasses.asdict(control.tally)
        tallies.append({key: value for key, value in tally.items() if not key.endswith("_s")})
    assert tallies[0] == tallies[1]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.slow
def test_a_compiled_layer_beside_an_open_one_is_compiled_no_more_often() -> None:
    import torch._dynamo.utils as dynamo

    class Half(Net):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.compile(GCNConv(8, 8), backend="eager", dynamic=True)
            self.b = GCNConv(8, 3)

    frames = []
    for profiler in (None, profile()):
        torch._dynamo.reset()
        dynamo.counters.clear()
        fit(profiler, lambda: Plain(Half()))
        frames.append(dict(dynamo.counters["frames"]))
    assert frames[0] == frames[1]


# Whose time it is, by a clock that only the layers move: a layer of scale 1 takes 31 forward and 62 backward.

OUTSIDE = {
    ("forward", "0"): 31, ("forward", "1"): 64 * 31, ("forward", ""): 1000,
    ("backward", "0"): 62, ("backward", "1"): 64 * 62, ("backward", ""): 2000,
}  # fmt: skip
X, EDGES = torch.randn(6, 3), torch.tensor([[0, 1, 2, 3, 4, 5, 0], [1, 2, 3, 4, 5, 0, 3]])


class OfData(SpendingConv):
    @override
    def forward(self, data: Any) -> Any:
        return Data(x=super().forward(data.x, data.edge_index), edge_index=data.edge_index)


class Timed:
    """Two layers, of scale 1 and 64, and a hand clock that work outside of them moves by thousands."""

    def __init__(self, cls: type[SpendingConv] = SpendingConv) -> None:
        self.clock = HandClock()
        self.layers = nn.ModuleList([cls(self.clock), SpendingConv(self.clock, 64)])
        self.a, self.b = self.layers
        self.x = X.clone().requires_grad_()

    def work(self, x: Tensor, ks: int) -> Tensor:
        """Spend 1000 forward and 2000 backward, so many times."""
        return spend(x, self.clock, 1000 * ks, 2000 * ks)

    def seconds(self, step: Callable[[Timed], Tensor]) -> dict[tuple[str, str], float]:
        options = ProfileOptions(skip_batches=0, memory_every=0)
        session = ProfileSession(self.layers, torch.device("cpu"), options, clock=self.clock)
        session.open_step()
        session.take_batch(Data(x=X, edge_index=EDGES))
        session.begin_compute()
        session.marks.push(Label("forward"))
        loss = step(self)
        session.marks.pop()
        session.marks.push(Label("backward"))
        loss.backward()
        session.marks.pop()
        session.end_compute()
        found: defaultdict[tuple[str, str], float] = defaultdict(float)
        for record in session.finish().times:
            found[record.phase, record.layer] += record.seconds
        return {key: value for key, value in found.items() if value}


def skip_projection_first(t: Timed) -> Tensor:
    skip = t.work(t.x, 1)
    return (t.b(t.a(t.x, EDGES), EDGES) + skip).sum()


def gate_between(t: Timed) -> Tensor:
    h = t.a(X, EDGES)
    gate = t.work(t.x, 1)
    return (t.b(h, EDGES) * gate).sum()


def jumping_knowledge(t: Timed) -> Tensor:
    first = t.a(t.x, EDGES)
    second = t.b(first.mul_(2), EDGES)
    return t.work(torch.cat([first, second, t.x], dim=-1), 1).sum()


@pytest.mark.parametrize("step", [skip_projection_first, gate_between, jumping_knowledge])
def test_what_lies_beside_the_layers_has_no_layer(step: Callable[[Timed], Tensor]) -> None:
    assert Timed().seconds(step) == OUTSIDE


def test_layers_that_take_and_give_graphs_are_bounded_as_others() -> None:
    def of_graphs(t: Timed) -> Tensor:
        graph = t.a(Data(x=t.x, edge_index=EDGES))
        return t.b(t.work(graph.x, 1), EDGES).sum()

    assert Timed(OfData).seconds(of_graphs) == OUTSIDE


def test_reentrant_checkpoints_around_more_than_a_layer() -> None:
    def step(t: Timed) -> Tensor:
        h = checkpoint(lambda x: t.work(t.a(t.work(x, 1), EDGES), 2), t.x, use_reentrant=True)
        return t.b(h, EDGES).sum()

    assert Timed().seconds(step) == {
        ("forward", "0"): 31, ("forward", "1"): 64 * 31, ("forward", ""): 3000,
        ("backward", "0"): 31 + 62, ("backward", "1"): 64 * 62, ("backward", ""): 3000 + 6000,
    }  # fmt: skip


# Lightning's odd ways


def test_a_callback_that_came_later_is_told_the_end() -> None:
    class Late(Callback):
        ended = 0

        @override
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.ended += 1

    late = Late()

    class Adds(Callback):
        @override
        def setup(self, trainer: Any, pl_module: L.LightningModule, stage: str) -> None:
            trainer.callbacks.append(late)

    trainer, _ = fit(profile(), callbacks=[Adds()], max_epochs=1)
    assert late.ended == 1
    assert [type(callback) for callback in trainer.callbacks] == [Adds, Late]


def test_a_fit_without_a_step_leaves_nothing_behind() -> None:
    profiler = profile()
    trainer, model = fit(profiler, limit_train_batches=0)
    assert trainer.callbacks == []
    with profiler.watch(model):
        pass


def test_a_report_that_cannot_be_written_costs_no_fit(tmp_path: Path) -> None:
    folder = tmp_path / "report"

    class InTheWay(Plain):
        ended = False

        @override
        def on_train_start(self) -> None:
            if folder.is_dir():
                folder.rmdir()
            folder.write_text("a file")

        @override
        def on_fit_end(self) -> None:
            InTheWay.ended = True

    profiler = profile(report_dir=folder)
    with pytest.warns(UserWarning, match="report"):
        fit(profiler, InTheWay)
    assert InTheWay.ended
    assert len(profiler.records.batches) == 12


class Samples(L.LightningDataModule):
    """PyG's loaders; one sampler for training and validation, as PyG's own data module has it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.now = 0.0
        monkeypatch.setattr(loader_stages, "time", SimpleNamespace(perf_counter=lambda: self.now))
        self.data = make_data()
        sampler = self.sampler = NeighborSampler(Topology.from_data(self.data), [2, 2])
        plain = sampler.sample_from_nodes

        def sample_from_nodes(*args: Any, **kwargs: Any) -> Any:
            self.now += 2
            return plain(*args, **kwargs)

        sampler.sample_from_nodes = sample_from_nodes

    @override
    def train_dataloader(self) -> NodeLoader:
        return NodeLoader(self.data, self.sampler, input_nodes=self.data.train_mask, batch_size=64)

    @override
    def val_dataloader(self) -> NodeLoader:
        return NodeLoader(self.data, self.sampler, input_nodes=self.data.val_mask, batch_size=20)


@pytest.mark.parametrize("every", [0, 1])
def test_sampling_is_that_of_the_training_loader_of_the_day(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    profiler, samples = profile(), Samples(monkeypatch)
    before = samples.sampler.sample_from_nodes
    fit(profiler, loaders=samples, reload_dataloaders_every_n_epochs=every)
    assert [load.sample_s for load in profiler.records.loads] == [2.0] * 12
    assert samples.sampler.sample_from_nodes is before


# Loops of one's own


def test_a_loop_may_copy_pickle_evaluate_and_update_twice() -> None:
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    data = make_data()
    profiler = profile(skip_batches=0, memory_every=0)
    with profiler.watch(net):
        for batch in profiler.steps([data] * 3):
            for _ in range(2):
                optimizer.zero_grad()
                net(batch.x, batch.edge_index).sum().backward()
                optimizer.step()
            for best in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
                best(batch.x, batch.edge_index).sum().backward()
    assert traces(net) == []
    messages = {r.phase: r.calls for r in profiler.records.times if (r.batch, r.layer, r.part) == (0, "a", "message")}
    assert messages == {"forward": 2, "backward": 2}
    assert [layer.calls for layer in profiler.records.layers] == [6, 6]
