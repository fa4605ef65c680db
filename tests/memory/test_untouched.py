"""Steps within `untouched` are compared with snapshots that the test takes by itself."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer import call
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR, SequentialLR

from tests.memory.probing import NUM_BATCHES, Probe, Tiny, different, inside, run, snapshot
from tests.memory.runs import Hooks, same_state


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
