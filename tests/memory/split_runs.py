"""Runs on batches that are plain tensors, as a whole and in parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_gnnopt.memory.parts import Part
from lightning_gnnopt.memory.split_steps import SplitSteps
from tests.memory.runs import make_trainer, no_warnings

ROWS = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # batches of 12, 12, 12, 4
Make = Callable[[Tensor], Any]


class Net(L.LightningModule):
    def __init__(self, optimizer: Callable[[Any], Any] | None = None, *, reduction: str = "mean") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        self.make_optimizer = optimizer or partial(torch.optim.SGD, lr=0.1, momentum=0.9)
        self.reduction = reduction
        self.losses: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        errors = (self.net(batch[:, :3])[:, 0] - batch[:, 3]).square()
        return errors.mean() if self.reduction == "mean" else errors.sum()

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val", self.loss(batch))

    def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
        return self.net(batch[:, :3])

    def configure_optimizers(self) -> Any:
        return self.make_optimizer(self.parameters())


def parts_of(batch: Tensor, num_parts: int, *, reduction: str = "mean") -> list[Part]:
    pieces = batch.tensor_split(num_parts)
    return [
        Part(
            make=partial(lambda piece: piece, piece),
            num_seeds=len(piece),
            weight=1.0 if reduction == "sum" else len(piece) / len(batch),
        )
        for piece in pieces
    ]


class Split(Callback):
    """Runs each step in parts, or those that run out of memory."""

    def __init__(self, num_parts: int | None = 5, *, most: int = 64, reduction: str = "mean") -> None:
        self.num_parts, self.most, self.reduction = num_parts, most, reduction
        self.asked: list[tuple[str, int]] = []
        self.told: list[tuple[int, str, str]] = []
        self.steps: SplitSteps | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.steps = SplitSteps(
            trainer, parts=self.parts, more_parts=self.more_parts, on_out_of_memory=self.on_out_of_memory
        )

    def parts(self, batch: Tensor, stage: str) -> Sequence[Part] | None:
        return (
            None
            if self.num_parts is None
            else parts_of(batch, min(self.num_parts, len(batch)), reduction=self.reduction)
        )

    def more_parts(self, batch: Tensor, stage: str, num_parts: int) -> Sequence[Part] | None:
        self.asked.append((stage, num_parts))
        return None if num_parts > min(self.most, len(batch)) else parts_of(batch, num_parts, reduction=self.reduction)

    def on_out_of_memory(self, batch: Tensor, stage: str, error: BaseException) -> None:
        self.told.append((len(batch), stage, str(error)))


class Seen(Callback):
    """What a callback sees after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.logged: list[float] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.losses.append(float(outputs["loss"]) if outputs else math.nan)
        self.logged.append(float(trainer.callback_metrics.get("loss_step", math.nan)))
        self.steps.append(trainer.global_step)


def fit(module: L.LightningModule, *callbacks: Callback, **kwargs: Any) -> tuple[dict[str, Tensor], Seen, L.Trainer]:
    seen = Seen()
    trainer = make_trainer(*callbacks, seen, **{"max_epochs": 3, **kwargs})
    with no_warnings():
        trainer.fit(module, DataLoader(ROWS, batch_size=12), DataLoader(ROWS[:10], batch_size=5))  # type: ignore[arg-type]
    return {name: value.clone() for name, value in module.state_dict().items()}, seen, trainer


def check_same(make: Callable[[], Net], split: Split, **kwargs: Any) -> None:
    expected, whole, reference = fit(make(), **kwargs)
    found, parts, trainer = fit(make(), split, **kwargs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert parts.losses == pytest.approx(whole.losses, rel=1e-9, nan_ok=True)
    assert parts.logged == pytest.approx(whole.logged, rel=1e-6, nan_ok=True)
    assert parts.steps == whole.steps
    assert trainer.global_step == reference.global_step
    of_whole = {name: float(value) for name, value in reference.callback_metrics.items()}
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == pytest.approx(of_whole, rel=1e-6)


def predict(module: L.LightningModule, *callbacks: Callback) -> Any:
    with no_warnings():
        return make_trainer(*callbacks).predict(module, DataLoader(ROWS, batch_size=12))  # type: ignore[arg-type]
