"""Short runs with validation beside them, and what tests look at."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_gnnopt.evaluation import AsyncValidation, ValidationFailed
from lightning_gnnopt.evaluation import session as session_module
from lightning_gnnopt.evaluation.messages import Job, Verdict

STEPS = 6  # of an epoch


class Tiny(L.LightningModule):
    """Classifies rows. A file may order its validation to misbehave, in the validation process only.

    Args:
        orders: The file: one order for all validations, or, with commas, one for each of the first ones.
        dropout: Share of dropout.
        nap_s: How long each validation sleeps in the validation process.
    """

    def __init__(self, orders: str | Path = "", *, dropout: float = 0.5, nap_s: float = 0.0, lr: float = 0.1) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.orders, self.nap_s, self.lr, self.owner = str(orders), nap_s, lr, os.getpid()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2))
        self.accuracy = MulticlassAccuracy(2)
        self.num_validated = 0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.num_validated += 1
        if os.getpid() != self.owner and batch_idx == 0:
            self._obey()
        elif Path(f"{self.orders}.everywhere").exists() and not self.trainer.sanity_checking:
            raise ValueError("this batch is bad")
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.log("val/acc", self.accuracy)
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("val/loss", loss, prog_bar=True, batch_size=len(logits))

    def on_validation_epoch_end(self) -> None:
        if self.logger is not None:
            self.logger.log_metrics({"own/norm": float(self.net[0].weight.norm())}, step=1000 + self.global_step)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    def _obey(self) -> None:
        time.sleep(self.nap_s)
        path = Path(self.orders)
        if not self.orders or not path.exists():
            return
        order, comma, rest = path.read_text().partition(",")
        if comma:
            path.write_text(rest)
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise ValueError("this batch is bad")
        if order == "memory":
            raise MemoryError("no room for this batch")
        if order == "hang":
            path.with_suffix(".hangs").write_text(str(os.getpid()))
            time.sleep(600)


class Rows(L.LightningDataModule):
    """24 rows to train on in 6 batches, 20 to validate on in 3."""

    def __init__(self, *, shuffle: bool = True, num_workers: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(44, 4, generator=generator)
        self.y = (self.x[:, 0] + 0.5 * torch.randn(44, generator=generator) > 0).long()
        self.shuffle, self.num_workers = shuffle, num_workers

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[:24], self.y[:24]), batch_size=4, shuffle=self.shuffle)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[24:], self.y[24:]), batch_size=8, num_workers=self.num_workers)

    def test_dataloader(self) -> Any:
        return self.val_dataloader()


class Recorder(L.Callback):
    """Keeps what happens in a run.

    Attributes:
        losses: Of each batch.
        weights: The module's state by global step.
        held: Of each batch and then of each epoch's end: ``(global_step, "batch" or "epoch", callback_metrics)``.
        lrs: Of each epoch, at its start.
        validated: What Lightning's own validation found, by global step.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.held: list[tuple[int, str, dict[str, float]]] = []
        self.lrs: list[float] = []
        self.validated: dict[int, dict[str, float]] = {}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.lrs.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and "loss" in outputs:
            self.losses.append(outputs["loss"].item())
        self.weights[trainer.global_step] = state_of(pl_module)
        self._keep(trainer, "batch")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._keep(trainer, "epoch")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validated[trainer.global_step] = floats(trainer.callback_metrics)

    def _keep(self, trainer: L.Trainer, where: str) -> None:
        self.held.append((trainer.global_step, where, floats(trainer.callback_metrics)))

    def when_held(self, name: str) -> list[tuple[int, str]]:
        """Steps and places at which a metric was in `callback_metrics`."""
        return [(step, where) for step, where, metrics in self.held if name in metrics]


class Run:
    """A finished `fit`."""

    def __init__(self, trainer: L.Trainer, module: L.LightningModule, recorder: Recorder) -> None:
        self.trainer, self.module, self.recorder = trainer, module, recorder
        self.random_state = torch.get_rng_state()


def trainer_of(folder: Path, callbacks: list[L.Callback], **options: Any) -> L.Trainer:
    """A quiet Trainer on the CPU."""
    options = {"max_epochs": 3, "logger": False} | options
    if not any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in callbacks):
        options["enable_checkpointing"] = False
    return L.Trainer(
        accelerator="cpu", devices=options.pop("devices", 1), callbacks=callbacks, default_root_dir=folder,
        enable_model_summary=False, enable_progress_bar=options.pop("enable_progress_bar", False),
        log_every_n_steps=1, **options,
    )  # fmt: skip


def fit(
    folder: Path,
    *callbacks: L.Callback,
    module: L.LightningModule | None = None,
    data: Any = None,
    ckpt_path: str | None = None,
    trainer: L.Trainer | None = None,
    **options: Any,
) -> Run:
    """Train, from the same random state each time."""
    recorder = Recorder()
    trainer = trainer_of(folder, [recorder, *callbacks], **options) if trainer is None else trainer
    module = Tiny() if module is None else module
    data = Rows() if data is None else data
    L.seed_everything(7, verbose=False)
    try:
        if isinstance(data, L.LightningDataModule):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        else:
            trainer.fit(module, *data, ckpt_path=ckpt_path)
    finally:
        assert "_should_check_val_fx" not in vars(trainer.fit_loop.epoch_loop)
    return Run(trainer, module, recorder)


# ---- what is compared ------------------------------------------------------------------------------------------------


def floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items()}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two states are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def weights_in(path: str | Path) -> dict[str, Tensor]:
    """A checkpoint's weights."""
    state: dict[str, Tensor] = torch.load(path, weights_only=False)["state_dict"]
    return state


def ledger(folder: Path) -> list[dict[str, Any]]:
    """The verdicts that a run wrote down."""
    return [json.loads(line) for line in (folder / "checkpoints" / "validations.jsonl").read_text().splitlines()]


def judged_alone(module: L.LightningModule, weights: dict[str, Tensor], data: Any = None) -> dict[str, float]:
    """What a blocking `validate` says of weights."""
    module.load_state_dict(weights)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.validate(module, datamodule=Rows() if data is None else data, verbose=False)
    return floats(trainer.callback_metrics)


# ---- what is left behind ---------------------------------------------------------------------------------------------


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def wait_until(is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Wait for something that other threads or processes do."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.01)


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gnnopt-")]


@contextmanager
def leaving_nothing(folder: Path) -> Iterator[None]:
    """Check that there is no new process, no thread of ours and no partial file afterwards."""
    before = children()
    yield
    for _ in range(500):
        if children() <= before and not our_threads():
            break
        time.sleep(0.01)
    assert children() <= before
    assert our_threads() == []
    assert list(folder.rglob("*.tmp")) == []


# ---- a validation process that is none -------------------------------------------------------------------------------


class FakeChild:
    """Judges by a function, in this process; a gate, if there is one, holds verdicts back.

    Args:
        judge: Gives the metrics of a job, or raises.
        gate: One count lets one verdict through; None lets all through.
    """

    startup_s: float | None = 0.0

    def __init__(self, judge: Callable[[Job], dict[str, float]], gate: threading.Semaphore | None = None) -> None:
        self.judge, self.gate = judge, gate
        self.jobs: list[Job] = []
        self.num_started = 0
        self.is_stopped = threading.Event()

    def start(self) -> None:
        self.num_started += 1

    def run(self, job: Job, *, timeout_s: float | None) -> Verdict:
        self.jobs.append(job)
        while self.gate is not None and not self.gate.acquire(timeout=0.01):
            if self.is_stopped.is_set():
                raise ValidationFailed("stopped", "The validation process was stopped.")
        if self.is_stopped.is_set():
            raise ValidationFailed("stopped", "The validation process was stopped.")
        return verdict_of(job.step, job.epoch, **self.judge(job))

    def stop(self, *, grace_s: float = 2.0) -> None:
        self.is_stopped.set()


def verdict_of(step: int, epoch: int = 0, **metrics: float) -> Verdict:
    """A verdict; in names, ``__`` stands for a slash."""
    values = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return Verdict(step=step, epoch=epoch, metrics=values, logged=values, shown=values, started_s=1.0, ended_s=3.5)


class Fakes:
    """Stands in for validation processes in a run.

    Args:
        monkeypatch: pytest's.
        judge: Gives the metrics of a job; or the score called ``val/acc``, or raises.
        gated: Whether verdicts are held back until :meth:`let_in`.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, judge: Callable[[Job], dict[str, float] | float], *, gated: bool = False
    ) -> None:
        self._judge = judge
        self.gate = threading.Semaphore(0) if gated else None
        self.made: list[FakeChild] = []
        monkeypatch.setattr(session_module, "ChildProcess", self._make)

    def _make(self, packed: object, **options: Any) -> FakeChild:
        self.made.append(FakeChild(self._metrics, self.gate))
        return self.made[-1]

    def _metrics(self, job: Job) -> dict[str, float]:
        found = self._judge(job)
        return found if isinstance(found, dict) else {"val__acc": found}

    @property
    def jobs(self) -> list[Job]:
        return [job for child in self.made for job in child.jobs]


class LetIn(L.Callback):
    """Lets one verdict come before each of some batches, and waits until it is there to be handed out."""

    def __init__(self, fakes: Fakes, validation: AsyncValidation, steps: list[int]) -> None:
        self.fakes, self.validation, self.steps = fakes, validation, list(steps)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step in self.steps:
            self.steps.remove(trainer.global_step)
            assert self.fakes.gate is not None
            self.fakes.gate.release()
            session: Any = self.validation._session
            wait_until(lambda: session._supervisor.has_outcomes)


class AtOnce(L.Callback):
    """Waits, before the next batch, for the verdict of each snapshot."""

    def __init__(self, validation: AsyncValidation) -> None:
        self.validation = validation

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        session: Any = self.validation._session
        if session is not None and session._supervisor is not None and not session.is_blocking:
            wait_until(lambda: not session._supervisor.waiting or session._supervisor.has_failed)


def scripted(scores: list[float]) -> Any:
    return lambda job: scores[job.step // STEPS - 1]
