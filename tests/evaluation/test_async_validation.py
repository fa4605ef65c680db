"""Training with validation beside it: the same training, the same metrics, and the best weights are those judged."""

from __future__ import annotations

import random
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.evaluation.messages import Job

from .runs import (
    STEPS,
    AtOnce,
    Fakes,
    Rows,
    Tiny,
    fit,
    floats,
    judged_alone,
    leaving_nothing,
    ledger,
    same,
    scripted,
    weights_in,
)


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]


class Shown(L.Callback):
    """What stands in the progress bar when training has ended; and the random states."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.states = random_states()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.held = floats(trainer.callback_metrics)
        self.metrics = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}


class Drawing(Tiny):
    """Draws random numbers of all kinds in training, and spoils them in validation."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (1 + np.random.random() + random.random())

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        torch.rand(3), np.random.random(), random.random()


# ---- one run with a real process, looked at from all sides -----------------------------------------------------------


class Whole:
    """A run without validation, and the same one with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        options = {"max_epochs": 4, "num_sanity_val_steps": 0}
        self.without_shown = Shown()
        self.without = fit(folder, self.without_shown, module=Drawing(), limit_val_batches=0, **options)
        self.validation = AsyncValidation(when_busy="queue", save_top_k=-1, dirpath=folder / "checkpoints")
        self.shown, self.logger = Shown(), CSVLogger(folder, name="logs")
        with leaving_nothing(folder):
            self.beside = fit(folder, self.validation, self.shown, module=Drawing(), logger=self.logger, **options)
        self.logger.save()
        self.verdicts = ledger(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("whole"))


def test_training_is_the_same_to_the_bit(whole: Whole) -> None:
    with_it, without = whole.beside, whole.without
    assert len(without.recorder.losses) == 4 * STEPS
    assert with_it.recorder.losses == without.recorder.losses
    assert same(with_it.recorder.weights[4 * STEPS], without.recorder.weights[4 * STEPS])
    assert whole.shown.states == whole.without_shown.states


def test_metrics_are_those_of_a_blocking_validation(whole: Whole) -> None:
    assert [(v["step"], v["epoch"]) for v in whole.verdicts] == [(6, 0), (12, 1), (18, 2), (24, 3)]
    for verdict in whole.verdicts:
        assert verdict["metrics"] == judged_alone(Tiny(), whole.beside.recorder.weights[verdict["step"]])


def test_checkpoints_have_the_weights_that_were_judged(whole: Whole) -> None:
    validation = whole.validation
    assert len(validation.best_k_models) == 4
    for verdict in whole.verdicts:
        path = verdict["path"]
        checkpoint = torch.load(path, weights_only=True)  # Lightning's default, and nothing but plain types
        assert same(checkpoint["state_dict"], whole.beside.recorder.weights[verdict["step"]])
        assert (checkpoint["global_step"], checkpoint["epoch"]) == (verdict["step"], verdict["epoch"])
        assert validation.best_k_models[path] == verdict["score"] == verdict["metrics"]["val/acc"]
        assert Path(path).name == f"epoch={verdict['epoch']}-step={verdict['step']}.ckpt"
    best = max(whole.verdicts, key=lambda verdict: verdict["score"])  # the first of equals
    assert validation.best_model_path == best["path"]
    assert validation.best_model_score is not None
    assert validation.best_model_score.item() == best["score"]
    assert sorted(path.name for path in (whole.folder / "checkpoints").iterdir()) == sorted(
        [*(Path(v["path"]).name for v in whole.verdicts), "validations.jsonl"]
    )


def test_the_best_is_found_by_its_nickname(whole: Whole) -> None:
    run = whole.beside
    found: dict[str, dict[str, Tensor]] = {}

    class Testing(Tiny):
        def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
            found["weights"] = {name: value.clone() for name, value in self.state_dict().items()}

    run.trainer.test(Testing(), datamodule=Rows(), ckpt_path="best", verbose=False)
    assert same(found["weights"], weights_in(whole.validation.best_model_path))
    assert run.trainer.checkpoint_callback is whole.validation


def test_loggers_have_what_was_logged_over_there(whole: Whole) -> None:
    import csv

    with open(Path(whole.logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    judged = [row for row in rows if row["val/acc"]]
    assert [int(row["step"]) for row in judged] == [5, 11, 17, 23]  # as Lightning counts
    for row, verdict in zip(judged, whole.verdicts, strict=True):
        assert float(row["val/acc"]) == pytest.approx(verdict["metrics"]["val/acc"], rel=1e-6)
        assert float(row["val/loss"]) == pytest.approx(verdict["metrics"]["val/loss"], rel=1e-6)
        assert int(float(row["epoch"])) == verdict["epoch"]
        assert float(row["async_val/lag_steps"]) == verdict["lag"]
        assert float(row["async_val/seconds"]) == pytest.approx(verdict["seconds"])
    assert whole.validation.lags == [verdict["lag"] for verdict in whole.verdicts]
    said = {int(row["step"]): float(row["own/norm"]) for row in rows if row["own/norm"]}  # by the module itself
    weights = whole.beside.recorder.weights
    assert said == pytest.approx(
        {1000 + step: float(weights[step]["net.0.weight"].norm()) for step in (6, 12, 18, 24)}, rel=1e-6
    )


def test_the_progress_bar_has_the_last_verdict(whole: Whole) -> None:
    last = whole.verdicts[-1]
    assert whole.shown.metrics["val/loss"] == pytest.approx(last["metrics"]["val/loss"], rel=1e-6)
    assert whole.shown.metrics["async_val/lag_steps"] == last["lag"] == 0
    assert "val/acc" not in whole.shown.metrics  # `prog_bar=False`


def test_lightning_does_not_validate_as_well(whole: Whole) -> None:
    module: Any = whole.beside.module
    assert module.num_validated == 0
    assert whole.beside.recorder.validated == {}


def test_nothing_else_is_left_of_it(whole: Whole) -> None:
    assert {name: whole.shown.held[name] for name in ("val/acc", "val/loss")} == whole.verdicts[-1]["metrics"]
    assert not whole.validation.is_blocking
    assert whole.validation.num_skipped == 0


# ---- when -----------------------------------------------------------------------------------------------------------


def test_accumulated_gradients_and_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 batches an epoch makes 3 steps: one snapshot for each second step, and not one for each batch."""
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    validation = AsyncValidation(every_n_steps=2, when_busy="queue")
    fit(tmp_path, validation, accumulate_grad_batches=2)
    assert [(job.step, job.epoch) for job in fakes.jobs] == [(2, 0), (4, 1), (6, 1), (8, 2)]


def test_training_may_end_in_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Lightning does, which validates there, too."""
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    validation = AsyncValidation(when_busy="queue")
    fit(tmp_path, validation, max_epochs=-1, max_steps=9)
    assert [job.step for job in fakes.jobs] == [6, 9]
    steps = AsyncValidation(every_n_steps=4, when_busy="queue", dirpath=tmp_path / "steps")
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    fit(tmp_path, steps, max_epochs=-1, max_steps=9)
    assert [job.step for job in fakes.jobs] == [4, 8]


def test_every_so_many_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    fit(tmp_path, AsyncValidation(every_n_epochs=2, when_busy="queue"), max_epochs=5)
    assert [(job.step, job.epoch) for job in fakes.jobs] == [(12, 1), (24, 3)]


@pytest.mark.parametrize("when_busy", ["coalesce", "queue", "wait"])
def test_when_it_is_busy(when_busy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts that take 0.3 s, epochs that take next to nothing."""

    def slowly(job: Job) -> float:
        time.sleep(0.3)
        return 0.5

    fakes = Fakes(monkeypatch, slowly)
    validation = AsyncValidation(when_busy=when_busy)
    fit(tmp_path, validation, max_epochs=6, num_sanity_val_steps=0)
    steps = [job.step for job in fakes.jobs]
    if when_busy == "coalesce":
        assert steps[0] == 6
        assert steps[-1] == 36
        assert len(steps) < 6
        assert validation.num_skipped == 6 - len(steps)
    else:
        assert steps == [6, 12, 18, 24, 30, 36]
        assert validation.num_skipped == 0
    if when_busy == "wait":  # no more than two are without a verdict
        assert max(validation.lags) <= 2 * STEPS + 1  # handed out after the next batch
    assert len(validation.lags) == len(steps)
    assert validation.lags[-1] == 0


# ---- what Lightning does besides -------------------------------------------------------------------------------------


def test_the_sanity_check_runs_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, lambda job: 0.5)
    run = fit(tmp_path, AsyncValidation(when_busy="queue"), num_sanity_val_steps=2)
    module: Any = run.module
    assert module.num_validated == 2
    assert run.recorder.validated == {}


@pytest.mark.parametrize("options", [{"check_val_every_n_epoch": 2}, {"val_check_interval": 2}, {"overfit_batches": 2}])
def test_settings_of_lightnings_own_validation_do_not_matter(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    run = fit(tmp_path, AsyncValidation(when_busy="queue"), num_sanity_val_steps=0, **options)
    module: Any = run.module
    assert module.num_validated == 0
    assert [job.epoch for job in fakes.jobs] == [0, 1, 2]


def test_a_fast_run_validates_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    validation = AsyncValidation()
    run = fit(tmp_path, validation, fast_dev_run=2)
    module: Any = run.module
    assert module.num_validated == 2
    assert fakes.made == []
    assert validation.best_model_path == ""
    assert list(tmp_path.rglob("*.ckpt")) == []


def test_without_validation_it_does_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    with pytest.warns(UserWarning, match=r"does nothing with `limit_val_batches=0`\. HINT: "):
        fit(tmp_path, AsyncValidation(), limit_val_batches=0)
    assert fakes.made == []


def test_other_stages_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes = Fakes(monkeypatch, lambda job: 0.5)
    trainer = L.Trainer(accelerator="cpu", logger=False, callbacks=[AsyncValidation()], enable_progress_bar=False)
    trainer.validate(Tiny(), datamodule=Rows(), verbose=False)
    assert set(trainer.callback_metrics) == {"val/acc", "val/loss"}
    assert fakes.made == []


def test_the_figure_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = pyplot.get_fignums()
    Fakes(monkeypatch, lambda job: 0.5)
    fit(tmp_path, AsyncValidation(when_busy="queue", figure=tmp_path / "new" / "timeline.png"))
    assert pyplot.get_fignums() == before  # a sweep would pile them up
    assert (tmp_path / "new" / "timeline.png").read_bytes()[:4] == b"\x89PNG"


# ---- one run after the other -----------------------------------------------------------------------------------------


def test_a_trainer_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One Trainer, one callback, `fit` twice."""
    fakes = Fakes(monkeypatch, scripted([0.5, 0.4, 0.3, 0.2]))
    validation = AsyncValidation(when_busy="queue")
    run = fit(tmp_path, validation, max_epochs=2)
    run.trainer.fit_loop.max_epochs = 4
    again = fit(tmp_path, module=run.module, trainer=run.trainer)
    assert [job.step for job in fakes.jobs] == [6, 12, 18, 24]
    assert len(fakes.made) == 2
    assert all(child.is_stopped.is_set() for child in fakes.made)
    assert again.trainer.global_step == 24
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [6, 12, 18, 24]


def test_runs_one_after_the_other_leave_nothing_behind(tmp_path: Path) -> None:
    """As the jobs of a multirun do: real processes, each with its end."""
    import psutil

    open_files = []
    for number in range(2):
        with leaving_nothing(tmp_path):
            fit(tmp_path / str(number), AsyncValidation(when_busy="queue"), max_epochs=1)
        open_files.append(psutil.Process().num_fds())
    assert open_files[0] == open_files[1]


def test_no_warning_but_lightnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = AsyncValidation(when_busy="queue")
    Fakes(monkeypatch, lambda job: 0.5)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, AtOnce(validation), validation)
    assert [str(warning.message) for warning in caught if "gnnopt" in warning.filename] == []
