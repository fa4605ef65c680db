"""Whether threads that prepare batches pay: tried out on the batches of a run, which are the same bits either way."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

_STRETCH = 12  # batches that are loaded in one way before the other has its turn
_SETTLING = 2  # of them, the first ones are not counted: a thread has just begun, and nothing is ahead yet
_NEEDED = 40  # batches counted of each way, in four turns


class WorkerChoice:
    """Loads stretches of batches with threads and without, in turn, and then goes on with what was faster.

    On a device of its own compute and preparing do not get into each other's way, and threads always pay. On
    processors they may not: where a batch is prepared in a fraction of a step, what is saved is less than what it
    costs that two threads share the interpreter, the caches, and, if the cores are halves of one, that core.

    Args:
        num_workers: Threads to try.

    Attributes:
        num_workers: Threads, or 0 if they were found not to pay.
        is_made: Whether that is found out.
        medians_s: Median seconds from one batch to the next, by the number of threads; empty until then.

    Examples:
        >>> choice = WorkerChoice(1)
        >>> [(len(stretch), workers) for stretch, workers in choice.stretches(range(30))]
        [(12, 1), (12, 0), (6, 1)]
        >>> for _ in range(60):
        ...     choice.note(1, 0.010)
        ...     choice.note(0, 0.012)
        >>> choice.is_made, choice.num_workers, list(choice.stretches(range(30)))
        (True, 1, [(range(0, 30), 1)])
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.is_made = False
        self.medians_s: dict[int, float] = {}
        self._tried = num_workers
        self._turns = 0
        self._intervals_s: dict[int, list[float]] = {num_workers: [], 0: []}

    def stretches(self, numbers: range) -> Iterator[tuple[range, int]]:
        """Divide batches into stretches; say with how many threads each is to be loaded, when its turn has come."""
        if len(numbers) <= _SETTLING + 1:  # too few to count any: an epoch that short gains nothing by a trial
            yield numbers, self.num_workers
            return
        first = numbers.start
        while first < numbers.stop:
            if self.is_made:
                yield range(first, numbers.stop), self.num_workers
                return
            stretch = range(first, min(first + _STRETCH, numbers.stop))
            workers = 0 if self._turns % 2 else self._tried
            self._turns += 1
            first = stretch.stop
            yield stretch, workers

    def note(self, workers: int, interval_s: float) -> None:
        """Be told how long it took from one batch of a stretch to the next; the consumer's own work is part of it."""
        if self.is_made:
            return
        self._intervals_s[workers].append(interval_s)
        if min(map(len, self._intervals_s.values())) >= _NEEDED:
            # Medians: a validation or a checkpoint between two batches says nothing about them.
            self.medians_s = {workers: statistics.median(told) for workers, told in self._intervals_s.items()}
            self.num_workers = min(self.medians_s, key=self.medians_s.__getitem__)
            self.is_made = True
            self._intervals_s.clear()


class Intervals:
    """Tells a choice the time between the batches of a stretch, but for the first ones.

    Args:
        choice: Is told.
        workers: Threads of the stretch.
    """

    def __init__(self, choice: WorkerChoice, workers: int) -> None:
        self._choice, self._workers = choice, workers
        self._before_s = 0.0
        self._batches = 0

    def delivered(self, now_s: float) -> None:
        """Note a batch's delivery."""
        if self._batches > _SETTLING:
            self._choice.note(self._workers, now_s - self._before_s)
        self._before_s, self._batches = now_s, self._batches + 1
