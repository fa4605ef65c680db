from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from lightning_gnnopt.loading.ordered import OrderedPrefetch

from .graphs import prefetch_threads

WORKERS = [0, 1, 2, 5, 8]
DEADLINE_S = 20.0


def consume(prefetch: OrderedPrefetch[int], into: list[int]) -> None:
    for item in prefetch:
        into.append(item)


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up, "the condition never came true"
        time.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("seed", [0, 1])
def test_order_survives_any_delays(num_workers: int, seed: int) -> None:
    delays = random.Random(seed).choices([0.0, 0.0, 0.001, 0.004], k=60)

    def prepare(i: int) -> int:
        time.sleep(delays[i - 100])
        return i * i

    items = range(100, 160)
    assert list(OrderedPrefetch(prepare, items, num_workers=num_workers, max_ahead=6)) == [i * i for i in items]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_the_first_item_may_come_last(num_workers: int) -> None:
    others_done = threading.Semaphore(0)

    def prepare(i: int) -> int:
        if i == 0:
            for _ in range(3 if num_workers > 1 else 0):
                assert others_done.acquire(timeout=DEADLINE_S)
        else:
            others_done.release()
        return i

    assert list(OrderedPrefetch(prepare, range(9), num_workers=num_workers, max_ahead=4)) == list(range(9))


@pytest.mark.parametrize(("num_workers", "max_ahead"), [(1, 1), (1, 4), (2, 1), (3, 7), (8, 3)])
def test_never_more_than_max_ahead_items_are_prepared_ahead(num_workers: int, max_ahead: int) -> None:
    started: list[int] = []

    def prepare(i: int) -> int:
        started.append(i)
        return i

    iterator = iter(OrderedPrefetch(prepare, range(20), num_workers=num_workers, max_ahead=max_ahead))
    assert started == []  # nothing runs before the first item is asked for
    for received, item in enumerate(iterator, 1):
        assert item == received - 1
        allowed = min(received + max_ahead, 20)
        wait_until(lambda allowed=allowed: len(started) == allowed)
        time.sleep(0.003)  # time enough to go too far
        assert len(started) == allowed


def test_no_workers_means_the_consumers_own_thread_and_nothing_ahead() -> None:
    seen: list[tuple[int, int]] = []
    iterator = iter(
        OrderedPrefetch(lambda i: seen.append((i, threading.get_ident())), range(5), num_workers=0, max_ahead=3)
    )
    next(iterator)
    assert seen == [(0, threading.get_ident())]
    next(iterator)
    assert seen == [(0, threading.get_ident()), (1, threading.get_ident())]
    iterator.close()


def test_workers_run_in_threads_of_their_own_and_no_more_than_there_are_items() -> None:
    together = threading.Barrier(3)

    def prepare(i: int) -> tuple[str, int]:
        together.wait(DEADLINE_S)
        count = len(prefetch_threads())
        together.wait(DEADLINE_S)  # none ends before all have counted
        return threading.current_thread().name, count

    seen = list(OrderedPrefetch(prepare, range(3), num_workers=50, max_ahead=50))
    assert sorted(name for name, _ in seen) == [f"gnnopt-prefetch-{i}" for i in range(3)]
    assert [count for _, count in seen] == [3, 3, 3]


@pytest.mark.parametrize("num_workers", WORKERS)
def test_no_items_no_threads(num_workers: int) -> None:
    assert list(OrderedPrefetch(lambda i: i, range(0), num_workers=num_workers, max_ahead=1)) == []


class Stop(BaseException):
    """Like KeyboardInterrupt: no `Exception`."""


@pytest.mark.parametrize("error", [RuntimeError, KeyError, Stop, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_error_is_raised_at_its_place(num_workers: int, error: type[BaseException]) -> None:
    received: list[int] = []
    started: list[int] = []

    def prepare(i: int) -> int:
        started.append(i)
        if i == 7:
            raise error("seven")
        time.sleep(0.002)  # what stands before it is still in preparation
        return i

    with pytest.raises(error, match="seven"):
        consume(OrderedPrefetch(prepare, range(1_000), num_workers=num_workers, max_ahead=10), received)
    assert received == list(range(7))
    assert max(started) < 7 + (10 if num_workers else 1)  # what others had in hand, and then nothing more


def test_nothing_is_begun_after_an_error() -> None:
    """The first item is still in preparation when the second fails: its worker stops, though it could go on."""
    failed, started = threading.Event(), []

    def prepare(i: int) -> int:
        started.append(i)
        if i == 1:
            failed.set()
            raise RuntimeError("one")
        assert failed.wait(DEADLINE_S)
        time.sleep(0.05)  # time enough to begin others
        return i

    with pytest.raises(RuntimeError, match="one"):
        consume(OrderedPrefetch(prepare, range(100), num_workers=2, max_ahead=10), received := [])
    assert (received, sorted(started)) == ([0], [0, 1])


def test_the_first_of_two_errors_wins_though_the_second_came_first() -> None:
    second_failed = threading.Event()

    def prepare(i: int) -> int:
        if i == 2:
            assert second_failed.wait(DEADLINE_S)
            raise ValueError("first in order")
        if i == 3:
            second_failed.set()
            raise ValueError("first in time")
        return i

    received: list[int] = []
    with pytest.raises(ValueError, match="first in order"):
        consume(OrderedPrefetch(prepare, range(9), num_workers=4, max_ahead=9), received)
    assert received == [0, 1]


@pytest.mark.parametrize("num_workers", [1, 2, 5])
@pytest.mark.parametrize("max_ahead", [1, 6])
def test_closing_early_ends_the_threads(num_workers: int, max_ahead: int) -> None:
    iterator = iter(OrderedPrefetch(lambda i: i, range(1_000), num_workers=num_workers, max_ahead=max_ahead))
    assert [next(iterator) for _ in range(3)] == [0, 1, 2]
    assert len(prefetch_threads()) == num_workers
    iterator.close()
    assert prefetch_threads() == []
    assert list(iterator) == []


def test_closing_waits_for_what_is_in_preparation() -> None:
    entered, finished = threading.Event(), []

    def prepare(i: int) -> int:
        if i == 1:
            entered.set()
            time.sleep(0.05)
            finished.append(i)
        return i

    iterator = iter(OrderedPrefetch(prepare, range(9), num_workers=1, max_ahead=3))
    next(iterator)
    assert entered.wait(DEADLINE_S)
    iterator.close()
    assert finished == [1]


def test_dropping_the_iterator_ends_the_threads() -> None:
    iterator = iter(OrderedPrefetch(lambda i: i, range(1_000), num_workers=3, max_ahead=3))
    next(iterator)
    del iterator
    assert prefetch_threads() == []


def test_an_error_of_the_consumer_ends_the_threads() -> None:
    with pytest.raises(AttributeError, match="no attribute 'append'"):
        consume(OrderedPrefetch(lambda i: i, range(1_000), num_workers=3, max_ahead=3), into=None)


def test_an_iterator_may_be_closed_from_one_of_its_own_threads() -> None:
    """As the garbage collector does, which runs in whichever thread happens to allocate."""
    received, closed = threading.Event(), threading.Event()

    def prepare(i: int) -> int:
        if i == 1:
            assert received.wait(DEADLINE_S)
            iterator.close()
            closed.set()
        return i

    iterator = iter(OrderedPrefetch(prepare, range(1_000), num_workers=2, max_ahead=3))
    assert next(iterator) == 0
    received.set()
    assert closed.wait(DEADLINE_S)
    wait_until(lambda: not prefetch_threads())
    assert list(iterator) == []


def test_two_iterations_at_once_do_not_mix() -> None:
    def run(offset: int) -> list[int]:
        def prepare(i: int) -> int:
            time.sleep(random.random() * 0.001)
            return i + offset

        return list(OrderedPrefetch(prepare, range(30), num_workers=3, max_ahead=4))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(run, [0, 1_000])
    assert first == list(range(30))
    assert second == list(range(1_000, 1_030))
