"""What goes on beside training, with a validation process that is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gnnopt.evaluation import supervisor as supervisor_module
from lightning_gnnopt.evaluation.messages import Job, ValidationFailed
from lightning_gnnopt.evaluation.snapshots import Snapshot

from .runs import our_threads, wait_until
from .supervised import Make, Setting


def test_verdicts_come_in_order_and_the_best_is_kept(setting: Make) -> None:
    it = setting({10: 0.5, 20: 0.75, 30: 0.25})
    assert [it.submit(step) for step in (10, 20, 30)] == [None] * 3
    outcomes = it.outcomes(3)
    assert [(o.verdict.step, o.verdict.epoch, o.verdict.metrics["val/acc"].item()) for o in outcomes if o.verdict] == [
        (10, 1, 0.5),
        (20, 2, 0.75),
        (30, 3, 0.25),
    ]
    assert [(o.notice, o.error) for o in outcomes] == [("", None)] * 3
    assert it.supervisor.waiting == []
    assert it.ranking.best_score == 0.75
    assert torch.load(it.ranking.best_path)["state_dict"]["w"].item() == 20
    assert it.files() == ["epoch=2-step=20.ckpt", "validations.jsonl"]
    assert [(e["step"], e["score"], e["lag"], Path(e["path"]).name) for e in it.folder.read_ledger()] == [
        (10, 0.5, 90, "epoch=1-step=10.ckpt"),
        (20, 0.75, 80, "epoch=2-step=20.ckpt"),
        (30, 0.25, 70, ""),
    ]
    assert it.made[0].num_started == 1


def test_the_one_that_trains_waits_for_nothing(setting: Make) -> None:
    gate = threading.Semaphore(0)
    it = setting({10: 0.5, 20: 0.6}, gate=gate)
    it.submit(10)
    it.submit(20)
    assert it.supervisor.collect() == []
    assert not it.supervisor.has_outcomes
    assert [snapshot.step for snapshot in it.supervisor.waiting] == [10, 20]
    gate.release()
    wait_until(lambda: it.supervisor.has_outcomes)
    assert [outcome.snapshot.step for outcome in it.supervisor.collect() if outcome.snapshot] == [10]
    wait_until(lambda: [snapshot.step for snapshot in it.supervisor.waiting] == [20])
    gate.release()
    it.outcomes(1)


def test_the_latest_takes_the_place_of_the_one_that_waits(setting: Make) -> None:
    gate = threading.Semaphore(0)
    it = setting({10: 0.5, 40: 0.6}, gate=gate, when_busy="coalesce")
    it.submit(10)
    wait_until(lambda: it.made[0].jobs != [])
    assert it.submit(20) is None
    dropped = [it.submit(step) for step in (30, 40)]
    assert [snapshot.step for snapshot in dropped if snapshot] == [20, 30]
    gate.release(2)
    assert [outcome.snapshot.step for outcome in it.outcomes(2) if outcome.snapshot] == [10, 40]
    wait_until(lambda: it.files() == ["epoch=4-step=40.ckpt", "validations.jsonl"])


def test_with_room_for_one_a_new_snapshot_is_refused(setting: Make) -> None:
    gate = threading.Semaphore(0)
    it = setting({10: 0.5}, gate=gate, when_busy="coalesce", max_pending=1)
    it.submit(10)
    wait_until(lambda: it.made[0].jobs != [])
    refused = it.submit(20)
    assert refused is not None
    assert refused.step == 20
    gate.release()
    assert len(it.outcomes(1)) == 1
    assert it.files() == ["epoch=1-step=10.ckpt", "validations.jsonl"]


def test_who_waits_goes_on_when_there_is_room(setting: Make) -> None:
    gate = threading.Semaphore(0)
    it = setting({10: 0.5, 20: 0.6}, gate=gate, when_busy="wait", max_pending=1)
    it.submit(10)
    thread = threading.Thread(target=it.submit, args=(20,))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()
    gate.release(2)
    it.outcomes(2)
    thread.join(5.0)
    assert not thread.is_alive()


FAILED = [ValidationFailed(kind, f"it {kind}") for kind in ("died", "raised", "hung", "start")]


@pytest.mark.parametrize("error", FAILED, ids=lambda error: error.kind)
def test_what_fails_once_is_judged_by_a_second_process(error: ValidationFailed, setting: Make) -> None:
    it = setting({10: [error, 0.5], 20: 0.75})
    it.submit(10)
    it.submit(20)
    first, second = it.outcomes(2)
    assert [o.verdict.step for o in (first, second) if o.verdict] == [10, 20]
    assert "started again" in first.notice
    assert "step 10" in first.notice
    assert str(error) in first.notice
    assert (second.notice, second.error) == ("", None)
    assert [[job.step for job in child.jobs] for child in it.made] == [[10], [10, 20]]
    assert it.made[0].is_stopped.is_set()
    assert not it.supervisor.has_failed


@pytest.mark.parametrize("error", FAILED, ids=lambda error: error.kind)
def test_what_fails_twice_is_told_and_stays_where_it_is(error: ValidationFailed, setting: Make) -> None:
    it = setting({10: 0.5, 20: error})
    for step in (10, 20, 30):
        it.submit(step)
    good, bad = it.outcomes(2)
    assert (good.verdict is not None, good.error) == (True, None)
    assert (bad.verdict, bad.error) == (None, error)
    assert it.supervisor.has_failed
    waiting = it.supervisor.waiting
    assert [snapshot.step for snapshot in waiting] == [20, 30]
    it.supervisor.stop()
    for snapshot in waiting:
        assert torch.load(snapshot.weights)["w"].item() == snapshot.step
    assert it.submit(40) is not None
    assert len(it.made) == 2
    assert not it.supervisor.drain(1.0, while_waiting=lambda *told: None)


def test_a_failure_of_each_snapshot_is_one_failure_of_each(setting: Make) -> None:
    """Each snapshot has two tries."""
    error = ValidationFailed("died", "it died")
    it = setting({10: [error, 0.5], 20: [error, 0.75]})
    it.submit(10)
    it.submit(20)
    assert [outcome.error for outcome in it.outcomes(2)] == [None, None]
    assert len(it.made) == 3


def test_a_metric_that_is_not_there_is_the_users_error(setting: Make) -> None:
    it = setting({10: {"val__loss": 1.0, "a": 2.0}})
    it.submit(10)
    [outcome] = it.outcomes(1)
    assert isinstance(outcome.error, ValueError)
    assert "`monitor='val/acc'`" in str(outcome.error)
    assert "a, val/loss" in str(outcome.error)
    assert it.supervisor.has_failed
    assert len(it.made) == 1


def test_a_bug_does_not_leave_training_waiting(setting: Make) -> None:
    it = setting({10: ZeroDivisionError("oh")}, when_busy="wait", max_pending=1)
    it.submit(10)
    it.submit(20)  # would wait for ever
    [outcome] = it.outcomes(1)
    assert isinstance(outcome.error, ValidationFailed)
    assert "ZeroDivisionError: oh" in str(outcome.error)


def test_files_that_are_there_are_judged_too(setting: Make) -> None:
    it = setting({10: 0.5})
    snapshot = it.folder.new(step=10, epoch=1, with_checkpoint=True)
    assert snapshot.checkpoint is not None
    it.folder.write(snapshot.weights, {"w": torch.tensor(10.0)})
    it.folder.write(snapshot.checkpoint, {"state_dict": {"w": torch.tensor(10.0)}})
    assert it.supervisor.submit(snapshot, None) is None
    it.outcomes(1)
    assert torch.load(it.ranking.best_path)["state_dict"]["w"].item() == 10


def test_the_end_waits_and_says_so(setting: Make) -> None:
    gate = threading.Semaphore(0)
    it = setting({10: 0.5}, gate=gate)
    it.submit(10)
    told: list[tuple[list[int], bool]] = []

    def tell(waiting: Any, passed_s: float) -> None:
        told.append(([snapshot.step for snapshot in waiting], passed_s > 0))
        if len(told) == 2:
            gate.release()

    assert it.supervisor.drain(None, while_waiting=tell)
    assert told[:2] == [([10], True)] * 2
    assert len(it.outcomes(1)) == 1


def test_the_end_does_not_wait_for_ever(setting: Make) -> None:
    it = setting({10: 0.5}, gate=threading.Semaphore(0))
    it.submit(10)
    assert not it.supervisor.drain(0.1, while_waiting=lambda *told: None)
    assert not it.supervisor.has_failed
    it.supervisor.stop()
    assert [snapshot.step for snapshot in it.supervisor.waiting] == [10]
    assert it.supervisor.collect() == []


def test_a_stop_writes_what_is_to_be_written(setting: Make) -> None:
    it = setting({10: 0.5}, gate=threading.Semaphore(0), max_pending=9)
    for step in range(10, 60, 10):
        it.submit(step)
    it.supervisor.stop()
    assert len(it.supervisor.waiting) == 5
    assert all(torch.load(s.weights)["w"].item() == s.step for s in it.supervisor.waiting)


def test_what_was_never_started_can_be_stopped(tmp_path: Path) -> None:
    it = Setting(tmp_path, {})
    it.supervisor.stop()
    assert [child.num_started for child in it.made] == [0]
    assert our_threads() == []


class _Slow:
    """Judges as the fake does, after a while."""

    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error

    def __call__(self, job: Job) -> dict[str, float]:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return {"val__acc": 0.5}


def test_a_last_one_that_hangs_is_tried_again(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the drain begins anew with the process that is started again."""
    monkeypatch.setattr(supervisor_module, "_GRACE_S", 0.5)
    it = setting({10: 0.5})
    slow = [_Slow(1.0, ValidationFailed("hung", "It took too long.")), _Slow(1.0)]
    it._judge = lambda job: slow.pop(0)(job)
    it.made[0].judge = it._judge
    it.submit(10)
    assert it.supervisor.drain(1.0, while_waiting=lambda *told: None)  # which took twice as long, all in all
    (outcome,) = it.outcomes(1)
    assert outcome.verdict is not None
    assert "started again" in outcome.notice
    assert slow == []


def test_the_time_that_a_process_takes_to_start_does_not_count(setting: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "_GRACE_S", 0.0)
    gate = threading.Semaphore(0)
    it = setting({10: 0.5}, gate=gate)
    it.made[0].startup_s = None
    it.submit(10)

    def ready(waiting: Sequence[Snapshot], passed_s: float) -> None:
        if passed_s > 1.0 and it.made[0].startup_s is None:
            it.made[0].startup_s = 1.0
            gate.release()

    assert it.supervisor.drain(0.5, while_waiting=ready)
