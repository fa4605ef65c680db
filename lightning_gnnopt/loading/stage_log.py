"""What the loaders' threads did when, if somebody wants to know."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

Stage = Literal["sample", "plan", "slice", "wait"]


@dataclass(frozen=True, slots=True)
class StageSpan:
    """A stage of a batch's preparation, or the consumer's wait for it.

    Attributes:
        stage: ``"sample"``, ``"plan"`` (its tensors are laid out), ``"slice"`` (they are written, and a copy to a
            device is begun, which goes on by itself) or ``"wait"`` (the consumer waits).
        batch: Number of the batch in its epoch; -1 for a wait.
        thread: Name of the thread.
        start_s: When it began, by `time.perf_counter`.
        end_s: When it ended.
    """

    stage: Stage
    batch: int
    thread: str
    start_s: float
    end_s: float


class StageLog:
    """Remembers the last spans; several threads may add to it.

    Args:
        max_spans: How many are kept.

    Attributes:
        recorded: How many there were, the forgotten ones included.
    """

    def __init__(self, max_spans: int = 10_000) -> None:
        if max_spans < 1:
            raise ValueError(
                f"`max_spans` must be at least 1, but got {max_spans}. HINT: a span takes about 200 bytes."
            )
        self.recorded = 0
        self._spans: deque[StageSpan] = deque(maxlen=max_spans)
        self._lock = threading.Lock()

    @property
    def spans(self) -> tuple[StageSpan, ...]:
        """The spans that are kept, in the order in which they ended."""
        with self._lock:
            return tuple(self._spans)

    def add(self, span: StageSpan) -> None:
        """Remember a span."""
        with self._lock:
            self._spans.append(span)
            self.recorded += 1


_logs: tuple[StageLog, ...] = ()
_changing = threading.Lock()


@contextmanager
def record_stages(max_spans: int = 10_000) -> Iterator[StageLog]:
    """Record what all loaders of this process do within this context; contexts may nest and overlap.

    Args:
        max_spans: How many spans are kept; older ones are forgotten.

    Yields:
        The log, which can be read afterwards.

    Raises:
        ValueError: If `max_spans` is below 1.
    """
    global _logs
    log = StageLog(max_spans)
    with _changing:
        _logs = (*_logs, log)
    try:
        yield log
    finally:
        with _changing:
            _logs = tuple(other for other in _logs if other is not log)


def note_stage(stage: Stage, batch: int, start_s: float, end_s: float) -> None:
    """Tell those who record; next to nothing happens where nobody does."""
    logs = _logs
    if logs:
        span = StageSpan(stage, batch, threading.current_thread().name, start_s, end_s)
        for log in logs:
            log.add(span)
