"""Validation beside training on a graph, and what else may be asked of the other process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_gnnopt import MemoryControl
from lightning_gnnopt.evaluation import AsyncValidation, ValidationFailed

from .graph_runs import graph_run
from .runs import Rows, Tiny, fit, floats, judged_alone, leaving_nothing, ledger

# ---- a graph ---------------------------------------------------------------------------------------------------------


def test_a_graph_is_judged_as_by_lightning_itself(tmp_path: Path) -> None:
    """Epoch by epoch; the sanity check runs in all three."""
    blocking = graph_run(tmp_path)
    without = graph_run(tmp_path, limit_val_batches=0)
    validation = AsyncValidation(when_busy="wait", max_pending=1)
    with leaving_nothing(tmp_path):
        beside = graph_run(tmp_path, validation)
    assert beside.recorder.losses == without.recorder.losses == blocking.recorder.losses
    judged = {verdict["step"]: verdict["metrics"] for verdict in ledger(tmp_path)}
    assert list(judged) == [5, 10, 15]
    assert {
        step: {k: v for k, v in m.items() if k in judged[step]} for step, m in blocking.recorder.validated.items()
    } == judged
    assert set(judged[5]) == {"val/acc", "val/loss"}


# ---- what else may be asked of the other process ---------------------------------------------------------------------


class Two(L.LightningModule):
    """Steps with two optimizers, by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        torch.manual_seed(5)
        self.first, self.second = nn.Linear(4, 2), nn.Linear(4, 2)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        for optimizer, layer in zip(self.optimizers(), (self.first, self.second), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(layer(batch[0]), batch[1]))
            optimizer.step()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        logits = self.first(batch[0]) + self.second(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]), batch_size=len(logits))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.first, self.second)]


def test_loaders_and_manual_optimization(tmp_path: Path) -> None:
    """A plain module, loaders with workers, and snapshots by steps, of which each batch makes two."""
    data, validation = (
        Rows(num_workers=1),
        AsyncValidation(every_n_steps=4, monitor="val/loss", mode="min", when_busy="queue", save_top_k=2),
    )
    with leaving_nothing(tmp_path):
        run = fit(
            tmp_path, validation, module=Two(), data=(data.train_dataloader(), data.val_dataloader()), max_epochs=1
        )
    verdicts = ledger(tmp_path)
    assert [verdict["step"] for verdict in verdicts] == [4, 8, 12]
    for verdict in verdicts:
        weights = run.recorder.weights[verdict["step"]]
        assert verdict["metrics"] == judged_alone(Two(), weights)
    scores = sorted(verdict["score"] for verdict in verdicts)
    assert list(validation.best_k_models.values()) == scores[:2]


def make_fewer_rows() -> Rows:
    data = Rows()
    data.x, data.y = data.x[:34], data.y[:34]
    return data


def test_a_datamodule_and_callbacks_of_its_own(tmp_path: Path) -> None:
    """The factory's rows are judged, although this process's datamodule cannot be pickled; and `limit_val_batches`."""
    data, told = Rows(), tmp_path / "told"

    class Tells(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            told.write_text(f"{trainer.current_epoch} {trainer.global_step} {trainer.world_size}")

    data.unpicklable = (lambda: (yield))()  # type: ignore[attr-defined]
    validation = AsyncValidation(datamodule_factory=make_fewer_rows, callbacks=[Tells()], when_busy="queue")
    run = fit(tmp_path, validation, data=data, max_epochs=1, limit_val_batches=1)
    [verdict] = ledger(tmp_path)
    fewer = make_fewer_rows()
    first = DataLoader(TensorDataset(fewer.x[24:32], fewer.y[24:32]), batch_size=8)
    module = Tiny()
    module.load_state_dict(run.recorder.weights[6])
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, first, verbose=False)
    assert verdict["metrics"] == floats(trainer.callback_metrics)
    assert told.read_text() == "0 6 1"


def test_the_other_process_keeps_to_a_budget(tmp_path: Path) -> None:
    """Which is its own: this process has none."""
    validation = AsyncValidation(callbacks=[MemoryControl(budget="1KiB")], on_failure="raise")
    with pytest.raises(
        ValidationFailed, match=r"MemoryBudgetError: A 'val' batch does not fit into the `budget` of 1\.0 KiB"
    ):
        graph_run(tmp_path, validation, max_epochs=1)
