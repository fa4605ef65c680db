"""Where late metrics are found, when, and who looks at them. No process: a gate says when a verdict comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger

from lightning_gnnopt.evaluation import AsyncValidation

from .runs import STEPS, AtOnce, Fakes, LetIn, Rows, Run, Tiny, fit


class Stopper(EarlyStopping):
    """Keeps what it looked at."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.looked: list[tuple[int, float]] = []

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        if self.monitor in trainer.callback_metrics:
            self.looked.append((trainer.global_step, float(trainer.callback_metrics[self.monitor])))
        super()._run_early_stopping_check(trainer)


class WithPlateau(Tiny):
    """Lowers its rate when the loss does not fall any more."""

    def __init__(self, monitor: str = "val/loss", **options: Any) -> None:
        super().__init__(dropout=0.0)
        self.monitor, self.options = monitor, options

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        config = {"scheduler": scheduler, "monitor": self.monitor, **self.options}
        return {"optimizer": optimizer, "lr_scheduler": config}


def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    judge: Any,
    *callbacks: L.Callback,
    let_in: list[int] | None = None,
    fit_options: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Run, AsyncValidation]:
    """Train with verdicts that come before the given batches, or at once."""
    options = {"when_busy": "queue", "monitor": None, "save_top_k": 0} | options
    validation = AsyncValidation(**options)
    fakes = Fakes(monkeypatch, judge, gated=let_in is not None)
    pace: L.Callback = AtOnce(validation) if let_in is None else LetIn(fakes, validation, let_in)
    result = fit(tmp_path, pace, *callbacks, validation, num_sanity_val_steps=0, **(fit_options or {}))
    return result, validation


def by_step(job: Any) -> dict[str, float]:
    return {"val__acc": 1.0 - 1.0 / job.step, "val__loss": 1.0 / job.step}


# ---- callback_metrics ------------------------------------------------------------------------------------------------


def test_a_verdict_is_there_from_its_batch_to_the_end_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 epochs of 6 batches: the first one's verdict comes with batch 10, the second one's with batch 13."""
    result, validation = run(
        tmp_path, monkeypatch, by_step, let_in=[9, 12], timeout_s=0.2, fit_options={"max_epochs": 4}
    )
    held = [(s, w, m["val/acc"]) for s, w, m in result.recorder.held if "val/acc" in m]
    first = pytest.approx(1 - 1 / 6)
    second = pytest.approx(1 - 1 / 12)
    # This callback comes before `AsyncValidation`, so at a batch's end it sees what came with the one before.
    assert held == [
        (11, "batch", first),
        (12, "batch", first),
        (12, "epoch", first),
        *((step, "batch", second) for step in range(14, 19)),
        (18, "epoch", second),
    ]
    assert validation.lags == [10 - 6, 13 - 12]
    assert result.trainer.callback_metrics["val/acc"] == second  # for a sweeper


def test_a_verdict_of_the_last_batch_is_there_at_the_epochs_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, _ = run(tmp_path, monkeypatch, by_step, let_in=[11], timeout_s=0.2)
    assert result.recorder.when_held("val/acc") == [(12, "epoch")]


def test_each_verdict_is_handed_out_with_the_batch_it_comes_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper("val/acc", mode="max", patience=9)
    result, validation = run(
        tmp_path, monkeypatch, by_step, stopper, every_n_steps=2, monitor="val/acc", fit_options={"max_epochs": 1}
    )
    # AtOnce waits for each verdict, so each comes at the end of the batch after its snapshot.
    assert validation.lags == [1, 1, 0]
    # The last one comes when training has ended: there is nothing to stop.
    assert [step for step, _ in stopper.looked] == [3, 5]
    assert [value for _, value in stopper.looked] == pytest.approx([1 - 1 / 2, 1 - 1 / 4])
    assert float(result.trainer.callback_metrics["val/acc"]) == pytest.approx(1 - 1 / 6)


def test_metrics_of_training_are_not_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that training logs, too, has training's value when training logs it."""
    judge = lambda job: {"train__loss": 123.0, "val__acc": 0.5}  # noqa: E731
    result, _ = run(tmp_path, monkeypatch, judge, let_in=[8], timeout_s=0.2)
    values = [(step, metrics["train/loss"]) for step, where, metrics in result.recorder.held if where == "batch"]
    assert len(values) == 3 * STEPS
    assert 123.0 not in [value for step, value in values if step > STEPS + 4]


# ---- EarlyStopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("monitor", ["val/acc", "val/loss"])
def test_early_stopping_counts_each_verdict_once(monitor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One verdict in 6 epochs: with a patience of 2 that is no reason to stop. Known from the start, or from it."""
    stopper = Stopper(monitor, mode="max", patience=2)
    assert stopper.strict
    result, _ = run(
        tmp_path, monkeypatch, by_step, stopper, let_in=[9], timeout_s=0.2, monitor="val/acc",
        fit_options={"max_epochs": 6},
    )  # fmt: skip
    assert [step for step, _ in stopper.looked] == [10]
    assert stopper.wait_count == 0
    assert result.trainer.current_epoch == 6
    assert stopper.strict
    assert stopper._check_on_train_epoch_end  # as Lightning had it


@pytest.mark.parametrize("monitor", ["val/acc", "val/loss"])
@pytest.mark.parametrize("strict", [True, False])
def test_early_stopping_stops_as_with_blocking_validation(
    monitor: str, strict: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same verdict; each comes with the first batch after its epoch, so training has made that batch too."""
    scores = [0.5, 0.6, 0.4, 0.55, 0.9, 0.9, 0.9, 0.9]  # patience 2 runs out at the fourth
    judge = lambda job: {"val__acc": scores[job.epoch], "val__loss": scores[job.epoch]}  # noqa: E731
    stopper = Stopper(monitor, mode="max", patience=2, strict=strict)
    result, validation = run(tmp_path, monkeypatch, judge, stopper, monitor="val/acc", fit_options={"max_epochs": 8})
    assert [value for _, value in stopper.looked[:4]] == pytest.approx(scores[:4])
    assert stopper.stopped_epoch == 4
    assert result.trainer.global_step == 4 * STEPS + 1  # in the middle of the fifth epoch
    assert result.trainer.should_stop
    assert (stopper.strict, stopper._check_on_train_epoch_end) == (strict, True)
    assert validation.lags == [1] * 4 + [0]  # where training stops, Lightning validates once more, too


def test_it_stops_in_the_middle_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper("val/acc", mode="max", patience=1)
    judge = lambda job: {2: 0.9, 4: 0.8}.get(job.step, 0.95)  # noqa: E731
    result, _ = run(
        tmp_path, monkeypatch, judge, stopper, every_n_steps=2, monitor="val/acc", fit_options={"max_epochs": 3}
    )
    assert result.trainer.global_step == 5
    assert stopper.stopped_epoch == 0
    assert [step for step, _ in stopper.looked][:2] == [3, 5]


def test_a_stopper_of_training_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks at the end of each epoch, as ever."""
    stopper = Stopper("train/loss", patience=99)
    run(tmp_path, monkeypatch, by_step, stopper, monitor="val/acc")
    assert [step for step, _ in stopper.looked] == [6, 12, 18]


def test_a_stopper_of_training_that_looks_at_validations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own default where Lightning would validate every second epoch: it looks when there is a verdict."""
    stopper = Stopper("train/loss", patience=99)
    run(
        tmp_path, monkeypatch, by_step, stopper, monitor="val/acc", every_n_epochs=2,
        fit_options={"check_val_every_n_epoch": 2, "max_epochs": 5},
    )  # fmt: skip
    assert [step for step, _ in stopper.looked] == [13, 25]


def test_a_name_that_nobody_logs_is_told_as_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = EarlyStopping("val/accuracy")
    with pytest.raises(
        RuntimeError, match=r"Early stopping conditioned on metric `val/accuracy` which is not available"
    ):
        run(tmp_path, monkeypatch, by_step, stopper, monitor="val/acc", fit_options={"max_epochs": 9})
    assert stopper.strict


def test_before_there_is_a_verdict_a_stopper_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopper = Stopper("val/loss", patience=1)
    result, _ = run(tmp_path, monkeypatch, by_step, stopper, let_in=[], timeout_s=0.1, fit_options={"max_epochs": 4})
    assert result.trainer.global_step == 4 * STEPS
    assert stopper.looked == []
    assert stopper.strict


# ---- ReduceLROnPlateau -----------------------------------------------------------------------------------------------


def test_a_plateau_lowers_the_rate_an_epoch_after_blocking_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [1.0, 0.9, 0.95, 0.8, 0.8, 0.8, 0.7]
    judge = lambda job: {"val__loss": losses[job.epoch]}  # noqa: E731
    result, _ = run(tmp_path, monkeypatch, judge, fit_options={"module": WithPlateau(), "max_epochs": 7})

    class Scripted(WithPlateau):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", losses[self.current_epoch], batch_size=1)

    blocking = fit(tmp_path, module=Scripted(), max_epochs=7, num_sanity_val_steps=0)
    assert blocking.recorder.lrs == [1.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.125]
    assert result.recorder.lrs == [1.0, *blocking.recorder.lrs[:-1]]
    [config] = result.trainer.lr_scheduler_configs
    assert config.strict


def test_a_plateau_reads_a_verdict_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a patience of 0, to read it again would lower the rate."""
    result, _ = run(
        tmp_path, monkeypatch, by_step, let_in=[9], timeout_s=0.1,
        fit_options={"module": WithPlateau(), "max_epochs": 5},
    )  # fmt: skip
    assert result.recorder.lrs == [1.0] * 5
    [config] = result.trainer.lr_scheduler_configs
    assert config.strict
    assert config.scheduler.num_bad_epochs == 0
    assert config.scheduler.best == pytest.approx(1 / 6)


def test_a_plateau_whose_name_nobody_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException, match="val/lost"):
        run(tmp_path, monkeypatch, by_step, fit_options={"module": WithPlateau("val/lost"), "max_epochs": 9})


def test_a_plateau_that_is_not_strict_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(
        tmp_path, monkeypatch, by_step, fit_options={"module": WithPlateau("val/lost", strict=False), "max_epochs": 3}
    )
    [config] = result.trainer.lr_scheduler_configs
    assert not config.strict


# ---- monitor ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_failure", ["block", "raise"])
def test_what_is_monitored_must_be_logged(on_failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"`monitor='val/f1'` is not among the metrics.*: val/acc, val/loss\. HINT: "):
        run(tmp_path, monkeypatch, by_step, monitor="val/f1", save_top_k=1, on_failure=on_failure)


# ---- loggers and the progress bar ------------------------------------------------------------------------------------


class Bar(L.Callback):
    """What a progress bar would show."""

    def __init__(self) -> None:
        self.shown: dict[int, dict[str, float]] = {}

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.shown[trainer.global_step] = {name: float(value) for name, value in trainer.progress_bar_metrics.items()}


def rows_of(logger: CSVLogger) -> list[dict[str, str]]:
    import csv

    logger.save()
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_loggers_have_a_verdict_at_its_snapshots_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step counted as Lightning counts its own metrics: the row of a batch and that of its snapshot are one."""
    logger, second, bar = CSVLogger(tmp_path, name="a"), CSVLogger(tmp_path, name="b"), Bar()
    run(tmp_path, monkeypatch, by_step, bar, let_in=[9, 12], timeout_s=0.2, fit_options={"logger": [logger, second]})
    for each in (logger, second):
        rows = [row for row in rows_of(each) if row["val/acc"]]
        assert [(int(row["step"]), int(float(row["epoch"]))) for row in rows] == [(5, 0), (11, 1)]
        assert [float(row["val/acc"]) for row in rows] == pytest.approx([1 - 1 / 6, 1 - 1 / 12])
        assert [float(row["async_val/lag_steps"]) for row in rows] == [4, 1]
        assert [float(row["async_val/seconds"]) for row in rows] == [2.5, 2.5]
    assert "val/acc" not in bar.shown[10]
    assert bar.shown[11]["val/acc"] == pytest.approx(1 - 1 / 6)
    assert bar.shown[11]["async_val/lag_steps"] == 4
    assert bar.shown[15]["async_val/lag_steps"] == 1
    assert bar.shown[15]["val/loss"] == pytest.approx(1 / 12)


def test_steps_are_lightnings_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a blocking run has its validation metrics."""
    for options in ({}, {"accumulate_grad_batches": 2}):
        ours, blocking = CSVLogger(tmp_path, name="ours"), CSVLogger(tmp_path, name="blocking")
        run(tmp_path, monkeypatch, by_step, fit_options={"logger": ours, **options})
        fit(tmp_path, logger=blocking, num_sanity_val_steps=0, **options)
        steps = [[int(row["step"]) for row in rows_of(logger) if row.get("val/acc")] for logger in (ours, blocking)]
        assert steps[0] == steps[1]
        assert len(steps[0]) == 3


def test_after_training_the_last_verdict_is_left_for_a_sweeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it arrived in an earlier epoch than the last."""
    result, _ = run(tmp_path, monkeypatch, by_step, every_n_epochs=3, fit_options={"max_epochs": 5, "data": Rows()})
    assert result.recorder.when_held("val/acc")[-1] == (24, "epoch")
    assert float(result.trainer.callback_metrics["val/acc"]) == pytest.approx(1 - 1 / 18)
    assert "val/acc" not in result.recorder.held[-1][2]
