"""Run a function over 0, 1, 2, ... in worker threads and deliver the results in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class OrderedPrefetch(Generic[T]):
    """Prepares items ahead of their consumer, each wholly in one thread, and delivers them in order.

    At most `max_ahead` items are in preparation or ready at any time. An item that raises is delivered as that
    exception, at its own place in the order; nothing after it is delivered. The threads end when the iteration does:
    at its end, at an error, or when the iterator is closed.

    Args:
        prepare: Makes item ``i``. Called from the threads, so it must be safe to call at once for different items.
        items: The items to make, in order.
        num_workers: Threads; 0 prepares each item when it is asked for.
        max_ahead: Items ahead of the consumer, at least 1.

    Examples:
        >>> list(OrderedPrefetch(lambda i: i * i, range(5), num_workers=2, max_ahead=3))
        [0, 1, 4, 9, 16]
    """

    def __init__(self, prepare: Callable[[int], T], items: Sequence[int], *, num_workers: int, max_ahead: int) -> None:
        self._prepare = prepare
        self._items = items
        self._num_workers = min(num_workers, len(items))
        self._max_ahead = max_ahead
        self._changed = threading.Condition()
        self._results: dict[int, T | _Failure] = {}
        self._taken = 0
        self._delivered = 0
        self._stopped = False

    def __iter__(self) -> Generator[T, None, None]:
        """Deliver the items; to be called once."""
        if self._num_workers == 0:
            for item in self._items:
                yield self._prepare(item)
            return
        threads = [
            threading.Thread(target=self._work, name=f"gnnopt-prefetch-{i}", daemon=True)
            for i in range(self._num_workers)
        ]
        try:
            for thread in threads:
                thread.start()
            for _ in self._items:
                result = self._take()
                if isinstance(result, _Failure):
                    raise result.error
                yield result
        finally:
            with self._changed:
                self._stopped = True
                self._results.clear()
                self._changed.notify_all()
            for thread in threads:
                # Never started after an interrupt; or this one, if the garbage collector closes the iterator here.
                if thread.ident is not None and thread is not threading.current_thread():
                    thread.join()

    def _take(self) -> T | _Failure:
        with self._changed:
            self._changed.wait_for(lambda: self._delivered in self._results)
            result = self._results.pop(self._delivered)
            self._delivered += 1
            self._changed.notify_all()
            return result

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._may_go_on)
                if self._stopped or self._taken == len(self._items):
                    return
                place = self._taken
                self._taken += 1
            result: T | _Failure
            try:
                result = self._prepare(self._items[place])
            except BaseException as error:  # handed to the consumer, who raises it
                result = _Failure(error)
            with self._changed:
                if not self._stopped:
                    self._results[place] = result
                if isinstance(result, _Failure):
                    self._taken = len(self._items)
                self._changed.notify_all()

    def _may_go_on(self) -> bool:
        if self._stopped or self._taken == len(self._items):
            return True
        return self._taken - self._delivered < self._max_ahead
