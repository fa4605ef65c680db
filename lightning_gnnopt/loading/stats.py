"""What a loader counts while it runs."""

from __future__ import annotations

import operator
from dataclasses import dataclass


@dataclass
class LoaderStats:
    """Running totals of a loader; take the difference of two copies to judge a stretch of a run.

    Attributes:
        batches: Batches delivered.
        nodes: Nodes in them.
        edges: Edges in them.
        sample_s: Seconds workers spent sampling them, transforms included, summed over workers.
        slice_s: Seconds workers spent slicing features and building the batches, summed over workers.
        transfer_s: Seconds the device's copy stream spent on them; 0 where batches stay in host memory.
        wait_s: Seconds the consumer waited for a batch.
        queued: Batches that were ready when the consumer asked for one, summed over its requests.
        nbytes: Bytes of the batches' tensors.
        moved_bytes: Bytes copied to the device for them.
        copies: Copies to the device that they took.
        cache_lookups: Rows of features asked for where a cache of them is in use.
        cache_hits: Rows of them that were on the device already.
    """

    batches: int = 0
    nodes: int = 0
    edges: int = 0
    sample_s: float = 0.0
    slice_s: float = 0.0
    transfer_s: float = 0.0
    wait_s: float = 0.0
    queued: int = 0
    nbytes: int = 0
    moved_bytes: int = 0
    copies: int = 0
    cache_lookups: int = 0
    cache_hits: int = 0

    @property
    def queue_depth(self) -> float:
        """Batches that were ready when the consumer asked for one, on average."""
        return self.queued / self.batches if self.batches else 0.0

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of the rows that were on the device already; None without a cache."""
        return self.cache_hits / self.cache_lookups if self.cache_lookups else None

    def __add__(self, other: LoaderStats) -> LoaderStats:
        return LoaderStats(*map(operator.add, vars(self).values(), vars(other).values()))

    def __sub__(self, other: LoaderStats) -> LoaderStats:
        return LoaderStats(*map(operator.sub, vars(self).values(), vars(other).values()))

    def copy(self) -> LoaderStats:
        """The totals as they stand now."""
        return LoaderStats(*vars(self).values())
