from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from lightning_gnnopt import GraphDataModule, NodeClassifier, RunSummary
from lightning_gnnopt.analysis import summary as summary_module
from lightning_gnnopt.analysis.summary import EpochRecord
from lightning_gnnopt.loading import LoaderStats
from lightning_gnnopt.memory.watermark import Watermark


class Clock:
    """A clock that moves only when told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(summary_module.time, "perf_counter", clock)
    return clock


def trainer_with(loader: object) -> Any:
    state = SimpleNamespace(fn=TrainerFn.FITTING)
    return SimpleNamespace(train_dataloader=loader, callback_metrics={}, checkpoint_callback=None, state=state)


def run_epoch(summary: RunSummary, trainer: Any, clock: Clock, *, waits: list[float], steps: list[float]) -> None:
    summary.on_train_epoch_start(trainer, None)  # type: ignore[arg-type]
    for index, (wait, step) in enumerate(zip(waits, steps, strict=True)):
        clock.now += wait
        summary.on_train_batch_start(trainer, None, None, index)  # type: ignore[arg-type]
        clock.now += step
        summary.on_train_batch_end(trainer, None, None, None, index)  # type: ignore[arg-type]


def validate(summary: RunSummary, trainer: Any, clock: Clock, seconds: float) -> None:
    summary.on_validation_start(trainer, None)  # type: ignore[arg-type]
    clock.now += seconds
    summary.on_validation_end(trainer, None)  # type: ignore[arg-type]


def test_times_of_an_epoch_with_any_loader(clock: Clock) -> None:
    summary, trainer = RunSummary(), trainer_with([1, 2])
    run_epoch(summary, trainer, clock, waits=[0.5, 0.25], steps=[2.0, 4.0])
    validate(summary, trainer, clock, 10.0)
    summary.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert summary.epochs == [EpochRecord(train_s=6.75, wait_s=0.75, val_s=10.0, loader=None)]


def test_validation_between_batches_is_not_waiting(clock: Clock) -> None:
    summary, trainer = RunSummary(), trainer_with([1])
    run_epoch(summary, trainer, clock, waits=[0.5], steps=[2.0])
    validate(summary, trainer, clock, 10.0)
    clock.now += 0.25
    summary.on_train_batch_start(trainer, None, None, 1)  # type: ignore[arg-type]
    assert summary.epochs[0] == EpochRecord(train_s=2.75, wait_s=0.75, val_s=10.0)


def test_sanity_check_before_the_first_epoch_is_left_out(clock: Clock) -> None:
    summary, trainer = RunSummary(), trainer_with([1])
    validate(summary, trainer, clock, 10.0)
    assert summary.epochs == []


def test_validating_after_the_fit_is_left_out(clock: Clock) -> None:
    summary, trainer = RunSummary(), trainer_with([1])
    run_epoch(summary, trainer, clock, waits=[0.5], steps=[2.0])
    trainer.state.fn = TrainerFn.VALIDATING
    validate(summary, trainer, clock, 10.0)
    assert summary.epochs == [EpochRecord(train_s=2.5, wait_s=0.5)]


def test_resumed_within_an_epoch_counts_what_is_left_of_it(clock: Clock) -> None:
    loader = SimpleNamespace(stats=LoaderStats())
    summary, trainer = RunSummary(), trainer_with(loader)
    summary.on_train_start(trainer, None)  # type: ignore[arg-type]
    clock.now += 1.0
    summary.on_train_batch_start(trainer, None, None, 3)  # type: ignore[arg-type]
    clock.now += 2.0
    summary.on_train_batch_end(trainer, None, None, None, 3)  # type: ignore[arg-type]
    loader.stats += LoaderStats(batches=1, edges=10, wait_s=0.75)
    summary.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert summary.epochs == [
        EpochRecord(train_s=3.0, wait_s=0.75, loader=LoaderStats(batches=1, edges=10, wait_s=0.75))
    ]


def test_a_counting_loader_says_how_long_it_was_waited_for(clock: Clock) -> None:
    loader = SimpleNamespace(stats=LoaderStats(batches=5, edges=100, sample_s=1.0, wait_s=3.0))
    summary, trainer = RunSummary(), trainer_with(loader)
    run_epoch(summary, trainer, clock, waits=[0.5], steps=[2.0])
    loader.stats += LoaderStats(batches=2, nodes=7, edges=50, sample_s=0.5, slice_s=0.25, wait_s=0.125)
    summary.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    (record,) = summary.epochs
    assert record.loader == LoaderStats(batches=2, nodes=7, edges=50, sample_s=0.5, slice_s=0.25, wait_s=0.125)
    assert record.wait_s == 0.125
    assert record.train_s == 2.5


def rendered(summary: RunSummary) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(summary)
    return console.export_text()


def test_table_of_known_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    summary = RunSummary()
    stats = LoaderStats(
        batches=4,
        nodes=6_000,
        edges=3_000_000,
        sample_s=1.5,
        slice_s=0.5,
        transfer_s=0.1,
        queued=10,
        nbytes=4 * 3 * 2**20,
        moved_bytes=4 * 2 * 2**20,
        copies=4,
        cache_lookups=8,
        cache_hits=3,
    )
    summary.epochs = [
        EpochRecord(train_s=9.0, wait_s=8.0, loader=stats),
        EpochRecord(train_s=2.0, wait_s=0.1, loader=stats),
        EpochRecord(train_s=4.0, wait_s=0.5, loader=stats),
    ]
    summary.metrics = {"test/acc": 0.98765, "test/f1": 0.5}
    summary.monitor, summary.best_score = "val/acc", 0.91
    summary.peak_bytes, summary._meter = 3 * 2**30, Watermark("cpu")
    summary.checkpoint_path = str(tmp_path / "best.ckpt")
    rows = [line.split("│")[1:3] for line in rendered(summary).splitlines() if "│" in line]
    assert [(name.strip(), value.strip()) for name, value in rows] == [
        ("Test accuracy", "98.77%"),
        ("Test micro-F1", "50.00%"),
        ("Best val/acc", "0.9100"),
        ("Epoch time", "3.000 s, median of 2 (first: 9.000 s)"),
        ("Waiting for batches", "0.300 s per epoch, 10% of it"),
        ("A batch", "1,500 nodes, 750,000 edges, 3.0 MiB"),
        ("Preparing it", "375.0 ms sampling, 125.0 ms slicing, 2.5 batches ready"),
        ("Moving it", "25.0 ms, 2.0 MiB in 1 copy"),
        ("Feature cache", "37.5% of the rows were on the device"),
        ("Sampled edges/s", "2,000,000 per worker (3,000,000 an epoch)"),
        ("Device", "cpu"),
        ("Peak memory", "3,072 MiB (resident set of the process)"),
        ("Checkpoint", "best.ckpt"),
    ]


def test_a_single_epoch_is_judged_itself() -> None:
    summary = RunSummary()
    summary.epochs = [EpochRecord(train_s=2.0, wait_s=1.0)]
    text = rendered(summary)
    assert "2.000 s, median of 1" in text
    assert "1.000 s per epoch, 50% of it" in text
    assert "Sampled edges/s" not in text


def test_table_before_any_run() -> None:
    rows = [line.split("│")[1:3] for line in rendered(RunSummary()).splitlines() if "│" in line]
    assert [(name.strip(), value.strip()) for name, value in rows] == [("Checkpoint", "none")]


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(40) < 20
    return Data(
        x=torch.randn(40, 4, generator=generator),
        y=torch.randint(3, (40,), generator=generator),
        edge_index=torch.randint(40, (2, 200), generator=generator),
        train_mask=mask,
        val_mask=~mask,
        test_mask=~mask,
    )


def fit(loaders: Any, tmp_path: Path, **options: Any) -> tuple[RunSummary, L.Trainer]:
    summary = RunSummary()
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[summary],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        **{"max_epochs": 3, **options},
    )
    model = NodeClassifier("sage", in_channels=4, out_channels=3, hidden_channels=8)
    if isinstance(loaders, L.LightningDataModule):
        trainer.fit(model, datamodule=loaders)
        trainer.test(model, datamodule=loaders, verbose=False)
    else:
        trainer.fit(model, loaders)
    return summary, trainer


def test_in_a_trainer_with_our_loader(data: Data, tmp_path: Path) -> None:
    datamodule = GraphDataModule(data, num_neighbors=[-1, -1], batch_size=8, num_workers=1)
    summary, trainer = fit(datamodule, tmp_path)
    assert len(summary.epochs) == 3
    for record in summary.epochs:
        assert record.loader is not None
        assert record.loader.batches == 3
        assert 0 <= record.wait_s < record.train_s
        assert record.val_s > 0
    assert summary.metrics["test/acc"] == float(trainer.callback_metrics["test/acc"])
    assert summary.peak_bytes is not None
    assert summary.peak_bytes > 50 * 2**20  # an interpreter with torch alone is more
    assert summary.checkpoint_path is not None
    assert Path(summary.checkpoint_path).exists()


def test_in_a_trainer_with_a_plain_loader(data: Data, tmp_path: Path) -> None:
    loader = DataLoader([data], collate_fn=lambda graphs: graphs[0])
    summary, _ = fit(loader, tmp_path, max_epochs=2, enable_checkpointing=False)
    assert [record.loader for record in summary.epochs] == [None, None]
    assert summary.checkpoint_path is None


def test_a_second_fit_starts_anew(data: Data, tmp_path: Path) -> None:
    datamodule = GraphDataModule(data, num_neighbors=[2, 2], batch_size=8, num_workers=0)
    summary, trainer = fit(datamodule, tmp_path, max_epochs=2)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(trainer.lightning_module, datamodule=datamodule)
    assert len(summary.epochs) == 1


def test_fast_dev_run(data: Data, tmp_path: Path) -> None:
    datamodule = GraphDataModule(data, num_neighbors=[2, 2], batch_size=8, num_workers=2)
    summary, _ = fit(datamodule, tmp_path, fast_dev_run=True)
    assert len(summary.epochs) == 1
    assert summary.epochs[0].loader is not None
    assert summary.epochs[0].loader.batches == 1
    assert summary.checkpoint_path is None


class ClockedLoader:
    """Plain batches, each of which takes two seconds to make."""

    def __init__(self, clock: Clock, size: int) -> None:
        self.clock, self.size = clock, size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(self.size):
            self.clock.now += 2
            yield torch.ones(1)


class ClockedModule(L.LightningModule):
    """A training step takes 10 seconds, a validation step 100; what stands between them takes no time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.weight = clock, torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.clock.now += 10
        return self.weight.sum()

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.clock.now += 100

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def clocked_trainer(summary: RunSummary, *callbacks: Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        callbacks=[summary, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}])
def test_lightnings_hooks_come_when_the_clock_expects_them(clock: Clock, options: dict[str, Any]) -> None:
    """The sanity check, validation within an epoch and validation after the fit stay out of the training time."""
    summary, module = RunSummary(), ClockedModule(clock)
    trainer = clocked_trainer(summary, max_epochs=2, **options)
    trainer.fit(module, ClockedLoader(clock, 4), ClockedLoader(clock, 3))
    trainer.validate(module, ClockedLoader(clock, 3), verbose=False)
    validations = 2 if options else 1
    # four batches of 2 + 10 seconds; validations of three batches of 2 + 100 seconds
    assert summary.epochs == [EpochRecord(train_s=48.0, wait_s=8.0, val_s=306.0 * validations)] * 2


def test_a_run_resumed_within_an_epoch_is_recorded(clock: Clock, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    loader, module = ClockedLoader(clock, 4), ClockedModule(clock)
    clocked_trainer(RunSummary(), Save(), max_epochs=1).fit(module, loader)
    summary = RunSummary()
    clocked_trainer(summary, max_epochs=2).fit(module, loader, ckpt_path=tmp_path / "middle.ckpt", weights_only=True)
    assert summary.epochs == [EpochRecord(train_s=36.0, wait_s=6.0), EpochRecord(train_s=48.0, wait_s=8.0)]


def test_the_loaders_counts_are_those_of_the_batches(data: Data, tmp_path: Path) -> None:
    counted: list[dict[str, int]] = []

    class Count(NodeClassifier):
        def on_train_epoch_start(self) -> None:
            counted.append({"batches": 0, "nodes": 0, "edges": 0})

        def on_train_batch_start(self, batch: Data, batch_idx: int) -> None:
            for name, count in (("batches", 1), ("nodes", batch.num_nodes), ("edges", batch.num_edges)):
                counted[-1][name] += count

    summary = RunSummary()
    datamodule = GraphDataModule(data, num_neighbors=[2, 2], batch_size=8, num_workers=2)
    trainer = clocked_trainer(summary, max_epochs=3)
    trainer.fit(Count("sage", in_channels=4, out_channels=3, hidden_channels=8), datamodule)
    loaders = [record.loader for record in summary.epochs]
    assert [{name: getattr(stats, name) for name in ("batches", "nodes", "edges")} for stats in loaders] == counted
    assert [record.wait_s for record in summary.epochs] == [stats.wait_s for stats in loaders if stats]


def test_the_checkpoints_score_is_kept(tmp_path: Path) -> None:
    loader = [torch.ones(1)]
    summary, saver = RunSummary(), ModelCheckpoint(tmp_path, monitor="score", mode="max")

    class Scores(ClockedModule):
        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.log("score", [0.25, 0.75, 0.5][self.current_epoch])

    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[summary, saver],
        max_epochs=3,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Scores(Clock()), loader, loader)
    assert (summary.monitor, summary.best_score) == ("score", 0.75)
    assert summary.checkpoint_path == str(tmp_path / "epoch=1-step=2.ckpt")
