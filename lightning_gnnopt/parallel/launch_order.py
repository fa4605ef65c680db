"""One order of collectives on all ranks, though several threads of each start them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch

from lightning_gnnopt.parallel.channel import Channel

_RUNNING, _CLOSED, _FAILED = range(3)
_PER_MESSAGE = 16  # launches that one message of rank 0 can order
_CLOSING_S = 0.02  # between messages when rank 0 has closed and waits for the others


class LaunchOrder:
    """Lets the threads of each rank start their collectives in the order in which those of rank 0 come to theirs.

    A rank has several lanes, such as ``"sampler"``, ``"loader"`` and ``"trainer"``: each is a thread with a channel of
    its own. On a device whose collectives hold it until the other ranks have come, two ranks that start those of two
    lanes in opposite order wait for each other for ever; so may NCCL. Each lane takes a turn for each launch instead::

        with order.turn("sampler"):
            wait = channel.start(rows, send_counts, recv_counts)
        received = wait()

    This is DSP's centralized communication coordination (Cai et al., "DSP: Efficient GNN training with multiple GPUs",
    PPoPP 2023): rank 0 queues the turns as they are asked for and tells the others, in a thread that does nothing else.
    It sends a message at least every `heartbeat_s`, with which each rank also tells whether it has failed: an error
    within a turn, or a turn that does not come, ends the waiting on all ranks.

    What the lanes of a rank do must be the same program on all ranks: each lane takes as many turns everywhere, and
    what it waits for outside of turns, such as a full queue, is the same.

    Args:
        channel: Of its own, for messages: between threads, or of a gloo group, whose timeout must be above
            `heartbeat_s`.
        lanes: Names of the lanes, the same on all ranks.
        timeout_s: How long a turn may be waited for. It must be above the time that a lane of any rank may take
            between two turns.
        heartbeat_s: How often rank 0 sends at least.
        on_failure: Called once on this rank when the order has failed here or elsewhere, from whatever thread learns
            of it: to wake threads that wait for ranks within a collective, where a channel can (`ThreadChannel.close`).

    Raises:
        ValueError: If a name stands twice or there is none, or a time is not positive.

    Examples:
        >>> from lightning_gnnopt.parallel.thread_channel import run_ranks
        >>> def work(channel):
        ...     with LaunchOrder(channel, ["sampler", "loader"]) as order:
        ...         for lane in ("sampler", "loader", "sampler") if channel.rank == 0 else ("sampler", "loader"):
        ...             with order.turn(lane):
        ...                 pass
        ...         if channel.rank == 1:
        ...             with order.turn("sampler"):
        ...                 pass
        ...         return order.num_launched
        >>> run_ranks(2, work)
        [3, 3]
    """

    def __init__(
        self,
        channel: Channel,
        lanes: Sequence[str],
        *,
        timeout_s: float = 300.0,
        heartbeat_s: float = 1.0,
        on_failure: Callable[[], None] | None = None,
    ) -> None:
        self.lanes = tuple(lanes)
        if not self.lanes or len(set(self.lanes)) != len(self.lanes):
            raise ValueError(
                f"`lanes` must be one or more different names, but got {self.lanes}."
                " HINT: one for each thread that starts collectives."
            )
        for name, seconds in (("timeout_s", timeout_s), ("heartbeat_s", heartbeat_s)):
            if not seconds > 0:
                raise ValueError(f"`{name}` must be positive, but got {seconds}. HINT: it is a time in seconds.")
        self.timeout_s, self.heartbeat_s = timeout_s, heartbeat_s
        self._channel, self._on_failure = channel, on_failure
        self._changed = threading.Condition()
        self._asked: deque[int] = deque()  # on rank 0: lanes whose turns have not been told yet
        self._ordered: deque[int] = deque()  # lanes in order; the first has its turn
        self._waiting: set[str] = set()
        self._state = _RUNNING
        self._leader_closed = False
        self._failure: str | None = None
        self._thread: threading.Thread | None = None
        self.num_launched = 0

    def start(self) -> Self:
        """Begin to send messages."""
        if self._thread is not None:
            raise RuntimeError("A `LaunchOrder` can be started once. HINT: make another one for the next run.")
        self._thread = threading.Thread(target=self._talk, name="launch-order", daemon=True)
        self._thread.start()
        return self

    @contextmanager
    def turn(self, lane: str) -> Iterator[None]:
        """Wait for the turn of a lane, and pass it on at the end.

        Args:
            lane: Which one.

        Raises:
            ValueError: If there is no such lane.
            RuntimeError: If the lane waits for a turn already, the order is not started or is closed, or has failed:
                an error within a turn of whichever lane and rank, or a turn that took more than `timeout_s` to come.
        """
        if lane not in self.lanes:
            raise ValueError(f"`lane` must be one of {self.lanes}, but got {lane!r}. HINT: name it in `lanes`.")
        self._wait_for_turn(lane)
        try:
            yield
        except BaseException as error:
            self.fail(f"lane {lane!r} of rank {self._channel.rank} raised {error!r}")
            raise
        else:
            self.num_launched += 1  # nobody else has a turn
        finally:
            with self._changed:
                self._waiting.discard(lane)
                self._ordered.popleft()
                self._changed.notify_all()

    def fail(self, reason: str) -> None:
        """End all waiting for turns, here at once and on the other ranks with the next message.

        Args:
            reason: What the errors say.
        """
        with self._changed:
            if self._failure is not None:
                return
            self._failure, self._state = reason, _FAILED
            self._changed.notify_all()
        if self._on_failure is not None:
            self._on_failure()

    def close(self) -> None:
        """Take no more turns, and wait until the other ranks do not either.

        Raises:
            RuntimeError: If the order has failed, or another rank does not close within `timeout_s`.
        """
        with self._changed:
            if self._state == _RUNNING:
                self._state = _CLOSED
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self.timeout_s)
            if self._thread.is_alive():
                self.fail(f"rank {self._channel.rank} was closed, but another rank was not for {self.timeout_s:g} s")
        self._raise_failure()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        self.fail(f"rank {self._channel.rank} raised {error!r}")
        if self._thread is not None:
            self._thread.join(min(self.timeout_s, 2 * self.heartbeat_s))  # so that the others are told

    def _wait_for_turn(self, lane: str) -> None:
        number = self.lanes.index(lane)
        with self._changed:
            self._raise_failure()
            if self._thread is None or self._state == _CLOSED or lane in self._waiting:
                found = (
                    "is not started" if self._thread is None
                    else "is closed" if self._state == _CLOSED
                    else "has a thread in this lane already"
                )  # fmt: skip
                raise RuntimeError(
                    f"Lane {lane!r} asks for a turn, but the order {found}."
                    " HINT: `with LaunchOrder(...) as order:` around the threads, and one thread for each lane."
                )
            self._waiting.add(lane)
            if self._channel.rank == 0:
                self._asked.append(number)
                self._changed.notify_all()
            came = self._changed.wait_for(lambda: self._has_turn(number) or self._ended(number), self.timeout_s)
            if self._failure is None and self._has_turn(number):
                return
            self._waiting.discard(lane)
            reason = self._failure or self._stuck(lane, came)
        self.fail(reason)
        self._raise_failure()

    def _has_turn(self, number: int) -> bool:
        return bool(self._ordered) and self._ordered[0] == number

    def _ended(self, number: int) -> bool:
        return self._failure is not None or (self._leader_closed and number not in self._ordered)

    def _stuck(self, lane: str, came: bool) -> str:
        if came:
            return f"lane {lane!r} of rank {self._channel.rank} asks for a turn more than rank 0, which has closed"
        waited = f"lane {lane!r} of rank {self._channel.rank} waited {self.timeout_s:g} s for its turn"
        if not self._ordered:
            return f"{waited}, of which rank 0 said nothing"
        first = self.lanes[self._ordered[0]]
        return (
            f"{waited} behind that of {first!r}, which {'has not ended' if first in self._waiting else 'has not come'}"
        )

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise RuntimeError(
                f"The order of launches has failed: {self._failure}. HINT: look for the first error of all ranks; all"
                " ranks must take the same turns, and `timeout_s` must be above the time between two of them."
            )

    def _talk(self) -> None:
        """Send and receive messages until all ranks have closed, or one has failed."""
        channel, told = self._channel, _RUNNING
        try:
            while True:
                message = torch.zeros(_PER_MESSAGE + channel.size, dtype=torch.int64)
                if channel.rank == 0:
                    asked = self._next_asked(told)
                    message[: len(asked)] = torch.tensor(asked, dtype=torch.int64) + 1
                told = message[_PER_MESSAGE + channel.rank] = self._state
                numbers = channel.sum(message).tolist()  # rank 0 says which turns, and each rank how it is
                if self._heard(numbers[:_PER_MESSAGE], numbers[_PER_MESSAGE:]):
                    return
        except Exception as error:  # what waits for turns raises it
            self.fail(f"rank {channel.rank} could not send or receive the order ({error!r})")

    def _next_asked(self, told: int) -> list[int]:
        """Wait for turns to tell of, for another state than the one that was told, or for the next heartbeat."""
        with self._changed:
            pause_s = min(self.heartbeat_s, _CLOSING_S) if told == _CLOSED else self.heartbeat_s
            self._changed.wait_for(lambda: self._asked or self._state != told, pause_s)
            return [self._asked.popleft() for _ in range(min(len(self._asked), _PER_MESSAGE))]

    def _heard(self, numbers: list[int], states: list[int]) -> bool:
        """Take in a message; tell whether it was the last."""
        if _FAILED in states:
            self.fail(f"rank {states.index(_FAILED)} has failed")
            return True
        with self._changed:
            self._ordered.extend(number - 1 for number in numbers if number)
            self._leader_closed = states[0] == _CLOSED and not any(numbers)
            next_lane = self.lanes[self._ordered[0]] if self._ordered else None
            deserted = self._state == _CLOSED and next_lane is not None and next_lane not in self._waiting
            self._changed.notify_all()
        if deserted:
            self.fail(f"rank {self._channel.rank} has closed without a turn of {next_lane!r} that rank 0 takes")
        return all(state == _CLOSED for state in states)
