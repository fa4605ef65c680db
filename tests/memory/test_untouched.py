"""Steps within `untouched` are compared with snapshots that this file takes by itself."""

from __future__ import annotations

import copy
import json
import os
import random
import socket
import subprocess
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, SequentialLR
from torch.utils.data import DataLoader
from torch_geometric import EdgeIndex
from torchmetrics import CatMetric, MeanMetric

from lightning_gnnopt.memory import PeakMeter
from lightning_gnnopt.memory import untouched as untouched_module
from lightning_gnnopt.memory.untouched import untouched
from tests.memory.runs import (
    Batches,
    Hooks,
    Net,
    Watch,
    make_datamodule,
    make_graph,
    make_trainer,
    no_warnings,
    same_state,
    watched,
)

Change = Callable[[L.Trainer, "Tiny"], Any]
NUM_BATCHES = 4


class Tiny(L.LightningModule):
    """Whatever can change in a step changes in its steps."""

    def __init__(self, optimizer: str = "adam") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2))
        self.net[0].bias.requires_grad_(False)
        self.mean, self.cat = MeanMetric(), CatMetric()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.optimizer = optimizer
        self.steps, self.best, self.word = 0, 9.0, "none"
        self.outputs: list[Tensor] = []
        self.seen: dict[str, Any] = {"steps": 0, "last": [torch.zeros(2)]}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.net(batch + 0.1 * torch.randn_like(batch)).square().mean()
        value = loss.detach()
        self.mean.update(value)
        self.cat.update(value)
        self.count += 1
        self.steps, self.best, self.word = self.steps + 1, min(self.best, float(value)), f"step {batch_idx}"
        self.outputs.append(value)
        self.seen["steps"] += random.random() + np.random.random()
        self.seen["last"][0] += 1
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("mean", self.mean, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        if self.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), lr=0.1)
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": ExponentialLR(optimizer, 0.9), "interval": "step"}]


def inside(trainer: L.Trainer, module: Tiny) -> None:
    """Three whole steps, run by hand."""
    optimizer = trainer.optimizers[0]
    for number in range(3):
        loss = call._call_strategy_hook(trainer, "training_step", torch.randn(5, 3), number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for config in trainer.lr_scheduler_configs:
            config.scheduler.step()
    progress = trainer.fit_loop.epoch_loop
    progress.batch_progress.increment_ready()
    progress.automatic_optimization.optim_progress.optimizer.step.increment_completed()
    trainer.accumulate_grad_batches = 5


def snapshot(trainer: L.Trainer, module: nn.Module) -> dict[str, Any]:
    epoch_loop = trainer.fit_loop.epoch_loop
    attributes = {
        f"{prefix}.{name}": value.detach().to_dense().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for prefix, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, (bool, int, float, str, list, dict, set, tuple, deque, Tensor))
        and name not in ("_modules", "_parameters")
        and not name.startswith(("_forward", "_backward", "_state_dict", "_load_state"))
        and not callable(value)
    }
    return {
        "parameters": {name: p.detach().clone() for name, p in module.named_parameters()},
        "gradients": {
            name: None if p.grad is None else (id(p.grad), p.grad.clone()) for name, p in module.named_parameters()
        },
        "modules": [(name, id(part)) for name, part in module.named_modules()],
        "attributes": attributes,
        "optimizers": [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "progress": copy.deepcopy(epoch_loop.state_dict()),
        "numbers": [trainer.global_step, trainer.accumulate_grad_batches, trainer.current_epoch],
        "logged": [
            copy.deepcopy(dict(metrics))
            for metrics in (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics)
        ],
        "results": sorted(epoch_loop._results),
        "rng": [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]],
    }


class Probe(Callback):
    """Changes what it likes within `untouched`, before one of the steps."""

    def __init__(self, change: Change, at: int = 0, prepare: Change | None = None) -> None:
        self.change, self.at, self.prepare = change, at, prepare
        self.before: Any = None
        self.within: Any = None
        self.after: Any = None
        self.result: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx != self.at or self.before is not None:
            return
        if self.prepare is not None:
            self.prepare(trainer, pl_module)
        self.before = snapshot(trainer, pl_module)
        with untouched(trainer, pl_module, trainer.fit_loop.epoch_loop):
            self.result = self.change(trainer, pl_module)
            self.within = snapshot(trainer, pl_module)
        self.after = snapshot(trainer, pl_module)


def run(module: L.LightningModule, *callbacks: Callback, **kwargs: Any) -> L.Trainer:
    L.seed_everything(5, verbose=False)
    batches = torch.randn(5 * NUM_BATCHES, 3)
    trainer = make_trainer(*callbacks, max_epochs=1, **kwargs)
    with no_warnings():
        trainer.fit(module, DataLoader(batches, batch_size=5))  # type: ignore[arg-type]
    return trainer


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The parts of two snapshots that are not the same to the bit."""
    return [name for name in one if not same_state(one[name], other[name])]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("at", [0, 2])
def test_steps_leave_no_trace(optimizer: str, at: int) -> None:
    probe = Probe(inside, at)
    run(Tiny(optimizer), probe)
    changed = {"parameters", "gradients", "attributes", "optimizers", "progress", "numbers", "rng"}
    if optimizer == "adam":
        changed.add("schedulers")
    elif at == 0:
        changed.remove("optimizers")  # plain SGD has no state
    assert changed - {"optimizers"} <= set(different(probe.before, probe.within))
    assert different(probe.before, probe.after) == []


@pytest.mark.parametrize("at", [0, 2])
def test_a_run_goes_on_as_if_nothing_had_been(at: int) -> None:
    ends = []
    for callbacks in ([], [Probe(inside, at)]):
        module = Tiny()
        trainer = run(module, *callbacks)
        ends.append((module.state_dict(), trainer.optimizers[0].state_dict(), dict(trainer.callback_metrics)))
    assert same_state(*ends)


def test_an_error_within_is_raised_and_leaves_no_trace() -> None:
    def fails(trainer: L.Trainer, module: Tiny) -> None:
        inside(trainer, module)
        raise RuntimeError("in the middle of a step")

    class Caught(Probe):
        def on_train_batch_start(self, *args: Any) -> None:
            with pytest.raises(RuntimeError, match="in the middle of a step"):
                super().on_train_batch_start(*args)
            self.after = snapshot(args[0], args[1])

    probe = Caught(fails)
    run(Tiny(), probe, max_steps=1)
    assert different(probe.before, probe.after) == []


def test_callbacks_and_loggers_see_nothing(tmp_path: Any) -> None:
    seen: list[Any] = []

    def change(trainer: L.Trainer, module: Tiny) -> None:
        seen.append((list(trainer.callbacks), trainer.loggers[0].log_metrics({"probe": 1.0})))
        call._call_callback_hooks(trainer, "on_before_zero_grad", trainer.optimizers[0])

    hooks, logger = Hooks(), CSVLogger(tmp_path)
    trainer = run(Tiny(), Probe(change), hooks, logger=logger, log_every_n_steps=1)
    assert seen == [([], None)]
    assert [name for name, *_ in hooks.calls].count("on_before_zero_grad") == NUM_BATCHES
    assert hooks in trainer.callbacks
    assert trainer.loggers == [logger]
    assert not any("probe" in row for row in logger.experiment.metrics)


def test_a_gradient_scaler_keeps_its_scale() -> None:
    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        scaler.scale(torch.ones(()))
        trainer.precision_plugin.scaler = scaler  # type: ignore[attr-defined]

    def change(trainer: L.Trainer, module: Tiny) -> Any:
        scaler = trainer.precision_plugin.scaler  # type: ignore[attr-defined]
        scaler._scale *= 0.5
        scaler._growth_tracker += 1
        return scaler, scaler.get_scale()

    probe = Probe(change, prepare=prepare)
    callback_end: list[Any] = []

    class End(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if not callback_end:
                scaler = probe.result[0]
                callback_end.append((scaler.get_scale(), int(scaler._growth_tracker)))
                trainer.precision_plugin.scaler = None

    run(Tiny(), probe, End())
    assert (probe.result[1], callback_end) == (512.0, [(1024.0, 0)])


def test_the_scheduler_within_a_scheduler_is_taken_back() -> None:
    class Manual(Tiny):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:
            self.lr_schedulers().step()

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
            parts = [ExponentialLR(optimizer, 0.5), ExponentialLR(optimizer, 0.9)]
            return [optimizer], [SequentialLR(optimizer, parts, milestones=[2])]

    def change(trainer: L.Trainer, module: Tiny) -> None:
        for _ in range(3):
            trainer.lr_scheduler_configs[0].scheduler.step()

    rates = []
    for callbacks in ([], [Probe(change, 1)]):
        trainer = run(Manual(), *callbacks)
        scheduler = trainer.lr_scheduler_configs[0].scheduler
        rates.append((trainer.optimizers[0].param_groups[0]["lr"], scheduler.state_dict()["last_epoch"]))
        rates[-1] += tuple(part.last_epoch for part in scheduler._schedulers)
    assert rates[0] == rates[1]


# Attributes of every kind


def _itself() -> list[Any]:
    value: list[Any] = [1]
    value.append(value)
    return value


def _moved(value: OrderedDict[str, int]) -> None:
    value.move_to_end("a")
    value["b"] += 1


def _grown(value: Any) -> None:
    value["new"] += 1


# What there is, and what a step does to it.
KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1, 2], lambda v: v.append(3)),
    "list emptied": (lambda: [1, 2], lambda v: v.clear()),
    "list of tensors": (lambda: [torch.ones(2), torch.ones(3)], lambda v: [t.add_(1) for t in v]),
    "list of lists": (lambda: [[1], [2]], lambda v: (v[0].append(5), v.pop())),
    "dict": (lambda: {"a": 1, "b": 2}, lambda v: (v.pop("a"), v.update(c=3))),
    "dict of the same size": (lambda: {"a": 1}, lambda v: (v.pop("a"), v.update(b=1))),
    "dict of tensors": (lambda: {"a": torch.ones(2)}, lambda v: v.update(a=torch.zeros(2))),
    "dict in place": (lambda: {"a": {"b": torch.ones(2)}}, lambda v: v["a"]["b"].zero_()),
    "ordered dict": (lambda: OrderedDict(a=1, b=2, c=3), _moved),
    "counter": (lambda: Counter("aab"), lambda v: v.update("abbc")),
    "defaultdict": (lambda: defaultdict(int, a=1), _grown),
    "deque": (lambda: deque([1, 2, 3], maxlen=3), lambda v: v.append(4)),
    "set": (lambda: {1, 2}, lambda v: (v.add(3), v.discard(1))),
    "tuple": (lambda: (torch.ones(2), [1]), lambda v: (v[0].zero_(), v[1].append(2))),
    "tensor": (lambda: torch.arange(6.0).view(2, 3), lambda v: v.mul_(-1)),
    "transposed": (lambda: torch.arange(6.0).view(2, 3).t(), lambda v: v.mul_(-1)),
    "long": (lambda: torch.arange(3), lambda v: v.add_(1)),
    "bool": (lambda: torch.tensor([True, False]), lambda v: v.logical_not_()),
    "bfloat16": (lambda: torch.ones(3, dtype=torch.bfloat16), lambda v: v.add_(1)),
    "nan": (lambda: torch.tensor([1.0, torch.inf]), lambda v: v.fill_(torch.nan)),
    "edge index": (lambda: EdgeIndex([[0, 1], [1, 0]], sparse_size=(2, 2)), lambda v: None),
    "sparse": (lambda: torch.eye(3).to_sparse_csr(), lambda v: None),
    "expanded": (lambda: torch.ones(1).expand(4), lambda v: None),
    "itself": (_itself, lambda v: v.append(3)),
}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to_dense().clone() if value.layout != torch.strided else torch.Tensor.as_subclass(value, Tensor)
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [("itself" if item is value else _plain(item)) for item in value]
    return copy.copy(value)


@pytest.mark.parametrize("where", ["module", "submodule"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_is_taken_back(kind: str, where: str) -> None:
    make, change = KINDS[kind]
    value = make()
    before = _plain(make())
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        owner.append(module if where == "module" else module.net[0])
        owner[0].thing = value

    def within(trainer: L.Trainer, module: Tiny) -> None:
        inside(trainer, module)
        change(owner[0].thing)

    probe = Probe(within, at=1, prepare=prepare)
    run(Tiny(), probe)
    assert owner[0].thing is value
    assert same_state(_plain(value), before)
    assert type(value) is type(make())
    probe.before["attributes"] = probe.after["attributes"] = None
    assert different(probe.before, probe.after) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_attribute_that_is_replaced_or_deleted_comes_back(kind: str) -> None:
    value = KINDS[kind][0]()
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.first = module.second = value
        owner.append(module)

    def within(trainer: L.Trainer, module: Tiny) -> None:
        module.first = None
        del module.second

    run(Tiny(), Probe(within, prepare=prepare))
    assert owner[0].first is value
    assert owner[0].second is value


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (lambda: torch.Generator().manual_seed(1), lambda g: float(torch.rand((), generator=g))),
        (lambda: np.random.default_rng(1), lambda g: g.random()),
        (lambda: np.random.RandomState(1), lambda g: g.random()),
        (lambda: random.Random(1), lambda g: g.random()),
    ],
    ids=["torch", "numpy", "numpy's old one", "python"],
)
def test_a_generator_of_the_models_own_draws_what_it_would_have(make: Any, draw: Any) -> None:
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.generator = make()
        owner.append(module)

    run(Tiny(), Probe(lambda trainer, module: [draw(module.generator) for _ in range(3)], prepare=prepare))
    assert draw(owner[0].generator) == draw(make())


def test_what_a_step_adds_to_modules_is_removed() -> None:
    def change(trainer: L.Trainer, module: Tiny) -> None:
        module.note, module.net[0].note = 1, torch.ones(3)
        module.extra = nn.Linear(2, 2)
        module.net[1].scale = nn.Parameter(torch.ones(1))
        module.register_buffer("mask", torch.ones(2))

    class End(Callback):
        names: tuple[set[str], ...] = ()

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            End.names = tuple(set(dir(part)) for part in (pl_module, pl_module.net[0], pl_module.net[1]))

    run(Tiny(), Probe(change), End())
    assert not {"note", "extra", "mask"} & End.names[0]
    assert "note" not in End.names[1]
    assert "scale" not in End.names[2]


def test_a_submodule_that_is_replaced_comes_back() -> None:
    owner: list[Any] = []

    def change(trainer: L.Trainer, module: Tiny) -> None:
        owner.extend([module, module.net])
        module.net = nn.Sequential(nn.Linear(3, 2))

    run(Tiny(), Probe(change))
    assert owner[0].net is owner[1]


def test_gradients_keep_their_memory() -> None:
    probe = Probe(inside, at=2)
    run(Tiny(), probe)
    present = {name: value is not None for name, value in probe.before["gradients"].items()}
    assert not present["net.0.bias"]  # frozen
    assert present["net.0.weight"]
    # `snapshot` notes their ids, too.
    assert same_state(probe.before["gradients"], probe.after["gradients"])


@pytest.mark.parametrize("changes", [False, True])
def test_large_tensors_are_watched_and_not_copied(monkeypatch: pytest.MonkeyPatch, changes: bool) -> None:
    monkeypatch.setattr(untouched_module, "LARGE_BYTES", 2**20)
    large, small = torch.zeros(2**19), torch.zeros(2**17)  # 2 MiB, half a MiB
    growths: list[int] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.large, module.small = large, small

    class Measured(Probe):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with PeakMeter("cpu") as meter:
                super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
            growths.append(meter.peak.allocated_bytes)

    def change(trainer: L.Trainer, module: Tiny) -> None:
        module.small += 1
        if changes:
            module.large[3] = 1

    monkeypatch.setitem(globals(), "snapshot", lambda trainer, module: {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(Tiny(), Measured(change, prepare=prepare))
    said = [str(w.message) for w in caught if "hangs on the model" in str(w.message)]
    assert len(said) == changes
    assert all("(524288,)" in message for message in said)
    assert float(small.abs().max()) == 0
    # The small one is copied, and nothing else is a tenth as large.
    assert 2**19 <= growths[0] < 2**19 + 2**16


def test_tensors_of_inference_are_taken_back() -> None:
    owner: list[Any] = []

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        with torch.inference_mode():
            module.last = torch.ones(3)
        owner.append(module.last)

    def change(trainer: L.Trainer, module: Tiny) -> None:
        with torch.inference_mode():
            module.last += 1
        inside(trainer, module)

    probe = Probe(change, prepare=prepare)
    run(Tiny(), probe)
    assert owner[0].tolist() == [1, 1, 1]
    assert different(probe.before, probe.after) == []


def test_what_cannot_be_taken_back_does_not_keep_the_rest_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor whose places share memory cannot be written to; parameters must come back all the same."""

    def prepare(trainer: L.Trainer, module: Tiny) -> None:
        module.net[0].weights = torch.ones(1).expand(4)
        module.weights = torch.ones(1).expand(4)

    probe = Probe(inside, at=1, prepare=prepare)
    run(Tiny(), probe)
    assert different(probe.before, probe.after) == []


# Two processes that train together

WAYS = ("prune", "split", "resample-prune", "shrink-prune")
TRAIN_SEEDS = 128


class OneRankRaises(Net):
    """Raises in the probes of one process, where a Trainer has no callbacks."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.trainer.callbacks and self.trainer.global_rank == 1:
            raise KeyError("only here")
        return super().training_step(batch, batch_idx)


class OneRankDiffers(Net):
    """Has other allocations for each batch in one process."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1:
            self.kept = [torch.zeros(3) for _ in range(batch.num_edges % 4)]
        return super().training_step(batch, batch_idx)


def trained(*callbacks: Callback, batch_norm: bool = False, make_module: Callable[..., Net] = Net) -> dict[str, Any]:
    module = make_module(batch_norm=batch_norm, dropout=0.3 if batch_norm else 0.0).double()
    seen, watch = Batches(), Watch()
    trainer = make_trainer(*callbacks, seen, watch, devices=2, strategy="ddp")
    L.seed_everything(11, verbose=False)
    with no_warnings():
        trainer.fit(module, datamodule=make_datamodule(make_graph(dtype=torch.float64), batch_size=16))
    return {
        "weights": torch.cat([value.flatten().double() for value in module.state_dict().values()]).tolist(),
        "losses": seen.losses,
        "seeds": [batch.input_id.tolist() for batch in seen.batches],
        "epochs": seen.epochs,
        "steps": trainer.global_step,
        "peaks": watch.peaks["train"],
        "rng": [torch.rand(3).tolist(), random.random(), np.random.random()],
    }


def in_two_processes(folder: str) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for batch_norm in (False, True):
        results[f"plain {batch_norm}"] = trained(batch_norm=batch_norm)
        control = watched(on_exceed="split")
        results[f"within {batch_norm}"] = trained(control, batch_norm=batch_norm)
    control = watched(on_exceed="prune")
    results["plain"] = trained(control)
    assert control.controller is not None
    held = control.controller.learned["train", 0].footprint.held_bytes
    results["uncontrolled"] = max(results["plain"]["peaks"])
    # Each decides for its own batches, by its own budget.
    budget = held + int((0.75 + 0.05 * int(os.environ["LOCAL_RANK"])) * (results["uncontrolled"] - held))
    for way in WAYS:
        control = watched(budget, on_exceed=tuple(way.split("-")))
        results[way] = {**trained(control), "tally": control.tally.to_dict(), "budget": budget}
    for make_module in (OneRankRaises, OneRankDiffers):
        control = watched(on_exceed=("resample", "prune"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = trained(control, make_module=make_module)
        assert control.controller is not None
        found["reason"] = control.controller.learned["train", 0].reason
        found["pairs"] = len(control.controller.pairs)
        found["said"] = [str(w.message) for w in caught if "`MemoryControl`" in str(w.message)]
        results[make_module.__name__] = found
    Path(folder, f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"PYTHONPATH": os.pathsep.join(sys.path), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", f"from {__name__} import in_two_processes; in_two_processes({str(folder)!r})"]
    processes = []
    for rank in ("0", "1"):  # started from outside, as torchrun does
        environment = {**os.environ, **shared, "LOCAL_RANK": rank, "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
        environment.pop("PL_GLOBAL_SEED", None)
        processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("batch_norm", [False, True])
def test_two_processes_train_to_the_bit_as_without(batch_norm: bool, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        plain, within = rank[f"plain {batch_norm}"], rank[f"within {batch_norm}"]
        for name in ("weights", "losses", "seeds", "steps", "rng"):
            assert within[name] == plain[name], name


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_take_equally_many_steps(way: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (rank[way] for rank in ranks)
    assert first["steps"] == second["steps"]
    assert len(first["losses"]) == len(second["losses"]) == first["steps"]
    if "shrink" not in way:
        assert first["steps"] == ranks[0]["plain"]["steps"]
    for rank in ranks:
        assert rank["uncontrolled"] > rank[way]["budget"]
        assert rank[way]["tally"]["over"] > 0
        assert max(rank[way]["peaks"]) <= rank[way]["budget"]
    length = len(first["weights"])
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-12)
    assert length == len(second["weights"])


@pytest.mark.slow
def test_two_processes_that_split_train_as_without_a_budget(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["split"]["tally"]["splits"] > 0
        assert rank["split"]["losses"] == pytest.approx(rank["plain"]["losses"], rel=1e-9)
        assert rank["split"]["weights"] == pytest.approx(rank["plain"]["weights"], rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_two_processes_see_each_seed_once_an_epoch(way: str, ranks: list[dict[str, Any]]) -> None:
    for epoch in range(2):
        seen: list[int] = []
        repeats: list[list[bool]] = []
        for rank in ranks:
            own: set[int] = set()
            repeats.append([])
            for seeds, of_epoch in zip(rank[way]["seeds"], rank[way]["epochs"], strict=True):
                if of_epoch == epoch:
                    assert len(set(seeds)) == len(seeds)
                    # All of a batch's seeds are new, or none is: then it is there for the other process' sake.
                    assert own.isdisjoint(seeds) or own.issuperset(seeds)
                    repeats[-1].append(own.issuperset(seeds))
                    seen += [] if repeats[-1][-1] else seeds
                    own.update(seeds)
        assert sorted(seen) == list(range(TRAIN_SEEDS))
        # All must make as many steps, but none is made in which both repeat.
        assert len(repeats[0]) == len(repeats[1])
        assert not any(map(all, zip(*repeats, strict=True)))
        assert any(map(any, repeats)) <= ("shrink" in way)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OneRankRaises", "OneRankDiffers"])
def test_two_processes_go_the_same_way(name: str, ranks: list[dict[str, Any]]) -> None:
    """Of one process' step there is no tape, or its probe raises: neither waits for the other, and both train on."""
    first, second = (rank[name] for rank in ranks)
    for rank in ranks:
        for what in ("weights", "losses", "seeds", "steps", "rng"):
            assert rank[name][what] == rank["plain"][what], what
        assert rank[name]["pairs"] >= 4
    assert second["said"] == []  # the first process speaks for all
    if name == "OneRankRaises":
        assert first["reason"] == "the step of another process raised an error on a tiny batch"
        assert second["reason"] == "the step raised KeyError on a tiny batch: 'only here'"
        assert any(first["reason"] in said and "learns from the batches that are run" in said for said in first["said"])
    else:
        assert first["reason"] == "The step of another process has no allocation tape."
        assert second["reason"].startswith("Every probe must allocate and release in the same order")
        assert any(first["reason"] in said and "learns the memory of 'train' steps" in said for said in first["said"])
