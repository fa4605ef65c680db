"""How much the benchmarks of loading measure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LoadingScale:
    """How much is measured.

    Attributes:
        graph: `scale` of the ``products-like`` graph.
        fanouts: Fan-outs of its batches.
        batch_size: Seeds per batch.
        workers: The numbers of workers that each library tries.
        rounds: Rounds of the comparisons on that graph.
        batches: Batches per side and round that are counted when batches are only prepared.
        shares: The shares of sampling and of transfers in the grid of overlap.
        cycle_s: Seconds that all stages of one batch of the grid take together.
        cycles: Batches per point of the grid.
        grid_rounds: Rounds per point.
        epoch_batches: Batches of the epoch that is compared with pure compute.
        epoch_rounds: Rounds of that comparison.
        train_fanouts: Fan-outs in training.
        train_steps: Steps of an epoch of training.
        train_epochs: Epochs that are counted; one more comes before them.
        train_rounds: Rounds of training.
        cache_nodes: Nodes of the R-MAT graph for caching.
        cache_epochs: Epochs over which a cache's hits are counted.
        cache_workers: Threads that prepare batches meanwhile.
    """

    graph: float
    fanouts: tuple[int, ...] = (15, 10, 5)
    batch_size: int = 1024
    workers: tuple[int, ...] = (0, 1, 2)
    rounds: int
    batches: int
    shares: tuple[float, ...]
    cycle_s: float
    cycles: int
    grid_rounds: int
    epoch_batches: int
    epoch_rounds: int
    train_fanouts: tuple[int, ...]
    train_steps: int
    train_epochs: int
    train_rounds: int
    cache_nodes: int
    cache_epochs: int
    cache_workers: int = 1


FULL = LoadingScale(
    graph=0.5,
    rounds=3,
    batches=8,
    shares=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
    cycle_s=0.02,
    cycles=50,
    grid_rounds=3,
    epoch_batches=100,
    epoch_rounds=2,
    train_fanouts=(15, 10),
    train_steps=8,
    train_epochs=2,
    train_rounds=2,
    cache_nodes=2**18,
    cache_epochs=2,
)
QUICK = LoadingScale(
    graph=0.02,
    rounds=2,
    batches=4,
    shares=(0.2, 0.4, 0.6),
    cycle_s=0.01,
    cycles=20,
    grid_rounds=1,
    epoch_batches=100,
    epoch_rounds=2,
    train_fanouts=(15, 10),
    train_steps=3,
    train_epochs=1,
    train_rounds=1,
    cache_nodes=2**14,
    cache_epochs=2,
)
