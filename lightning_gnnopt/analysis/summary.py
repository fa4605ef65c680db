"""RunSummary: what a run reached, how long it took, how long it waited, and what it held."""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.table import Table
from typing_extensions import override

from lightning_gnnopt._units import format_bytes
from lightning_gnnopt.loading import LoaderStats
from lightning_gnnopt.memory.watermark import Watermark


@dataclass
class EpochRecord:
    """One training epoch.

    Attributes:
        train_s: Seconds from its first batch's request to its last batch's end, validation left out.
        wait_s: Seconds of it that the training loop waited for batches.
        val_s: Seconds of validation within it.
        loader: What the loader counted, or None where the loader does not count.
    """

    train_s: float = 0.0
    wait_s: float = 0.0
    val_s: float = 0.0
    loader: LoaderStats | None = None


class RunSummary(Callback):
    """Records a run's epoch times, waiting times, sampling rate and peak memory, and renders them as a table.

    Nothing is logged; read :attr:`epochs` and :attr:`peak_bytes`, or print the callback with `rich`.

    Works with any loader. With `PrefetchLoader` the sampling rate is known too.

    Examples:
        >>> import rich
        >>> summary = RunSummary()
        >>> trainer = L.Trainer(callbacks=[summary], max_epochs=1, logger=False, enable_checkpointing=False)
        >>> # trainer.fit(model, datamodule); rich.print(summary)
        >>> summary.epochs
        []
    """

    def __init__(self) -> None:
        self.epochs: list[EpochRecord] = []
        self.peak_bytes: int | None = None
        self.metrics: dict[str, float] = {}
        self.checkpoint_path: str | None = None
        self.monitor: str | None = None
        self.best_score: float | None = None
        self._meter: Watermark | None = None
        self._loader_before: LoaderStats | None = None
        self._mark = 0.0
        self._val_mark = 0.0

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs = []
        self._meter = Watermark(trainer.strategy.root_device)
        self._meter.start()

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start_clock(trainer)

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append(EpochRecord())
        self._start_clock(trainer)

    def _start_clock(self, trainer: L.Trainer) -> None:
        stats = loader_stats(trainer)
        self._loader_before = None if stats is None else stats.copy()
        self._mark = time.perf_counter()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if not self.epochs:  # resumed within an epoch: Lightning does not start it again
            self.epochs.append(EpochRecord())
        self.epochs[-1].wait_s += now - self._mark
        self.epochs[-1].train_s += now - self._mark
        self._mark = now

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.epochs[-1].train_s += now - self._mark
        self._mark = now

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._val_mark = time.perf_counter()

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # neither the sanity check before the first epoch nor `trainer.validate`
        if self.epochs and trainer.state.fn == TrainerFn.FITTING:
            self.epochs[-1].val_s += time.perf_counter() - self._val_mark
            self._mark = time.perf_counter()

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        stats = loader_stats(trainer)
        if self.epochs and stats is not None and self._loader_before is not None:
            record = self.epochs[-1]
            record.loader = stats - self._loader_before
            record.wait_s = record.loader.wait_s

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._meter is not None:
            self.peak_bytes = self._meter.stop()
        self._take_results(trainer)

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_results(trainer)

    def _take_results(self, trainer: L.Trainer) -> None:
        self.metrics.update({name: float(value) for name, value in trainer.callback_metrics.items()})
        checkpoint: Any = trainer.checkpoint_callback
        self.checkpoint_path = getattr(checkpoint, "best_model_path", None) or self.checkpoint_path
        score = getattr(checkpoint, "best_model_score", None)
        if score is not None:
            self.monitor, self.best_score = checkpoint.monitor, float(score)

    @property
    def steady_epochs(self) -> list[EpochRecord]:
        """The epochs to judge speed by: all but the first, which compiles and warms up, if there is another."""
        return self.epochs[1:] or self.epochs

    def table(self) -> Table:
        """Render the run as a table for a terminal."""
        table = Table(title="Run summary", show_header=False, title_justify="left", min_width=60)
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        for name, value in self._rows().items():
            table.add_row(name, value)
        return table

    def __rich__(self) -> Table:
        return self.table()

    def _rows(self) -> dict[str, str]:
        rows: dict[str, str] = {}
        for name, label in (("test/acc", "Test accuracy"), ("test/f1", "Test micro-F1")):
            if name in self.metrics:
                rows[label] = f"{self.metrics[name]:.2%}"
        if self.best_score is not None:
            rows[f"Best {self.monitor}"] = f"{self.best_score:.4f}"
        epochs = self.steady_epochs
        if epochs:
            median_s = statistics.median(epoch.train_s for epoch in epochs)
            first = f" (first: {self.epochs[0].train_s:.3f} s)" if len(self.epochs) > 1 else ""
            rows["Epoch time"] = f"{median_s:.3f} s, median of {len(epochs)}{first}"
            train_s, wait_s = sum(e.train_s for e in epochs), sum(e.wait_s for e in epochs)
            rows["Waiting for batches"] = f"{wait_s / len(epochs):.3f} s per epoch, {_share(wait_s, train_s)} of it"
        counted = [epoch.loader for epoch in epochs if epoch.loader is not None]
        if counted:
            rows |= _loading_rows(counted)
        if self.peak_bytes is not None and self._meter is not None:
            rows["Device"] = str(self._meter.device)
            rows["Peak memory"] = f"{self.peak_bytes / 2**20:,.0f} MiB ({self._meter.source})"
        rows["Checkpoint"] = os.path.relpath(self.checkpoint_path) if self.checkpoint_path else "none"
        return rows


def loader_stats(trainer: L.Trainer) -> LoaderStats | None:
    """Find what the loader of the training batches counts; None if it does not count."""
    stats = getattr(trainer.train_dataloader, "stats", None)
    return stats if isinstance(stats, LoaderStats) else None


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else "0%"


def _loading_rows(counted: list[LoaderStats]) -> dict[str, str]:
    """Say what loading cost over some epochs."""
    total = sum(counted, LoaderStats())
    batches = max(total.batches, 1)
    rows = {
        "A batch": f"{total.nodes / batches:,.0f} nodes, {total.edges / batches:,.0f} edges,"
        f" {format_bytes(total.nbytes / batches)}",
        "Preparing it": f"{1000 * total.sample_s / batches:.1f} ms sampling,"
        f" {1000 * total.slice_s / batches:.1f} ms slicing, {total.queue_depth:.1f} batches ready",
    }
    if total.copies:
        copies = total.copies / batches
        rows["Moving it"] = (
            f"{1000 * total.transfer_s / batches:.1f} ms, {format_bytes(total.moved_bytes / batches)} in {copies:g}"
            f" {'copy' if copies == 1 else 'copies'}"
        )
    if total.cache_hit_rate is not None:
        rows["Feature cache"] = f"{total.cache_hit_rate:.1%} of the rows were on the device"
    rows["Sampled edges/s"] = (
        f"{total.edges / max(total.sample_s, 1e-9):,.0f} per worker ({total.edges / len(counted):,.0f} an epoch)"
    )
    return rows
