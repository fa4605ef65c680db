"""Runs with validation within training, and beside it: as many batches in an epoch as wanted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader
from torch_geometric.data import Data
from typing_extensions import override

from benchmarks.async_clocks import RunClock, TimedValidation
from benchmarks.async_cores import on_one_core, two_cores
from benchmarks.async_scale import AsyncScale
from benchmarks.memory_runs import MemoryGraph, load_graph, make_trainer, narrowed
from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt._machine import other_cpu_s
from lightning_gnnopt.evaluation.timeline import Timeline
from lightning_gnnopt.studies.quiet import quiet

MONITOR = "val/acc"


class Again:
    """Batches of a loader, over and over, until there are as many as wanted.

    Args:
        loader: The loader.
        num_batches: How many.
    """

    def __init__(self, loader: Any, num_batches: int) -> None:
        self._loader, self._num_batches = loader, num_batches

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        left = self._num_batches
        while left:
            for batch in self._loader:
                yield batch
                left -= 1
                if not left:
                    return


class SampledBatches(GraphDataModule):
    """Neighbour batches, of which an epoch has as many as wanted."""

    train_batches = val_batches = 1

    @override
    def train_dataloader(self) -> Any:
        return Again(super().train_dataloader(), self.train_batches)

    @override
    def val_dataloader(self) -> Any:
        return Again(super().val_dataloader(), self.val_batches)


class FullBatches(L.LightningDataModule):
    """Batches that are the whole graph, of which an epoch has as many as wanted.

    Args:
        data: The graph.
    """

    train_batches = val_batches = 1

    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    @override
    def train_dataloader(self) -> Any:
        return self._loader(self.train_batches)

    @override
    def val_dataloader(self) -> Any:
        return self._loader(self.val_batches)

    def _loader(self, num_batches: int) -> Any:
        # Without a generator of its own, it draws from the global one whenever it starts, so that training would not be
        # the same with validation within it.
        batches: Any = [self.data] * num_batches
        return DataLoader(batches, collate_fn=itemgetter(0), generator=torch.Generator())


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is trained.

    Attributes:
        graph: The graph's name.
        model: The model's.
        sampling: ``"full"`` or ``"sampled"``.
    """

    graph: str
    model: str
    sampling: str

    @override
    def __str__(self) -> str:
        return f"{self.graph} {self.model} {self.sampling}"

    def load(self, scale: AsyncScale) -> MemoryGraph:
        """Load the graph, with its first features only."""
        return narrowed(load_graph(self.graph, scale.stand_in_nodes), scale.features)

    def make(self, scale: AsyncScale, train_batches: int, val_batches: int) -> tuple[NodeClassifier, Any]:
        """Make the module, and the datamodule with so many batches in an epoch."""
        data = self.load(scale).data
        datamodule: Any = FullBatches(data)
        if self.sampling == "sampled":
            fanouts = list(scale.fanouts)
            datamodule = SampledBatches(data, num_neighbors=fanouts, batch_size=scale.batch_size, num_workers=0, seed=0)
        datamodule.train_batches, datamodule.val_batches = train_batches, val_batches
        L.seed_everything(0, verbose=False)
        options: dict[str, Any] = {"heads": 1} if self.model == "gat" else {}
        module = NodeClassifier(
            self.model,
            in_channels=data.num_features,
            out_channels=int(data.y.max()) + 1,
            hidden_channels=scale.hidden,
            **options,
        )
        return module, datamodule


@dataclass(kw_only=True, eq=False)
class Run:
    """A run that is over.

    Attributes:
        clock: Its times.
        validation: What validated beside it; None where Lightning did.
        best: The best checkpoint's file name.
        other_cores: Cores that other processes kept busy meanwhile.
    """

    clock: RunClock
    validation: TimedValidation | None
    best: str
    other_cores: float

    @property
    def total_s(self) -> float:
        """Seconds from the first epoch's start to the last verdict."""
        return self.clock.total_s

    @property
    def timeline(self) -> Timeline:
        """Who did what when, where validation ran beside training."""
        return Timeline() if self.validation is None else self.validation.timeline


def fit(
    module: L.LightningModule, datamodule: Any, *, epochs: int, beside: bool, waits: bool = True, **options: Any
) -> Run:
    """Train on one core, and validate each epoch's weights: there, or on another core.

    Args:
        module: The module; logs ``val/acc``.
        datamodule: Its batches.
        epochs: Epochs.
        beside: Whether validation runs beside training.
        waits: Whether training waits until the validation process is up.
        **options: Arguments for `AsyncValidation`.

    Raises:
        ValidationFailed: If the validation process fails: what is measured then is nothing.
    """
    cores = two_cores()
    with tempfile.TemporaryDirectory() as folder, on_one_core(), quiet():
        validation: Any = None
        keeper: Callback
        if beside:
            arguments: dict[str, Any] = {
                "monitor": MONITOR,
                "mode": "max",
                "when_busy": "wait",
                "on_failure": "raise",
                **options,
            }
            keeper = validation = TimedValidation(dirpath=folder, **arguments)
        else:
            keeper = ModelCheckpoint(dirpath=folder, monitor=MONITOR, mode="max", save_top_k=1)
        clock = RunClock(validation, core=None if cores is None else cores[1], waits=waits)
        trainer = make_trainer(clock, keeper, max_epochs=epochs, enable_checkpointing=True)
        start_s, start_other_s = time.monotonic(), other_cpu_s()
        trainer.fit(module, datamodule=datamodule)
        busy = max(0.0, other_cpu_s() - start_other_s) / (time.monotonic() - start_s)
        best = Path(trainer.checkpoint_callback.best_model_path).name  # type: ignore[union-attr]
    return Run(clock=clock, validation=validation, best=best, other_cores=busy)
