"""Run a function over 0, 1, 2, ... in worker threads and deliver the results in order."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")

THREAD_NAME = "gnnopt-prefetch"
"""What the names of the worker threads start with."""

_JOIN_S = 5.0  # how long the end of a pass that did not come to its end waits for the workers


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class _Stopped(BaseException):
    """Unwinds a worker whose result nobody wants any more."""


@dataclass
class _Work:
    """What a worker is at."""

    name: str
    place: int
    stage: str = "starting"
    since_s: float = field(default_factory=time.monotonic)
    waits: bool = False  # for the consumer, which is no fault of its own


class OrderedPrefetch(Generic[T]):
    """Prepares items ahead of their consumer, each wholly in one thread, and delivers them in order.

    At most `max_ahead` items are in preparation or ready at any time, and of `max_bytes` together if `prepare` says
    through :meth:`reserve` how many an item takes. An item that raises is delivered as that exception, at its own place
    in the order; nothing after it is delivered. The threads end when the iteration does: at its end, at an error, or
    when the iterator is closed.

    Bytes are granted in the order of the items, so that a later one never takes what an earlier one waits for; an item
    that is larger than `max_bytes` is let through when it is the only one.

    Args:
        prepare: Makes item ``i``. Called from the threads, so it must be safe to call at once for different items.
        items: The items to make, in order.
        num_workers: Threads; 0 prepares each item when it is asked for.
        max_ahead: Items ahead of the consumer, at least 1.
        max_bytes: Bytes of the items ahead of the consumer; None does not count them.
        timeout_s: After so many seconds without a sign of the worker whose item is due, the consumer gets a
            `TimeoutError`; None waits for ever.

    Examples:
        >>> list(OrderedPrefetch(lambda i: i * i, range(5), num_workers=2, max_ahead=3))
        [0, 1, 4, 9, 16]
    """

    def __init__(
        self,
        prepare: Callable[[int], T],
        items: Sequence[int],
        *,
        num_workers: int,
        max_ahead: int,
        max_bytes: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._prepare = prepare
        self._items = items
        self._num_workers = min(num_workers, len(items))
        self._max_ahead = max_ahead
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._results: dict[int, T | _Failure] = {}
        self._work: dict[int, _Work] = {}  # by thread
        self._taken = 0
        self._delivered = 0
        self._stopped = False
        self._granted = 0  # items before this one have the bytes that they asked for, or are done without
        self._granted_later: set[int] = set()  # the same of single items behind it
        self._bytes: dict[int, int] = {}  # of the items ahead

    @property
    def num_ready(self) -> int:
        """Items that are ready to be delivered."""
        return len(self._results)

    @property
    def bytes_ahead(self) -> int:
        """Bytes granted to items that were not delivered yet."""
        with self._changed:
            return sum(self._bytes.values())

    def stage(self, name: str) -> None:
        """Be told, from within `prepare`, what comes next: a sign of life, and what a report says."""
        work = self._work.get(threading.get_ident())
        if work is not None:
            work.stage, work.since_s = name, time.monotonic()

    def reserve(self, nbytes: int) -> None:
        """Wait, within `prepare`, until the item may take so many bytes; to be called once for an item."""
        work = self._work.get(threading.get_ident())
        if work is None or self._max_bytes is None:
            return
        with self._changed:
            work.waits = True
            self._changed.wait_for(lambda: self._stopped or self._fits(work.place, nbytes))
            work.waits, work.since_s = False, time.monotonic()
            if self._stopped:
                raise _Stopped
            self._bytes[work.place] = nbytes
            self._grant(work.place)

    def __iter__(self) -> Generator[T, None, None]:
        """Deliver the items; to be called once."""
        if self._num_workers == 0:
            try:
                for item in self._items:
                    yield self._prepare(item)
            finally:
                self._end()
            return
        self._threads = threads = [
            threading.Thread(target=self._run, name=f"{THREAD_NAME}-{i}", daemon=True) for i in range(self._num_workers)
        ]
        ended = False
        try:
            _LIVE.add(self)
            for thread in threads:
                thread.start()
            for _ in self._items:
                result = self._take()
                if isinstance(result, _Failure):
                    raise result.error
                yield result
                del result  # the consumer's alone from here on
            ended = True
        finally:
            # A pass that is closed, interrupted or failed waits for its workers, but not for ever: the garbage
            # collector may close it in a thread that holds what they wait for, and what failed may be that they hang.
            self._end(None if ended else time.monotonic() + _JOIN_S)
            _LIVE.discard(self)

    def _end(self, deadline_s: float | None = None) -> None:
        """Stop the threads and wait until they have ended, or until a deadline."""
        with self._changed:
            self._stopped = True
            self._results.clear()
            self._bytes.clear()
            self._changed.notify_all()
        for thread in self._threads:
            if threading.current_thread() in self._threads:
                break  # the garbage collector closes the iterator in one of its own threads
            if thread.ident is not None:  # started: an interrupt may have come before
                thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
        self._prepare = _ended  # which may hold much, and us

    def _take(self) -> T | _Failure:
        with self._changed:
            while self._delivered not in self._results:
                if not self._changed.wait(self._patience_s()):
                    self._report_if_stuck()
            result = self._results.pop(self._delivered)
            self._bytes.pop(self._delivered, None)
            self._delivered += 1
            self._changed.notify_all()
            return result

    def _run(self) -> None:
        ident, name = threading.get_ident(), threading.current_thread().name
        while True:
            with self._changed:
                self._changed.wait_for(self._may_go_on)
                if self._stopped or self._taken == len(self._items):
                    return
                place = self._taken
                self._taken += 1
                self._work[ident] = _Work(name, place)
            result: T | _Failure
            try:
                result = self._prepare(self._items[place])
            except _Stopped:
                return
            except BaseException as error:  # handed to the consumer, who raises it
                result = _Failure(error)
            with self._changed:
                del self._work[ident]
                if not self._stopped:
                    self._results[place] = result
                    if place >= self._granted:
                        self._grant(place)
                if isinstance(result, _Failure):
                    self._taken = len(self._items)
                del result  # the consumer's alone from here on
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        if self._stopped or self._taken == len(self._items):
            return True
        return self._taken - self._delivered < self._max_ahead

    def _fits(self, place: int, nbytes: int) -> bool:
        assert self._max_bytes is not None
        if self._granted < place:
            return False
        ahead = sum(self._bytes.values())
        return not ahead or ahead + nbytes <= self._max_bytes

    def _grant(self, place: int) -> None:
        """Note that an item has its bytes, or is done without."""
        self._granted_later.add(place)
        while self._granted in self._granted_later:
            self._granted_later.remove(self._granted)
            self._granted += 1
        self._changed.notify_all()

    def _due_worker(self) -> int | None:
        """The thread that prepares the item which is due."""
        return next((ident for ident, work in self._work.items() if work.place == self._delivered), None)

    def _patience_s(self) -> float | None:
        if self._timeout_s is None:
            return None
        ident = self._due_worker()
        quiet_s = 0.0 if ident is None else time.monotonic() - self._work[ident].since_s
        return max(self._timeout_s - quiet_s, 0.001)

    def _report_if_stuck(self) -> None:
        ident = self._due_worker()
        if ident is None or self._timeout_s is None:
            return
        work = self._work[ident]
        quiet_s = time.monotonic() - work.since_s
        if work.waits or quiet_s < self._timeout_s:
            return
        error = TimeoutError(
            f"Worker '{work.name}' has made no progress for {quiet_s:.0f} s (`timeout_s` is {self._timeout_s:g}): it is"
            f" at '{work.stage}' of item {self._items[work.place]}."
            " HINT: raise `timeout_s` if that may take so long, or set it to None; the note below says where it stands."
        )
        frame = sys._current_frames().get(ident)
        if frame is not None:
            error.add_note(f"'{work.name}' stands at:\n{''.join(traceback.format_stack(frame))}")
        raise error


def _ended(item: int) -> Any:
    raise RuntimeError(f"Item {item} is asked for after the iteration has ended.")


_LIVE: weakref.WeakSet[OrderedPrefetch[Any]] = weakref.WeakSet()


os.register_at_fork(after_in_child=_LIVE.clear)  # threads are not forked


@atexit.register
def _end_all() -> None:
    """End what is still iterated over: an interpreter that ends while threads are inside of torch aborts."""
    for prefetch in list(_LIVE):
        prefetch._end(time.monotonic() + _JOIN_S)
