"""Pipelines that are closed while workers wait, and workers that stall."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_gnnopt.loading import ordered
from lightning_gnnopt.loading.ordered import OrderedPrefetch

from .graphs import prefetch_threads
from .test_ordered import wait_until
from .values import DEADLINE_S, in_time, make_pipeline, numbers_in, taken, value_plan


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    wait_until(lambda: prefetch_threads() == [])


@pytest.mark.parametrize("max_bytes", [1, 100_000])
def test_closing_ends_workers_that_wait_for_memory(max_bytes: int) -> None:
    pipeline = make_pipeline(50, num_workers=4, prefetch_factor=3, max_bytes_in_flight=max_bytes)
    batches = iter(pipeline)
    next(batches)
    in_time(batches.close)
    assert prefetch_threads() == []


def test_an_error_ends_workers_that_wait_for_memory() -> None:
    def fail(i: int) -> int:
        if i == 0:
            time.sleep(0.02)  # the others wait for memory by then
            raise RuntimeError("the first one")
        return i

    def run() -> None:
        with pytest.raises(RuntimeError, match="the first one"):
            list(taken(make_pipeline(50, sample=fail, num_workers=4, max_bytes_in_flight=1)))

    in_time(run)


# ---- a worker that stalls --------------------------------------------------------------------------------------------


@pytest.fixture
def stall(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setattr(ordered, "_JOIN_S", 0.01)
    go_on = threading.Event()

    def stands_still(*args: Any) -> None:
        go_on.wait(DEADLINE_S)

    yield stands_still
    go_on.set()


@pytest.mark.parametrize("stage", ["sample", "plan", "slice"])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_worker_that_stalls_is_named(stage: str, num_workers: int, stall: Callable[..., Any]) -> None:
    def at(name: str, i: int) -> int:
        if (name, i) == (stage, 2):
            stall()
        return i

    pipeline = make_pipeline(
        20,
        sample=lambda i: at("sample", i),
        plan=lambda i: value_plan(at("plan", i), write=lambda i: at("slice", i)),
        num_workers=num_workers,
        timeout_s=0.3,
    )
    received: list[set[float]] = []

    def run() -> None:
        message = (
            rf"Worker 'gnnopt-prefetch-\d' has made no progress for \d s \(`timeout_s` is 0\.3\): it is at '{stage}' of"
            r" item 2\. HINT: raise `timeout_s` if that may take so long, or set it to None; the note below says where"
        )
        with pytest.raises(TimeoutError, match=message) as caught:
            received.extend(numbers_in(batch) for batch in taken(pipeline))
        (note,) = caught.value.__notes__
        assert re.match(r"'gnnopt-prefetch-\d' stands at:\n", note)
        assert "in stands_still" in note

    in_time(run)
    assert received == [{0.0}, {1.0}]


def test_all_workers_may_stall_at_once(stall: Callable[..., Any]) -> None:
    """As they do when a disk or a network does."""

    def run() -> None:
        with pytest.raises(TimeoutError, match="it is at 'sample' of item 0"):
            list(taken(make_pipeline(20, sample=stall, num_workers=3, timeout_s=0.1)))

    in_time(run)


def test_a_worker_that_waits_for_memory_is_not_accused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batch is due and it has been quiet for too long, again and again, until there is room."""
    judged = []
    fits, report_if_stuck = OrderedPrefetch._fits, OrderedPrefetch._report_if_stuck

    def fits_late(prefetch: OrderedPrefetch[Any], place: int, nbytes: int) -> bool:
        return len(judged) >= 5 and fits(prefetch, place, nbytes)

    def judge(prefetch: OrderedPrefetch[Any]) -> None:
        report_if_stuck(prefetch)
        judged.append(prefetch._due_worker())
        prefetch._changed.notify_all()

    monkeypatch.setattr(OrderedPrefetch, "_fits", fits_late)
    monkeypatch.setattr(OrderedPrefetch, "_report_if_stuck", judge)
    pipeline = make_pipeline(1, num_workers=1, max_bytes_in_flight=1, timeout_s=0.4)
    assert [numbers_in(batch) for batch in taken(pipeline)] == [{0.0}]
    assert len(judged) >= 5
    assert None not in judged


def test_a_workers_own_timeout_is_an_error_like_any_other() -> None:
    def fail(i: int) -> int:
        raise TimeoutError("of a socket")

    with pytest.raises(TimeoutError, match="of a socket") as caught:
        list(taken(make_pipeline(5, sample=fail, num_workers=2)))
    assert caught.value.__notes__ == ["This happened while batch 0 of epoch 9 was prepared."]
