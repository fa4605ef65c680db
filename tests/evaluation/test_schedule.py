"""Each due point is due once."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_gnnopt.evaluation.schedule import Schedule


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("every", [1, 3, 7])
def test_steps_are_due_once_with_accumulation(every: int, accumulate: int) -> None:
    schedule = Schedule(every_n_steps=every)
    steps = [(batch + 1) // accumulate for batch in range(100)]
    due = [step for step in steps if schedule.due_at_step(step)]
    assert due == [step for step in range(1, 100 // accumulate + 1) if step % every == 0]


def test_a_step_that_jumps_over_a_multiple_is_due() -> None:
    schedule = Schedule(every_n_steps=5)
    assert [step for step in range(2, 42, 2) if schedule.due_at_step(step)] == [6, 10, 16, 20, 26, 30, 36, 40]


def test_a_resumed_schedule_does_not_repeat_a_step() -> None:
    first = Schedule(every_n_steps=10)
    assert first.due_at_step(20)
    second = Schedule(every_n_steps=10)
    second.load_state_dict(first.state_dict())
    assert [step for step in (20, 20, 21, 29, 30) if second.due_at_step(step)] == [30]


def test_a_schedule_that_begins_late_is_not_due_at_once() -> None:
    assert [step for step in range(1005, 1022) if Schedule(every_n_steps=10).due_at_step(step) and step == 1005] == []
    schedule = Schedule(every_n_steps=10)
    assert [step for step in range(1005, 1022) if schedule.due_at_step(step)] == [1010, 1020]


def test_a_second_run_counts_afresh() -> None:
    schedule = Schedule(every_n_steps=4)
    assert [[step for step in range(1, 10) if schedule.due_at_step(step)] for _ in range(2)] == [[4, 8], [4, 8]]


def test_epochs() -> None:
    schedule = Schedule(every_n_epochs=3)
    assert [epoch for epoch in range(10) if schedule.due_at_epoch(epoch)] == [2, 5, 8]
    assert not any(schedule.due_at_step(step) for step in range(10))
    assert not any(Schedule(every_n_steps=1).due_at_epoch(epoch) for epoch in range(10))


@pytest.mark.parametrize("arguments", [{}, {"every_n_epochs": 1, "every_n_steps": 1}])
def test_exactly_one_is_needed(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"Exactly one of `every_n_epochs` and `every_n_steps` .* HINT: "):
        Schedule(**arguments)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
@pytest.mark.parametrize("name", ["every_n_epochs", "every_n_steps"])
def test_numbers_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` must be a whole number of at least 1, but got {value}\. HINT: "):
        Schedule(**{name: value})
