"""Snapshots that wait for a verdict."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from lightning_gnnopt._names import unknown_name

T = TypeVar("T")
WhenBusy = Literal["coalesce", "queue", "wait"]
_WHEN_BUSY = ("coalesce", "queue", "wait")


@dataclass(frozen=True)
class Offer(Generic[T]):
    """What became of an item that was offered.

    Attributes:
        accepted: Whether it waits now.
        dropped: The item whose place it took, if any.
    """

    accepted: bool
    dropped: T | None = None


class Backlog(Generic[T]):
    """A bounded line between the thread that trains and the one that has snapshots validated.

    An item waits until it is taken, then runs until it is done; both count. Items are told apart by identity. When
    there is no room for one more,

    * ``"coalesce"`` gives it the place of the last one that waits, so training never waits and verdicts stay recent;
      if none waits, as all are running, the new one is refused;
    * ``"queue"`` makes room: the bound does not hold;
    * ``"wait"`` waits for room.

    Args:
        max_pending: How many may wait or run.
        when_busy: What happens to an item for which there is no room.

    Raises:
        ValueError: If an argument cannot be used.

    Example:
        >>> backlog = Backlog(2, "coalesce")
        >>> backlog.offer("a"), backlog.take(0)
        (Offer(accepted=True, dropped=None), 'a')
        >>> backlog.offer("b").accepted, backlog.offer("c")
        (True, Offer(accepted=True, dropped='b'))
        >>> backlog.pending
        ['a', 'c']
    """

    def __init__(self, max_pending: int, when_busy: WhenBusy) -> None:
        if isinstance(max_pending, bool) or not isinstance(max_pending, int) or max_pending < 1:
            raise ValueError(
                f"`max_pending` must be a whole number of at least 1, but got {max_pending!r}."
                " HINT: 2 lets one snapshot wait while another is validated."
            )
        if when_busy not in _WHEN_BUSY:
            raise ValueError(
                f"{unknown_name('when_busy', when_busy, _WHEN_BUSY)} HINT: 'coalesce' never stops training."
            )
        self.max_pending = max_pending
        self.when_busy = when_busy
        self._waiting: deque[T] = deque()
        self._running: list[T] = []
        self._closed = False
        self._changed = threading.Condition()

    @property
    def pending(self) -> list[T]:
        """Items without a verdict, in the order they were offered: those that run, then those that wait."""
        with self._changed:
            return [*self._running, *self._waiting]

    @property
    def refuses(self) -> bool:
        """Whether an item that is offered now would be refused."""
        with self._changed:
            if self._closed:
                return True
            return self.when_busy == "coalesce" and self._full() and not self._waiting

    @property
    def closed(self) -> bool:
        """Whether no item is accepted any more."""
        with self._changed:
            return self._closed

    def offer(self, item: T, *, always: bool = False) -> Offer[T]:
        """Offer an item; only with ``"wait"`` does this take time. After :meth:`close`, it is refused.

        Args:
            item: The item.
            always: Whether the bound does not hold for it.
        """
        with self._changed:
            if self.when_busy == "wait" and not always:
                self._changed.wait_for(lambda: self._closed or not self._full())
            if self._closed:
                return Offer(False)
            dropped = None
            if self.when_busy == "coalesce" and self._full() and not always:
                if not self._waiting:
                    return Offer(False)
                dropped = self._waiting.pop()
            self._waiting.append(item)
            self._changed.notify_all()
            return Offer(True, dropped)

    def take(self, timeout_s: float | None = None) -> T | None:
        """Take the item that has waited longest; it runs from now on.

        Args:
            timeout_s: How long to wait for one; None waits until there is one or the line is closed.

        Returns:
            The item, or None if there was none in time, or there is none and will be none. What waits when the line
            is closed can still be taken.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_s)
            if not self._waiting:
                return None
            item = self._waiting.popleft()
            self._running.append(item)
            return item

    def done(self, item: T) -> None:
        """Say that an item has its verdict, or will have none.

        Raises:
            ValueError: If it is not running.
        """
        with self._changed:
            for index, running in enumerate(self._running):
                if running is item:
                    del self._running[index]
                    self._changed.notify_all()
                    return
        raise ValueError(f"{item!r} is not running. HINT: `take` it first, and call `done` once.")

    def close(self) -> None:
        """Refuse all items from now on, and let nobody wait for room or for an item any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_until_empty(self, timeout_s: float | None = None) -> bool:
        """Wait until no item waits or runs.

        Args:
            timeout_s: How long to wait; None does not give up.

        Returns:
            Whether there is none.
        """
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout_s)

    def _full(self) -> bool:
        return len(self._waiting) + len(self._running) >= self.max_pending
