"""Runs of a net that changes all it can, with steps within `untouched` and snapshots around them."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer import call
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader
from torchmetrics import CatMetric, MeanMetric

from lightning_gnnopt.memory.untouched import untouched
from tests.memory.runs import make_trainer, no_warnings, same_state

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
