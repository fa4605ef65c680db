from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from torch_geometric.data import Data

from lightning_gnnopt import LoaderMonitor
from lightning_gnnopt.analysis.loader_monitor import means
from lightning_gnnopt.loading import GraphDataModule, LoaderStats, SimulatedDevice

from ..loading.graphs import make_data
from ..loading.modules import Recorder, make_trainer


class Notes(Logger):
    """Keeps what of a loader is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int, dict[str, float]]] = []

    name, version = "notes", 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if found := {name: value for name, value in metrics.items() if name.startswith("loader/")}:
            self.logged.append((step, found))


def fit(max_epochs: int = 2, *, log_every: int = 2, monitor: LoaderMonitor | None = None, **kwargs: Any) -> Any:
    notes, module = Notes(), Recorder()
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, **kwargs)
    trainer = make_trainer(
        max_epochs, callbacks=[monitor or LoaderMonitor()], logger=notes, log_every_n_steps=log_every
    )
    trainer.fit(module, datamodule)
    return notes.logged, [batch for _, _, batch in module.batches], trainer


def test_means_are_logged_over_the_batches_since_the_last_time() -> None:
    logged, batches, _ = fit()
    # Five batches an epoch. Lightning counts steps from 0, and has counted the last one when the epoch ends.
    assert [step for step, _ in logged] == [1, 3, 5, 6, 8, 10]
    for (_, metrics), part in zip(logged, (slice(2), slice(2, 4), slice(4, 5), slice(5, 7), slice(7, 9)), strict=False):
        own = batches[part]
        assert metrics["loader/nodes"] == sum(batch.num_nodes for batch in own) / len(own)
        assert metrics["loader/edges"] == sum(batch.num_edges for batch in own) / len(own)
        assert set(metrics) == {
            f"loader/{name}" for name in ("wait_s", "sample_s", "slice_s", "queue_depth", "nodes", "edges")
        }
        assert min(metrics[f"loader/{name}"] for name in ("wait_s", "sample_s", "slice_s")) > 0


def test_a_device_adds_its_transfer_and_a_cache_its_hits() -> None:
    with SimulatedDevice(bytes_per_s=1e9, host_computes=True) as device:
        logged, _, trainer = fit(1, log_every=50, device=device, cache="10KiB", num_workers=0)
    ((step, metrics),) = logged
    stats = trainer.train_dataloader.stats
    assert step == 5
    assert metrics["loader/moved_bytes"] == stats.moved_bytes / 5
    assert metrics["loader/cache_hit_rate"] == stats.cache_hits / stats.cache_lookups > 0
    assert metrics["loader/transfer_s"] == pytest.approx(stats.transfer_s / 5)
    assert stats.transfer_s > 0


def test_means_of_known_totals() -> None:
    stats = LoaderStats(
        batches=4, nodes=8, edges=12, sample_s=1.0, slice_s=2.0, transfer_s=3.0, wait_s=5.0, queued=6, copies=4
    )
    assert means(stats) == {
        "loader/wait_s": 1.25,
        "loader/sample_s": 0.25,
        "loader/slice_s": 0.5,
        "loader/transfer_s": 0.75,
        "loader/moved_bytes": 0.0,
        "loader/queue_depth": 1.5,
        "loader/nodes": 2.0,
        "loader/edges": 3.0,
    }
    assert means(LoaderStats()) == {}


def test_the_numbers_reach_lightnings_csv_file(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    make_trainer(1, callbacks=[LoaderMonitor()], logger=logger, log_every_n_steps=5).fit(Recorder(), datamodule)
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "loader/wait_s" in header.split(",")
    assert any(lines)


def test_a_resumed_epoch_is_logged_too(tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "three.ckpt")

    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    make_trainer(1, callbacks=[Save()]).fit(Recorder(), datamodule)
    notes = Notes()
    trainer = make_trainer(1, callbacks=[LoaderMonitor()], logger=notes, log_every_n_steps=1)
    trainer.fit(Recorder(), datamodule, ckpt_path=tmp_path / "three.ckpt", weights_only=True)
    # What was delivered before the first batch's start is not known any more: one of the two batches that were left.
    assert [step for step, _ in notes.logged] == [4]


def test_another_loader_is_told_once_that_it_does_not_count() -> None:
    batches = torch.utils.data.DataLoader(
        [Data(x=torch.zeros(2, 5), edge_index=torch.zeros(2, 0, dtype=torch.long), y=torch.zeros(2).long())],
        collate_fn=lambda items: items[0],
    )

    class Plain(Recorder):
        def training_step(self, batch: Data, batch_idx: int) -> torch.Tensor:
            return self.net(batch.x, batch.edge_index).sum()

    notes = Notes()
    trainer = make_trainer(2, callbacks=[LoaderMonitor()], logger=notes, limit_val_batches=0)
    with pytest.warns(UserWarning, match="`LoaderMonitor` has nothing to log with DataLoader, which does not count"):
        trainer.fit(Plain(), batches)
    assert notes.logged == []


def test_curves_stand_where_lightnings_own_stand() -> None:
    class Logs(Recorder):
        def training_step(self, batch: Data, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss, batch_size=batch.batch_size)
            return loss

    class All(Notes):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            self.logged.append((step, metrics))

    logger = All()
    datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8)
    make_trainer(1, callbacks=[LoaderMonitor()], logger=logger, log_every_n_steps=1).fit(Logs(), datamodule)
    own = [step for step, metrics in logger.logged if "train_loss" in metrics]
    ours = [step for step, metrics in logger.logged if "loader/wait_s" in metrics]
    assert own == ours == [0, 1, 2, 3, 4]
