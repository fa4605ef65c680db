from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_gnnopt.memory.tally import Tally


def test_counts_of_many_threads_add_up() -> None:
    tally = Tally()

    def count(_: int) -> None:
        for _ in range(500):
            tally.add(batches=1, edges=3, worker_s=0.5)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(count, range(8)))
    assert (tally.batches, tally.edges, tally.worker_s) == (4000, 12_000, 2000.0)


def test_measured_steps_by_hand() -> None:
    tally = Tally()
    tally.observe(100.0, 100.0, 120, touched=False)  # exact
    tally.observe(80.0, 100.0, 90, touched=True)  # a fifth under, and over the budget
    tally.observe(100.4, 100.0, 125, touched=True)  # exact in whole bytes, a bit over
    tally.observe(150.0, 100.0, 100, touched=False)  # at the budget is not over it
    assert (tally.measured, tally.measured_over, tally.exact, tally.touched) == (4, 1, 2, 2)
    assert tally.error == pytest.approx(0 + 0.2 + 0.004 + 0.5)
    assert tally.worst_under == pytest.approx(0.2)
    assert tally.used == pytest.approx(100 / 90 + 100 / 125)
    tally.observe(70.0, 70.0, 100, touched=False)
    assert tally.largest_bytes == 100


def test_over_predictions_are_not_under() -> None:
    tally = Tally()
    tally.observe(150.0, 100.0, 200, touched=False)
    assert tally.worst_under == 0


def test_a_step_that_took_nothing() -> None:
    tally = Tally()
    tally.observe(0.0, 0.0, 10, touched=False)
    assert (tally.measured, tally.exact, tally.error, tally.worst_under) == (1, 1, 0.0, 0.0)


def test_a_copy_is_a_snapshot_and_differences_are_what_came_since() -> None:
    tally = Tally()
    tally.add(batches=3, resamples=2)
    before = tally.copy()
    tally.add(batches=4, pruned=1)
    since = tally - before
    assert (before.batches, tally.batches) == (3, 7)
    assert (since.batches, since.resamples, since.pruned) == (4, 0, 1)
    since.add(batches=1)  # has a lock of its own
    assert (since.batches, tally.batches) == (5, 7)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda tally: pickle.loads(pickle.dumps(tally))])
def test_it_travels(again: object) -> None:
    tally = Tally()
    tally.add(batches=3, worker_s=0.25)
    other: Tally = again(tally)  # type: ignore[operator]
    assert other.to_dict() == tally.to_dict()
    other.add(batches=1)
    assert (other.batches, tally.batches) == (4, 3)


def test_plain_numbers() -> None:
    tally = Tally()
    tally.observe(90.0, 100.0, 95, touched=True)
    numbers = tally.to_dict()
    assert all(type(value) in (int, float) for value in numbers.values())
    assert numbers == {**Tally().to_dict(), "measured": 1, "measured_over": 1, "touched": 1} | {
        "used": 100 / 95,
        "largest_bytes": 100.0,
        "error": 0.1,
        "worst_under": pytest.approx(0.1),
    }
