"""What a run's memory control did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from threading import Lock
from typing import Any


@dataclass
class Tally:
    """Counts over the batches of a stage.

    Attributes:
        batches: Batches looked at.
        over: Batches that would have been over the budget as they were drawn.
        resamples: Further draws.
        pruned: Batches that lost edges.
        edges: Edges of all batches, as they were to be trained on before pruning.
        pruned_edges: Edges of them that went.
        shrunk: Batches that gave seeds back.
        returned_seeds: Seeds that were given back.
        splits: Batches that were run in parts.
        parts: Parts of all of them.
        late: Batches that were found too large when their step began, since what is known of the step had changed.
        out_of_memory: Steps that ran out of memory.
        worker_s: Seconds spent in the loader's threads.
        inline_s: Seconds spent between steps, probes included.
        probe_s: Seconds of these that probes took.
        measured: Steps whose peak was measured.
        measured_over: Steps among them over the budget.
        touched: Measured steps on batches that had been over the budget.
        used: Sum over those of peak / budget.
        exact: Measured steps that were predicted to the byte.
        error: Sum over the measured steps of ``|predicted - measured| / measured``.
        worst_under: The largest ``1 - predicted / measured``.
        largest_bytes: The largest measured peak.
    """

    batches: int = 0
    over: int = 0
    resamples: int = 0
    pruned: int = 0
    edges: int = 0
    pruned_edges: int = 0
    shrunk: int = 0
    returned_seeds: int = 0
    splits: int = 0
    parts: int = 0
    late: int = 0
    out_of_memory: int = 0
    worker_s: float = 0.0
    inline_s: float = 0.0
    probe_s: float = 0.0
    measured: int = 0
    measured_over: int = 0
    touched: int = 0
    used: float = 0.0
    exact: int = 0
    error: float = 0.0
    worst_under: float = 0.0
    largest_bytes: float = 0.0

    def __post_init__(self) -> None:
        self._lock = Lock()

    def add(self, **amounts: float) -> None:
        """Add to some of the counts; from any thread."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def observe(self, predicted: float, measured: float, budget: float, *, touched: bool) -> None:
        """Count a step whose peak was measured, all in bytes."""
        with self._lock:
            self.measured += 1
            self.measured_over += measured > budget
            self.exact += round(predicted) == round(measured)
            self.error += abs(predicted - measured) / measured if measured else 0.0
            self.largest_bytes = max(self.largest_bytes, measured)
            self.worst_under = max(self.worst_under, 1 - predicted / measured if measured else 0.0)
            if touched:
                self.touched += 1
                self.used += measured / budget

    def copy(self) -> Tally:
        """Take a snapshot."""
        with self._lock:
            return replace(self)

    def __sub__(self, before: Tally) -> Tally:
        return Tally(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def to_dict(self) -> dict[str, Any]:
        """Give the counts as plain numbers."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock()
