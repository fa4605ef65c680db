"""What a snapshot of a large model takes of the training thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from benchmarks.async_runs import Run, fit
from benchmarks.async_scale import AsyncScale
from benchmarks.harness import Cell, Figure, Measured, alternate, median

REACH_S = 0.02
_SKIPPED = 2  # snapshots, which make the buffers that later ones use
_ROWS = 16


class LargeModule(L.LightningModule):
    """A net of square layers, trained by Adam.

    Args:
        width: Rows and columns of a layer.
        num_layers: Number of layers.
    """

    def __init__(self, width: int, num_layers: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*(nn.Linear(width, width) for _ in range(num_layers)))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch[0]).square().mean()
        return loss

    @override
    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val/acc", self.net(batch[0]).mean())

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class NoiseBatches(L.LightningDataModule):
    """Batches of noise.

    Args:
        width: Columns.
        num_batches: Batches of an epoch, for training; validation has one.
    """

    def __init__(self, width: int, num_batches: int) -> None:
        super().__init__()
        self._width, self._num_batches = width, num_batches

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(self._num_batches)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return self._loader(1)

    def _loader(self, num_batches: int) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(torch.rand(num_batches * _ROWS, self._width)), batch_size=_ROWS)


def measure_snapshot(scale: AsyncScale) -> Measured:
    """Take snapshots with and without full checkpoints, in turn.

    Args:
        scale: How much to measure.

    Returns:
        The figures, and a row for each of the two.
    """
    sides: dict[str, Callable[[], Run]] = {
        f"save_top_k={save_top_k}": partial(_run, scale, save_top_k) for save_top_k in (1, 0)
    }
    runs = alternate(sides, rounds=scale.rounds, warmup=0)
    millions = sum(p.numel() for p in LargeModule(scale.snapshot_width, scale.snapshot_layers).parameters()) / 1e6
    figures: list[Figure] = []
    rows: list[Mapping[str, Cell]] = []
    for name, of_side in runs.items():
        snapshots = [seconds for run in of_side for seconds in _hook_s(run)]
        title = f"snapshot of {millions:.1f} M parameters, {name}"
        figures.append(Figure.of_runs(title, snapshots, unit="s", reach=REACH_S, sense="<="))
        rows.append(_row(name, of_side, snapshots))
    return figures, rows


def _run(scale: AsyncScale, save_top_k: int) -> Run:
    L.seed_everything(0, verbose=False)
    return fit(
        LargeModule(scale.snapshot_width, scale.snapshot_layers),
        NoiseBatches(scale.snapshot_width, scale.snapshot_steps),
        epochs=_SKIPPED + scale.snapshots,
        beside=True,
        save_top_k=save_top_k,
        when_busy="coalesce",
    )


def _hook_s(run: Run) -> list[float]:
    assert run.validation is not None
    return run.validation.hook_s[_SKIPPED:]


def _row(name: str, runs: Sequence[Run], snapshots: Sequence[float]) -> Mapping[str, Cell]:
    writing_s = [s.end_s - s.start_s for run in runs for s in run.timeline.spans if s.side == "writing"]
    busy = [(s.start_s, s.end_s) for run in runs for s in run.timeline.spans if s.side == "writing"]
    beside_writing: list[float] = []
    alone: list[float] = []
    for start, end, _ in (step for run in runs for epoch in run.clock.steps[_SKIPPED:] for step in epoch):
        is_beside = any(start < last and end > first for first, last in busy)
        (beside_writing if is_beside else alone).append(end - start)
    return {
        "part": "snapshot",
        "side": name,
        "snapshot_ms": 1000 * median(snapshots),
        "slowest_ms": 1000 * max(snapshots),
        "first_ms": 1000 * max(run.validation.hook_s[0] for run in runs if run.validation is not None),
        "writing_ms": 1000 * median(writing_s) if writing_s else None,
        "step_ms": 1000 * median(alone) if alone else None,
        "step_while_writing_ms": 1000 * median(beside_writing) if beside_writing else None,
        "epoch_s": median([seconds for run in runs for seconds in run.clock.train_s[_SKIPPED:]]),
        "skipped": sum(run.validation.num_skipped for run in runs if run.validation is not None),
        "other_cores": median([run.other_cores for run in runs]),
    }
