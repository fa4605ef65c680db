"""Runs that are resumed: they go on as if nothing had been, and what had no verdict gets one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder

from .graph_runs import graph_run
from .runs import (
    STEPS,
    AtOnce,
    Fakes,
    Rows,
    Run,
    Tiny,
    fit,
    judged_alone,
    leaving_nothing,
    ledger,
    same,
    wait_until,
    weights_in,
)
from .test_delivery import rows_of


def repeatable(folder: Path, *callbacks: L.Callback, orders: str | Path = "", **options: Any) -> Run:
    """A run without random numbers: Lightning does not save the generators' states."""
    return fit(folder, *callbacks, module=Tiny(orders, dropout=0.0), data=Rows(shuffle=False), **options)


def scripted(scores: list[float]) -> Any:
    return lambda job: scores[job.epoch]


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_it_goes_on_from_the_best_as_if_nothing_had_been(
    epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = [0.1] * 5
    scores[epoch] = 0.9
    Fakes(monkeypatch, scripted(scores))
    validation = AsyncValidation(when_busy="queue")
    whole = repeatable(tmp_path, validation, max_epochs=5)
    second = AsyncValidation(when_busy="queue")
    resumed = repeatable(tmp_path, second, max_epochs=5, ckpt_path=validation.best_model_path)
    assert resumed.recorder.losses == whole.recorder.losses[STEPS * (epoch + 1) :]
    assert same(resumed.recorder.weights[5 * STEPS], whole.recorder.weights[5 * STEPS])


def test_it_goes_on_from_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With loaders that know where they are: step 8 is the third batch of the second epoch's five."""
    Fakes(monkeypatch, lambda job: 0.9 if job.step == 8 else 0.1)
    validation = AsyncValidation(every_n_steps=4, when_busy="queue")
    whole = graph_run(tmp_path, validation, dropout=0.0)
    fakes = Fakes(monkeypatch, lambda job: 0.1)
    second = AsyncValidation(every_n_steps=4, when_busy="queue")
    resumed = graph_run(tmp_path, second, dropout=0.0, ckpt_path=validation.best_model_path)
    assert resumed.recorder.losses == whole.recorder.losses[8:]
    assert [job.step for job in fakes.jobs if job.step > 8] == [12]
    assert same(resumed.recorder.weights[15], whole.recorder.weights[15])


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 4}], ids=["epochs", "steps"])
def test_it_goes_on_from_the_middle_of_the_last_epoch(
    options: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For which Lightning does not call `on_train_epoch_start`."""
    Fakes(monkeypatch, lambda job: 0.1)
    steps = ModelCheckpoint(tmp_path / "steps", "{step}", every_n_train_steps=1, save_top_k=-1)
    repeatable(tmp_path, AsyncValidation(when_busy="queue", **options), steps, max_epochs=2)
    fakes = Fakes(monkeypatch, lambda job: 0.9)
    second = AsyncValidation(when_busy="queue", **options)
    repeatable(tmp_path, second, max_epochs=2, ckpt_path=str(tmp_path / "steps" / "step=8.ckpt"))
    assert fakes.jobs[-1].step == 12
    assert second.best_model_score is not None
    assert second.best_model_score.item() == pytest.approx(0.9)
    assert all(span.end_s - span.start_s < 600 for span in second.timeline.spans)


def test_what_the_end_of_a_run_left_is_judged_though_there_is_nothing_to_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fakes(monkeypatch, scripted([0.5] * 3), gated=True)
    latest = ModelCheckpoint(tmp_path / "latest", save_last=True)
    validation = AsyncValidation(when_busy="queue", timeout_s=0.1, dirpath=tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match="had no verdict"):
        first = repeatable(tmp_path, validation, latest, max_epochs=2)
    fakes = Fakes(monkeypatch, scripted([0.7, 0.9]))
    second = AsyncValidation(when_busy="queue", dirpath=tmp_path / "checkpoints")
    resumed = repeatable(tmp_path, second, max_epochs=2, ckpt_path=latest.last_model_path)
    assert resumed.recorder.losses == []
    assert [job.step for job in fakes.jobs] == [6, 12]
    assert second.best_model_score is not None
    assert second.best_model_score.item() == pytest.approx(0.9)
    assert same(weights_in(second.best_model_path), first.recorder.weights[12])


def test_the_best_stays_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own checkpoint was saved before its verdict came, and yet a worse one does not take its place."""
    Fakes(monkeypatch, scripted([0.3, 0.9, 0.1, 0.2, 0.4]))
    validation = AsyncValidation(when_busy="queue")
    run = repeatable(tmp_path, AtOnce(validation), validation, max_epochs=3)
    best = validation.best_model_path
    second = AsyncValidation(when_busy="queue")
    repeatable(tmp_path, AtOnce(second), second, max_epochs=5, ckpt_path=best)
    assert second.best_model_score is not None
    assert second.best_model_score.item() == pytest.approx(0.9)
    assert second.best_model_path == best
    assert same(weights_in(best), run.recorder.weights[12])


def test_the_best_of_an_earlier_checkpoint_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.9, 0.3, 0.1, 0.2]))
    latest = ModelCheckpoint(tmp_path / "latest", save_last=True)
    validation = AsyncValidation(when_busy="queue")
    repeatable(tmp_path, AtOnce(validation), validation, latest, max_epochs=3)
    second = AsyncValidation(when_busy="queue")
    repeatable(tmp_path, second, max_epochs=4, ckpt_path=latest.last_model_path)
    assert second.best_model_path == validation.best_model_path
    assert second.best_k_models == {validation.best_model_path: pytest.approx(0.9)}


@pytest.mark.parametrize("is_first", [False, True])
def test_what_had_no_verdict_is_judged(is_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of the two checkpoint callbacks comes first."""
    Fakes(monkeypatch, scripted([0.5] * 3), gated=True)
    latest = ModelCheckpoint(tmp_path / "latest", save_last=True)
    validation = AsyncValidation(when_busy="queue", timeout_s=0.1, dirpath=tmp_path / "checkpoints")
    callbacks: list[L.Callback] = [latest, validation] if is_first else [validation, latest]
    with pytest.warns(UserWarning, match=r"3 snapshots \(step 6, 12, 18\) had no verdict.*judged when .*resumed"):
        first = repeatable(tmp_path, *callbacks, max_epochs=3)
    assert len(list((tmp_path / "checkpoints" / "pending").iterdir())) == 6
    fakes = Fakes(monkeypatch, scripted([0.7, 0.9, 0.2, 0.4]))
    second = AsyncValidation(when_busy="queue", dirpath=tmp_path / "checkpoints")
    logger = CSVLogger(tmp_path, name="logs")
    repeatable(tmp_path, second, max_epochs=4, ckpt_path=latest.last_model_path, logger=logger)
    assert [(job.step, job.epoch) for job in fakes.jobs] == [(6, 0), (12, 1), (18, 2), (24, 3)]
    assert second.best_model_score is not None
    assert second.best_model_score.item() == pytest.approx(0.9)
    assert same(weights_in(second.best_model_path), first.recorder.weights[12])
    rows = [row for row in rows_of(logger) if row.get("val/acc")]
    assert [(int(row["step"]), int(float(row["epoch"]))) for row in rows] == [(5, 0), (11, 1), (17, 2), (23, 3)]
    assert not (tmp_path / "checkpoints" / "pending").exists()


def test_a_verdict_that_came_after_the_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the ledger; the checkpoint that is resumed from still takes it for one that waits."""
    fakes = Fakes(monkeypatch, scripted([0.9, 0.3, 0.2, 0.1]), gated=True)
    assert fakes.gate is not None
    latest = ModelCheckpoint(tmp_path / "latest", save_last=True)
    validation = AsyncValidation(when_busy="queue")

    class Opens(L.Callback):
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            fakes.gate.release(3)  # type: ignore[union-attr]

    repeatable(tmp_path, Opens(), validation, latest, max_epochs=3)
    assert len(ledger(tmp_path)) == 3
    again = Fakes(monkeypatch, scripted([0.0, 0.0, 0.0, 0.1]))
    second = AsyncValidation(when_busy="queue")
    repeatable(tmp_path, second, max_epochs=4, ckpt_path=latest.last_model_path)
    assert [job.step for job in again.jobs] == [24]
    assert second.best_model_path == validation.best_model_path
    assert second.best_k_models == {validation.best_model_path: pytest.approx(0.9)}


def test_a_run_that_is_not_resumed_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of the best checkpoint restores callbacks, too: the next `fit` does not go on from there."""
    Fakes(monkeypatch, scripted([0.5, 0.9, 0.4]))
    validation = AsyncValidation(when_busy="queue", every_n_steps=6, save_top_k=-1)
    run = repeatable(tmp_path, AtOnce(validation), validation, max_epochs=3)

    class Testing(Tiny):
        def test_step(self, batch: Any, batch_idx: int) -> None: ...

    run.trainer.test(Testing(), datamodule=Rows(), ckpt_path="best", verbose=False)
    run.trainer.fit_loop.epoch_progress.reset()
    fakes = Fakes(monkeypatch, scripted([0.1, 0.1, 0.1, 0.1]))
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[validation], max_epochs=1, default_root_dir=tmp_path / "new",
        enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(Tiny(), datamodule=Rows())
    assert [job.step for job in fakes.jobs] == [6]
    assert list(validation.best_k_models.values()) == pytest.approx([0.1])


def test_a_state_names_each_snapshot_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also just after the process has failed, and after Lightning has judged what it had left."""
    from lightning_gnnopt.evaluation import ValidationFailed

    def fail(job: Any) -> float:
        raise ValidationFailed("died", "it died")

    Fakes(monkeypatch, fail)
    validation, states = AsyncValidation(when_busy="queue"), []

    class Looks(ModelCheckpoint):
        """Comes after `AsyncValidation`."""

        def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
            states.append([entry["step"] for entry in validation.state_dict()["waiting"]])

    with pytest.warns(UserWarning, match="it died"):
        repeatable(tmp_path, AtOnce(validation), validation, Looks(tmp_path / "other"), max_epochs=3)
    assert states[STEPS - 1] == []
    assert states[STEPS] == [6]  # at this batch it has failed
    assert states[STEPS + 1 :] == [[]] * (2 * STEPS - 1)
    assert validation.state_dict()["waiting"] == []


def test_states_are_plain_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, scripted([0.5] * 3), gated=True)
    validation = AsyncValidation(when_busy="queue", timeout_s=0.1)
    fit(tmp_path, validation, max_epochs=2)
    torch.save(validation.state_dict(), tmp_path / "state")
    assert torch.load(tmp_path / "state", weights_only=True) == validation.state_dict()
    assert len(validation.state_dict()["waiting"]) == 2


# ---- a training process that is killed -------------------------------------------------------------------------------


class Ends(L.Callback):
    """Says that training is over; verdicts are waited for after that."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.file.write_text("")


def script(folder: str) -> None:
    torch.set_num_threads(1)
    validation = AsyncValidation(when_busy="queue", dirpath=Path(folder, "checkpoints"))
    latest = ModelCheckpoint(Path(folder, "latest"), save_last=True)
    ends = Ends(Path(folder, "ended"))
    repeatable(Path(folder), ends, validation, latest, orders=Path(folder, "orders"), max_epochs=4)


def test_what_a_killed_run_left_is_judged(tmp_path: Path) -> None:
    """Killed while its process hangs in a validation: that one ends, and the resumed run finds the same best."""
    (tmp_path / "orders").write_text("hang")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import script; script({str(tmp_path)!r})"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        hangs = tmp_path / "orders.hangs"
        wait_until(lambda: (hangs.exists() and hangs.read_text() != "") or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1][-3000:]
        child = psutil.Process(int(hangs.read_text()))
        assert child.ppid() == process.pid
        pending = tmp_path / "checkpoints" / "pending"
        wait_until(lambda: (tmp_path / "ended").exists() and len(list(pending.glob("epoch*"))) == 8)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        child.wait(3)
    finally:
        process.kill()
        process.communicate()
    assert not psutil.pid_exists(child.pid)
    (tmp_path / "orders").unlink()
    undisturbed = repeatable(tmp_path, max_epochs=5, limit_val_batches=0)
    validation = AsyncValidation(when_busy="queue", dirpath=tmp_path / "checkpoints")
    last = tmp_path / "latest" / "last.ckpt"
    with leaving_nothing(tmp_path):
        resumed = repeatable(tmp_path, validation, max_epochs=5, ckpt_path=str(last))
    assert resumed.recorder.losses == undisturbed.recorder.losses[4 * STEPS :]
    verdicts = {verdict["step"]: verdict["metrics"] for verdict in ledger(tmp_path)}
    weights = undisturbed.recorder.weights
    assert verdicts == {step: judged_alone(Tiny(dropout=0.0), weights[step]) for step in (6, 12, 18, 24, 30)}
    scores = {step: metrics["val/acc"] for step, metrics in verdicts.items()}
    best = max(scores, key=lambda step: scores[step])
    assert validation.best_model_score is not None
    assert validation.best_model_score.item() == scores[best]
    assert same(weights_in(validation.best_model_path), weights[best])
    assert not pending.exists()


def test_another_run_in_the_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its verdicts, its checkpoints and its snapshots are its own."""
    fakes = Fakes(monkeypatch, lambda job: 0.9)
    other = AsyncValidation()
    fit(tmp_path, other, max_epochs=1)
    others = SnapshotFolder(tmp_path / "checkpoints")
    left = others.new(step=6, epoch=0, with_checkpoint=False)
    others.write(left.weights, {"state_dict": {}, "buffers": {}})
    fakes._judge = lambda job: 0.5
    mine = AsyncValidation()
    fit(tmp_path, mine, max_epochs=1)
    best = mine.best_model_path
    assert best != other.best_model_path
    again = AsyncValidation()
    fit(tmp_path, again, max_epochs=2, ckpt_path=best)
    assert again.best_k_models == {best: 0.5}
    assert Path(best).exists()
    assert Path(other.best_model_path).exists()
    assert left.weights.exists()
