"""What a loader counts while it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass
class LoaderStats:
    """Running totals of a loader; take the difference of two copies to judge a stretch of a run.

    Attributes:
        batches: Batches delivered.
        nodes: Nodes in them.
        edges: Edges in them.
        sample_s: Seconds workers spent sampling them, summed over workers.
        slice_s: Seconds workers spent slicing features and building the batches, summed over workers.
        wait_s: Seconds the consumer waited for a batch.
    """

    batches: int = 0
    nodes: int = 0
    edges: int = 0
    sample_s: float = 0.0
    slice_s: float = 0.0
    wait_s: float = 0.0

    def __add__(self, other: LoaderStats) -> LoaderStats:
        return LoaderStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: LoaderStats) -> LoaderStats:
        return LoaderStats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def copy(self) -> LoaderStats:
        """The totals as they stand now."""
        return LoaderStats(**asdict(self))
