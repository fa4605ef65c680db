"""What goes wrong, with real processes: each fault has its outcome, nothing is lost, and nothing is left behind."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
from torch import Tensor

from lightning_gnnopt.evaluation import AsyncValidation, ValidationFailed
from lightning_gnnopt.evaluation.snapshots import SnapshotFolder

from .runs import (
    STEPS,
    AtOnce,
    Fakes,
    Rows,
    Run,
    Tiny,
    fit,
    floats,
    judged_alone,
    leaving_nothing,
    ledger,
    same,
    wait_until,
    weights_in,
)


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    with leaving_nothing(tmp_path):
        yield


def run(
    folder: Path, order: str = "", *, max_epochs: int = 3, **options: Any
) -> tuple[Run, AsyncValidation, list[str]]:
    """Train without random numbers, each verdict awaited before the next batch; and what was warned of."""
    validation = AsyncValidation(when_busy="queue", save_top_k=-1, **options)
    if order:
        (folder / "orders").write_text(order)
    module, data = Tiny(folder / "orders", dropout=0.0), Rows(shuffle=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = fit(
            folder, AtOnce(validation), validation, module=module, data=data, num_sanity_val_steps=0,
            max_epochs=max_epochs,
        )  # fmt: skip
    return result, validation, [str(warning.message) for warning in caught if "gnnopt" in warning.filename]


def check_verdicts(
    folder: Path, result: Run, validation: AsyncValidation, *, steps: tuple[int, ...] = (6, 12, 18)
) -> None:
    """All snapshots have their own verdicts and checkpoints, and training went on undisturbed."""
    undisturbed = fit(
        folder / "undisturbed", module=Tiny(dropout=0.0), data=Rows(shuffle=False), limit_val_batches=0,
        max_epochs=steps[-1] // STEPS,
    ).recorder  # fmt: skip
    assert result.recorder.losses == undisturbed.losses
    verdicts = {verdict["step"]: verdict for verdict in ledger(folder)}
    assert tuple(verdicts) == steps
    assert len(ledger(folder)) == len(steps)
    for step, verdict in verdicts.items():
        alone = judged_alone(Tiny(dropout=0.0), undisturbed.weights[step])
        assert {name: verdict["metrics"][name] for name in alone} == alone
        assert verdict["score"] == alone["val/acc"]
        assert verdict["epoch"] == step // STEPS - 1
        assert same(weights_in(verdict["path"]), undisturbed.weights[step])
    assert validation.best_k_models == {verdict["path"]: verdict["score"] for verdict in verdicts.values()}
    assert not (folder / "checkpoints" / "pending").exists()
    last = verdicts[steps[-1]]["metrics"]
    assert {name: floats(result.trainer.callback_metrics).get(name) for name in ("val/acc", "val/loss")} == {
        name: last[name] for name in ("val/acc", "val/loss")
    }


def test_what_goes_wrong_once_is_tried_again(tmp_path: Path) -> None:
    """Each snapshot's first validation fails, but for the last one's, each in its own way."""
    result, validation, told = run(tmp_path, "die,well,hang,well,raise,", timeout_s=5.0, max_epochs=4)
    died, hung, raised = told
    for notice, step in zip(told, (6, 12, 18), strict=True):
        assert f"The validation process was started again, because it failed at step {step}: " in notice
    assert "was killed by SIGKILL" in died
    assert "ValueError: this batch is bad" in raised
    assert re.search(r"(?s)took more than `timeout_s` \(5 s\).*in _obey", hung)
    assert not validation.is_blocking
    assert result.recorder.validated == {}
    check_verdicts(tmp_path, result, validation, steps=(6, 12, 18, 24))


def test_what_goes_wrong_twice_is_done_by_lightning(tmp_path: Path) -> None:
    result, validation, told = run(tmp_path, "die,memory,")
    [notice] = told
    assert notice.startswith("Validation goes on within training, which waits for it: ")
    assert re.search(r"(?s)MemoryError: no room for this batch.* HINT: `on_failure='raise'`", notice)
    assert validation.is_blocking
    assert list(result.recorder.validated) == [7, 12, 18]  # the first one's weights as soon as it was known
    check_verdicts(tmp_path, result, validation)


def test_or_it_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationFailed, match=r"(?s)step 6 raised.*in _obey\n.*ValueError: this batch is bad"
    ) as caught:
        run(tmp_path, "raise", on_failure="raise")
    assert caught.value.kind == "raised"
    assert len(list((tmp_path / "checkpoints" / "pending").glob("*.weights"))) == 1  # for a resumed run


# ---- after the process, Lightning; without a process, as it makes no difference here ---------------------------------


def dies_from(step: int) -> Any:
    def judge(job: Any) -> dict[str, float]:
        if job.step >= step:
            raise ValidationFailed("died", "it died")
        return {"val__acc": 0.0, "val__loss": 100.0 + job.step}

    return judge


def test_what_goes_wrong_here_too_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, dies_from(6))
    (tmp_path / ".everywhere").write_text("")
    validation = AsyncValidation(when_busy="queue")
    with pytest.raises(ValueError, match="this batch is bad"), pytest.warns(UserWarning, match="within training"):
        fit(tmp_path, AtOnce(validation), validation, module=Tiny(f"{tmp_path}/"), num_sanity_val_steps=0)


def test_the_last_metrics_are_those_of_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what the process said before it died."""
    Fakes(monkeypatch, dies_from(12))
    result, _, _ = run(tmp_path)
    assert list(result.recorder.validated) == [13, 18]
    assert floats(result.trainer.callback_metrics)["val/loss"] == result.recorder.validated[18]["val/loss"] < 100


def test_what_fails_at_the_very_end_is_judged_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Fakes(monkeypatch, dies_from(18))
    result, _, told = run(tmp_path)
    assert len(told) == 1
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [6, 12, 18]
    alone = judged_alone(Tiny(dropout=0.0), result.recorder.weights[18])
    verdict = ledger(tmp_path)[-1]
    assert {name: verdict["metrics"][name] for name in alone} == alone
    assert same(weights_in(verdict["path"]), result.recorder.weights[18])
    assert floats(result.trainer.callback_metrics)["val/loss"] == alone["val/loss"]


def test_no_validation_is_left_out_when_the_process_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails at a batch at which one is due: that of step 4, known to have failed with step 6."""
    Fakes(monkeypatch, dies_from(4), gated=False)
    validation = AsyncValidation(every_n_steps=1, when_busy="queue", save_top_k=-1)
    with pytest.warns(UserWarning, match="it died"):
        fit(tmp_path, AtOnce(validation), validation, max_epochs=1, num_sanity_val_steps=0)
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_worse_one_is_in_the_ledger_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a line for each verdict, whoever judged."""
    Fakes(monkeypatch, dies_from(6))
    validation = AsyncValidation(monitor="val/loss", mode="max", when_busy="queue")
    with pytest.warns(UserWarning, match="it died"):
        result = fit(tmp_path, AtOnce(validation), validation, max_epochs=5, num_sanity_val_steps=0)
    verdicts = ledger(tmp_path)
    assert [verdict["step"] for verdict in verdicts] == [6, 12, 18, 24, 30]
    best = max(verdicts, key=lambda verdict: verdict["score"])
    assert same(weights_in(validation.best_model_path), result.recorder.weights[best["step"]])


def test_a_stopper_and_a_plateau_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of Lightning's validations is looked at once."""
    from .test_delivery import Stopper

    Fakes(monkeypatch, dies_from(12))
    stopper, validation = Stopper("val/loss", patience=99), AsyncValidation(when_busy="queue")
    with pytest.warns(UserWarning, match="it died"):
        fit(tmp_path, AtOnce(validation), stopper, validation, max_epochs=4, num_sanity_val_steps=0)
    assert [step for step, _ in stopper.looked] == [7, 13, 18, 24]


# ---- the disk --------------------------------------------------------------------------------------------------------


def fill(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """No room for the weights of the first snapshots."""
    write, left = SnapshotFolder.write, [count]

    def full(self: SnapshotFolder, path: Path, content: Any) -> None:
        if path.suffix == ".weights" and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(self, path, content)

    monkeypatch.setattr(SnapshotFolder, "write", full)


def test_a_disk_that_is_full_costs_a_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(monkeypatch, 1)
    result, validation, told = run(tmp_path)
    [notice] = told
    assert "The weights of step 6 could not be written" in notice
    assert "No space left on device" in notice
    assert not validation.is_blocking
    check_verdicts(tmp_path, result, validation, steps=(12, 18))


def test_a_disk_that_stays_full_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning validates; where there is no room for weights to judge, there may be for the best."""
    fill(monkeypatch, 99)
    result, validation, told = run(tmp_path)
    assert len(told) == 2
    assert "No space left on device" in told[1]
    assert validation.is_blocking
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [18]
    assert same(weights_in(validation.best_model_path), result.recorder.weights[18])
    assert [path.name for path in tmp_path.rglob("*.weights")] == []


@pytest.mark.parametrize("what", ["save_checkpoint", "record"])
def test_a_disk_that_stays_full_does_not_end_the_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning validates by then: its checkpoints are lost like the others, and training goes on."""
    Fakes(monkeypatch, dies_from(6))

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"save_checkpoint": (L.Trainer, what, full), "record": (SnapshotFolder, what, full)}[what])
    validation = AsyncValidation(when_busy="queue", dirpath=tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match=r"What validation found at step \d+ could not be kept.*No space left") as told:
        result = fit(tmp_path, AtOnce(validation), validation, num_sanity_val_steps=0)
    assert validation.is_blocking
    assert len(result.recorder.losses) == STEPS * 3
    assert len([1 for warning in told if "could not be kept" in str(warning.message)]) >= 2
    kept = sorted(path.name for path in (tmp_path / "checkpoints").rglob("*.ckpt"))
    # the first was written with its snapshot, before the process was given up
    assert kept == ["epoch=0-step=6.ckpt"] if what == "save_checkpoint" else len(kept) == 1
    assert (tmp_path / "checkpoints" / "validations.jsonl").exists() == (what == "save_checkpoint")


# ---- what cannot be sent ---------------------------------------------------------------------------------------------


class Locked(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.locks = {"door": threading.Lock()}


def test_what_cannot_be_pickled_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValidationFailed, match=r"locks.*door.*lock") as caught:
        fit(tmp_path, AsyncValidation(on_failure="raise"), module=Locked())
    assert caught.value.kind == "start"


def test_what_cannot_be_pickled_is_validated_by_lightning(tmp_path: Path) -> None:
    validation = AsyncValidation(save_top_k=-1)
    with pytest.warns(UserWarning, match=r"within training.*locks.*door.*lock.* HINT: "):
        result = fit(tmp_path, validation, module=Locked())
    assert list(result.recorder.validated) == [6, 12, 18]
    assert [verdict["step"] for verdict in ledger(tmp_path)] == [6, 12, 18]
    assert same(weights_in(validation.best_model_path), result.recorder.weights[best_step(tmp_path)])


def best_step(folder: Path) -> int:
    step: int = max(ledger(folder), key=lambda verdict: verdict["score"])["step"]
    return step


# ---- training itself -------------------------------------------------------------------------------------------------


class Failing(Tiny):
    """Trains for an epoch, and then not, once the process judges."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if self.global_step == STEPS + 2:
            wait_until(lambda: Path(self.orders).with_suffix(".hangs").exists())
            raise ZeroDivisionError("training is bad")
        return super().training_step(batch, batch_idx)


def test_an_exception_in_training_ends_both(tmp_path: Path) -> None:
    (tmp_path / "orders").write_text("hang")
    validation = AsyncValidation(when_busy="queue")
    with pytest.raises(ZeroDivisionError, match="training is bad"):
        fit(tmp_path, validation, module=Failing(tmp_path / "orders"))
    pid = int((tmp_path / "orders.hangs").read_text())
    wait_until(lambda: not psutil.pid_exists(pid), 5.0)
    files = sorted(path.suffix for path in (tmp_path / "checkpoints" / "pending").iterdir())
    assert files == [".ckpt", ".weights"]


def script(folder: str) -> None:
    import torch

    # A job in the background, as this suite may be, ignores it, and so would all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    validation = AsyncValidation(when_busy="queue")
    fit(Path(folder), validation, module=Tiny(Path(folder, "orders")), max_epochs=2)


def test_an_interrupt_ends_both(tmp_path: Path) -> None:
    """Ctrl-C goes to all processes of the terminal's foreground group, but not to the one that validates."""
    (tmp_path / "orders").write_text("hang")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"from {__name__} import script; script({str(tmp_path)!r})"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        hangs = tmp_path / "orders.hangs"
        wait_until(lambda: (hangs.exists() and hangs.read_text() != "") or process.poll() is not None)
        assert process.poll() is None, process.communicate()[1][-3000:]
        child = psutil.Process(int(hangs.read_text()))
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        wait_until(lambda: not child.is_running(), 3.0)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 1, errors[-3000:]
    assert "Detected KeyboardInterrupt" in errors
    assert sorted(path.suffix for path in (tmp_path / "checkpoints" / "pending").iterdir()) == [
        ".ckpt", ".ckpt", ".weights", ".weights",
    ]  # fmt: skip


def test_stopping_from_outside_is_not_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trainer.should_stop`, set by any callback."""
    fakes = Fakes(monkeypatch, lambda job: 0.5)

    class Stops(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 8

    validation = AsyncValidation(when_busy="queue")
    fit(tmp_path, Stops(), validation)
    assert [job.step for job in fakes.jobs] == [6, 8]
    assert not validation.is_blocking
