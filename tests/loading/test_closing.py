"""Passes that are closed where nobody may wait: by the garbage collector, by Ctrl-C, in a forked process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator

import pytest
import torch

from lightning_gnnopt.loading import ordered
from lightning_gnnopt.loading.ordered import OrderedPrefetch
from lightning_gnnopt.loading.slabs import SlabPool

from .graphs import prefetch_threads
from .values import DEADLINE_S


@pytest.fixture(autouse=True)
def _collected_only_when_told() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    assert prefetch_threads() == []


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for workers that hang in these tests anyway."""
    monkeypatch.setattr(ordered, "_JOIN_S", 0.1)


def alive(threads: list[threading.Thread]) -> list[str]:
    """Names of those that have not ended when the deadline comes."""
    give_up_s = time.monotonic() + DEADLINE_S
    for thread in threads:
        thread.join(max(0.0, give_up_s - time.monotonic()))
    return [thread.name for thread in threads if thread.is_alive()]


def in_thread(work: Callable[[], object]) -> bool:
    """Whether something comes to its end in time."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return not alive([thread])


def dropped_in_a_cycle(iterator: Generator[int, None, None]) -> None:
    """Let nothing but a cycle hold an iterator, as the traceback of a failed run does."""
    box: list[object] = [iterator]
    box.append(box)


# ---- the garbage collector -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 5])
def test_a_worker_that_collects_its_own_pass_goes_on(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it holds the lock that the others wait for."""
    armed, work = threading.Event(), ordered._Work
    held: list[bool] = []
    begun = threading.Event()

    def collecting(name: str, place: int) -> ordered._Work:
        if armed.is_set():
            armed.clear()
            held.append(prefetch._changed._is_owned())  # type: ignore[attr-defined]
            begun.set()
            gc.collect()
        return work(name, place)

    monkeypatch.setattr(ordered, "_Work", collecting)

    def prepare(i: int) -> int:
        time.sleep(0.002)
        return i

    many = 1_000_000  # they never have to wait for the consumer
    prefetch = OrderedPrefetch(prepare, range(many), num_workers=num_workers, max_ahead=many)
    iterator = iter(prefetch)
    assert next(iterator) == 0
    threads = prefetch._threads
    dropped_in_a_cycle(iterator)
    del iterator
    armed.set()
    assert begun.wait(DEADLINE_S)
    assert alive(threads) == []
    assert held == [True]
    assert prefetch._stopped


@pytest.mark.usefixtures("impatient")
def test_a_pass_is_closed_by_a_thread_that_holds_what_its_workers_wait_for() -> None:
    """The collector may run in any allocation, that of a list within `acquire` too."""
    pool = SlabPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), target=9)
    waiting = threading.Semaphore(0)

    def prepare(i: int) -> int:
        if i:
            waiting.release()
            pool.give_back(pool.acquire(100))
        return i

    prefetch = OrderedPrefetch(prepare, range(9), num_workers=2, max_ahead=2)
    iterator = iter(prefetch)
    with pool._lock:  # for whoever collects below, too: it stands where `acquire` allocates
        assert next(iterator) == 0
        for _ in range(2):
            assert waiting.acquire(timeout=DEADLINE_S)
        assert all(thread.is_alive() for thread in prefetch._threads)
        dropped_in_a_cycle(iterator)
        del iterator
        in_time = in_thread(gc.collect)
    assert in_time
    assert alive(prefetch._threads) == []
    assert prefetch._stopped


# ---- workers that hang -----------------------------------------------------------------------------------------------


def interrupted_by_the_consumer(prefetch: OrderedPrefetch[int], iterator: Generator[int, None, None]) -> None:
    with pytest.raises(KeyboardInterrupt):
        iterator.throw(KeyboardInterrupt())


def interrupted_while_it_waits(prefetch: OrderedPrefetch[int], iterator: Generator[int, None, None]) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    prefetch._take = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        next(iterator)


def closed(prefetch: OrderedPrefetch[int], iterator: Generator[int, None, None]) -> None:
    iterator.close()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("end", [closed, interrupted_by_the_consumer, interrupted_while_it_waits])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_a_pass_whose_workers_hang_can_be_left(
    num_workers: int, end: Callable[[OrderedPrefetch[int], Generator[int, None, None]], None]
) -> None:
    """As with Ctrl-C when a disk is dead."""
    released, hanging = threading.Event(), threading.Semaphore(0)

    def prepare(i: int) -> int:
        if i:
            hanging.release()
            released.wait(3 * DEADLINE_S)
        return i

    prefetch = OrderedPrefetch(prepare, range(20), num_workers=num_workers, max_ahead=5)
    iterator = iter(prefetch)
    assert next(iterator) == 0
    for _ in range(num_workers):
        assert hanging.acquire(timeout=DEADLINE_S)
    errors: list[BaseException] = []

    def leave() -> None:
        try:
            end(prefetch, iterator)
        except BaseException as error:
            errors.append(error)

    try:
        in_time = in_thread(leave)
        still = [thread for thread in prefetch._threads if thread.is_alive()]
    finally:
        released.set()
    assert in_time
    assert errors == []
    assert len(still) == num_workers  # they hang, and were not waited for
    assert alive(prefetch._threads) == []


@pytest.mark.usefixtures("impatient")
def test_an_error_is_raised_though_another_worker_hangs() -> None:
    released, hanging = threading.Event(), threading.Event()

    def prepare(i: int) -> int:
        if i:
            hanging.set()
            released.wait(3 * DEADLINE_S)
            return i
        assert hanging.wait(DEADLINE_S)
        raise OSError("the disk is gone")

    prefetch = OrderedPrefetch(prepare, range(20), num_workers=2, max_ahead=5)
    errors: list[str] = []

    def consume() -> None:
        try:
            list(prefetch)
        except OSError as error:
            errors.append(str(error))

    try:
        in_time = in_thread(consume)
    finally:
        released.set()
    assert in_time
    assert errors == ["the disk is gone"]
    assert alive(prefetch._threads) == []


# ---- fork ------------------------------------------------------------------------------------------------------------

FORK = """
import atexit, faulthandler, os, sys, threading
from lightning_gnnopt.loading import SimulatedDevice, ordered, simulated
from lightning_gnnopt.loading.ordered import OrderedPrefetch

device = SimulatedDevice()
prefetch = OrderedPrefetch(lambda i: i, range(50), num_workers=1, max_ahead=2)
iterator = iter(prefetch)
next(iterator)
held, release = threading.Event(), threading.Event()

def hold():
    with prefetch._changed:
        held.set()
        release.wait(60)

holder = threading.Thread(target=hold)
holder.start()
held.wait()
for way in ("handlers", "exit"):
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(20, exit=True)  # the deadline
        assert (len(ordered._LIVE), len(simulated._OPEN)) == (0, 0)
        if way == "handlers":
            atexit._run_exitfuncs()
            os._exit(7)
        sys.exit(7)
    _, status = os.waitpid(pid, 0)
    print(way, os.waitstatus_to_exitcode(status), len(ordered._LIVE), len(simulated._OPEN), flush=True)
release.set()
holder.join()
iterator.close()
device.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_ends() -> None:
    """Threads are not forked, and a lock that one of them held stays held there."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.splitlines() == ["handlers 7 1 1", "exit 7 1 1"], done.stderr
    assert done.returncode == 0, done.stderr
