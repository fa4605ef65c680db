"""One fit of the study, and what is measured of it."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.studies.pipeline.theory import Stages
from lightning_gnnopt.studies.quiet import quiet

_MONITOR, _LOSS = "val/acc", "val/loss"
_PENDING = 2  # as `AsyncValidation` has it by default


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What was measured of a fit.

    Attributes:
        fit_s: Seconds of all of it, start-up of the validation process and the wait for its last verdict included.
        epochs_s: Seconds of each epoch, validation within it included.
        steady_s: Of these, those in a steady state: all but the first; beside a validation process those that began
            after its first verdict.
        stages: Median seconds of the stages of a steady epoch; None where validation ran beside it.
        cpu_s: Median processor seconds of the training thread in a steady epoch; what it waits for is not in them.
        startup_s: From the first epoch's start to the first verdict; 0 where validation ran within training.
        workers: Threads or processes that prepared batches for training and for validation, as they were at the end.
        losses: Digest of the bits of all training losses.
        val_losses: Loss of each validation.
        last_loss: Last training loss.
    """

    fit_s: float
    epochs_s: tuple[float, ...]
    steady_s: tuple[float, ...]
    stages: Stages | None
    cpu_s: float
    startup_s: float
    workers: tuple[int, ...]
    losses: str
    val_losses: tuple[float, ...]
    last_loss: float

    @property
    def epoch_s(self) -> float:
        """Median of the steady epochs."""
        return statistics.median(self.steady_s)


def run_fit(module: L.LightningModule, datamodule: L.LightningDataModule, *, epochs: int, beside: bool) -> Fit:
    """Train, validate after each epoch, and keep the best weights.

    Args:
        module: The module; logs ``val/acc`` and ``val/loss``.
        datamodule: Its batches; both loaders are `Passes`.
        epochs: Epochs.
        beside: Whether validation runs beside training, in a process of its own.

    Raises:
        ValidationFailed: If that process fails.
        RuntimeError: If it was too slow for an epoch to begin after its first verdict.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        keeper: Any = (
            AsyncValidation(
                monitor=_MONITOR, dirpath=folder, when_busy="wait", max_pending=_PENDING, on_failure="raise"
            )
            if beside
            else ModelCheckpoint(monitor=_MONITOR, mode="max", dirpath=folder)
        )
        clock, logger = _Clock(), _Losses()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=epochs,
            callbacks=[clock, keeper],
            logger=logger,
            log_every_n_steps=1_000_000_000,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        began_s = time.monotonic()
        trainer.fit(module, datamodule=datamodule)
        fit_s = time.monotonic() - began_s
        first_s = 0.0
        if beside:
            first_s = min(span.end_s for span in keeper.timeline.spans if span.side == "validation")
    return clock.result(fit_s, first_s, tuple(logger.val_losses))


class _Clock(Callback):
    """Notes when epochs and validations begin and end, and the losses.

    Lightning calls it before `Checkpoint` callbacks, so an epoch that ends has not waited for them, and the next one's
    beginning has.
    """

    def __init__(self) -> None:
        self._marks_s: list[float] = []
        self._cpu_s: list[float] = []
        self._losses: list[Tensor] = []
        self._val_s: list[float] = []
        self._waits_s: tuple[list[float], list[float]] = ([], [])
        self._batches = (0, 0)
        self._workers: tuple[int, ...] = ()
        self._mark_s = 0.0

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark_s = time.monotonic()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._val_s.append(time.monotonic() - self._mark_s)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark()
        loaders: list[Any] = [trainer.train_dataloader, trainer.val_dataloaders]  # the latter None without validation
        train_s, val_s = ([] if loader is None else list(loader.waits_s) for loader in loaders)
        self._waits_s = (train_s, val_s)
        train, val = (0 if loader is None else loader.num_batches for loader in loaders)
        self._batches = (train, val)
        self._workers = tuple(loader.num_workers for loader in loaders if loader is not None)

    def _mark(self) -> None:
        self._marks_s.append(time.monotonic())
        self._cpu_s.append(time.thread_time())

    def result(self, fit_s: float, first_s: float, val_losses: tuple[float, ...]) -> Fit:
        """Say what was measured; `first_s` is when the first verdict was there, 0 without a validation process."""
        marks_s = self._marks_s
        epochs_s = tuple(end - start for start, end in pairwise(marks_s))
        steady = [number for number, start_s in enumerate(marks_s[:-1]) if number and start_s >= first_s]
        if not steady:
            raise RuntimeError(
                f"The first verdict came after the last of {len(epochs_s)} epochs had begun. HINT: more"
                " `pipeline.epochs`."
            )
        losses = torch.stack(self._losses).cpu()
        return Fit(
            fit_s=fit_s,
            epochs_s=epochs_s,
            steady_s=tuple(epochs_s[number] for number in steady),
            cpu_s=statistics.median(self._cpu_s[number + 1] - self._cpu_s[number] for number in steady),
            stages=None if first_s else self._stages(epochs_s, steady),
            startup_s=first_s - marks_s[0] if first_s else 0.0,
            workers=self._workers,
            losses=hashlib.sha256(losses.numpy().tobytes()).hexdigest(),
            val_losses=val_losses,
            last_loss=float(losses[-1]),
        )

    def _stages(self, epochs_s: tuple[float, ...], steady: list[int]) -> Stages:
        """Medians over the steady epochs, each stage by itself."""
        middle = statistics.median
        train, val = self._waits_s
        val_s = middle([self._val_s[number] for number in steady])
        val_prepare_s = middle([val[number] for number in steady])
        prepare_s = middle([train[number] for number in steady])
        rest_s = [epochs_s[number] - self._val_s[number] - train[number] for number in steady]
        return Stages(
            train_prepare_s=prepare_s,
            train_compute_s=middle(rest_s),
            val_prepare_s=val_prepare_s,
            val_compute_s=val_s - val_prepare_s,
            train_batches=self._batches[0],
            val_batches=self._batches[1],
        )


class _Losses(Logger):
    """A logger that remembers the losses of validations."""

    def __init__(self) -> None:
        super().__init__()
        self.val_losses: list[float] = []

    @property
    @override
    def name(self) -> str:
        return "losses"

    @property
    @override
    def version(self) -> int:
        return 0

    @override
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """They are in the cell."""

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if _LOSS in metrics:
            self.val_losses.append(float(metrics[_LOSS]))
