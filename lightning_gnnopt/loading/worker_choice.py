"""Whether threads that prepare batches pay: tried out on the batches of a run, which are the same bits either way."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

_STRETCH = 12  # batches that are loaded in one way before the other has its turn
_SETTLING = 3  # of a part of a pass, so many are not timed: a thread has just begun, and nothing is ahead yet
_NEEDED = 5  # stretches of each way


@dataclass(frozen=True)
class Stretch:
    """Batches that are loaded in one way.

    Attributes:
        numbers: Their numbers.
        workers: Threads that prepare them.
        is_pass: Whether they are all of a pass: what it takes to begin one is then part of what is timed.
    """

    numbers: range
    workers: int
    is_pass: bool


class WorkerChoice:
    """Loads stretches of batches with threads and without, in turn, and then goes on with what was faster.

    Where training is on the processor, too, threads may not pay: where a batch is prepared in a small part of a step,
    what is saved can be less than what it costs that two threads share the interpreter, the caches, and, if the cores
    are halves of one, that core.

    Args:
        num_workers: Threads to try.

    Attributes:
        num_workers: Threads, or 0 if they were found not to pay.
        is_made: Whether that is found out.
        medians_s: Seconds per batch by the number of threads, the consumer's own work included, median of the
            stretches; empty until then.

    Examples:
        >>> choice = WorkerChoice(1)
        >>> [(len(stretch.numbers), stretch.workers) for stretch in choice.stretches(range(40))]
        [(12, 1), (12, 0), (12, 1), (4, 0)]
        >>> for _ in range(5):
        ...     choice.note(1, 0.010)
        ...     choice.note(0, 0.012)
        >>> choice.is_made, choice.num_workers, choice.medians_s
        (True, 1, {1: 0.01, 0: 0.012})
    """

    def __init__(self, num_workers: int) -> None:
        self.num_workers = num_workers
        self.is_made = False
        self.medians_s: dict[int, float] = {}
        self._tried = num_workers
        self._turns = 0
        self._told_s: dict[int, list[float]] = {num_workers: [], 0: []}

    def stretches(self, numbers: range) -> Iterator[Stretch]:
        """Divide the batches of a pass into stretches, each to be loaded before the next one is asked for."""
        if len(numbers) == 1:  # nothing to load it beside
            yield Stretch(numbers, self.num_workers, True)
            return
        first = numbers.start
        while first < numbers.stop:
            if self.is_made:
                yield Stretch(range(first, numbers.stop), self.num_workers, False)
                return
            end = first + _STRETCH if numbers.stop - first > _STRETCH + _SETTLING else numbers.stop
            workers = 0 if self._turns % 2 else self._tried
            self._turns += 1
            yield Stretch(range(first, end), workers, len(numbers) == end - first)
            first = end

    def note(self, workers: int, batch_s: float) -> None:
        """Be told how long a batch of a stretch took on average."""
        if self.is_made:
            return
        self._told_s[workers].append(batch_s)
        if min(map(len, self._told_s.values())) >= _NEEDED:
            # Medians: a validation or a checkpoint between two batches says nothing about them.
            self.medians_s = {workers: statistics.median(told) for workers, told in self._told_s.items()}
            self.num_workers = min(self.medians_s, key=self.medians_s.__getitem__)
            self.is_made = True
            self._told_s.clear()


class StretchClock:
    """Times a stretch, and tells a choice at its end.

    Args:
        choice: Is told.
        stretch: What is timed.
        now_s: When its first batch is asked for.
    """

    def __init__(self, choice: WorkerChoice, stretch: Stretch, now_s: float) -> None:
        self._choice, self._stretch = choice, stretch
        self._settling = 0 if stretch.is_pass else _SETTLING
        self._began_s = now_s
        self._batches = 0

    def delivered(self, now_s: float) -> None:
        """Note a batch's delivery."""
        self._batches += 1
        if self._batches == self._settling:
            self._began_s = now_s
        elif self._batches == len(self._stretch.numbers):
            self._choice.note(self._stretch.workers, (now_s - self._began_s) / (self._batches - self._settling))
