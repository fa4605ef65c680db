"""PrefetchLoader: batches are sampled and sliced in worker threads before the training step asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import Data

from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.ordered import OrderedPrefetch
from lightning_gnnopt.loading.own_seeds import OwnSeeds
from lightning_gnnopt.loading.seeds import EpochSampler, FixedSampler, SeedOrder
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.transform import SubgraphTransform
from lightning_gnnopt.sampling import NodeSampler, SampleKey, Subgraph


class PrefetchLoader:
    """Yields sampled batches in order; they are the same bits for any number of workers and on every run.

    A pass over the loader starts its threads at the first batch and ends them with the last, at an error, or when the
    iterator is closed. Under Lightning each pass draws the epoch that Lightning sets; elsewhere each pass draws the
    next one. Its position is part of Lightning's checkpoints, so a resumed run goes on with the batch after the last
    one that was delivered.

    A sampler with `draws_own_seeds`, such as GraphSAINT's, is given seeds as any other, and what it draws is the batch:
    the input nodes among its nodes become the seeds.

    Args:
        sampler: Draws the subgraphs.
        builder: Slices the graph's attributes to them.
        input_nodes: Seeds, global ids of shape ``(S,)``.
        order: Which seeds stand in which batch.
        num_workers: Threads that prepare batches; 0 prepares each batch when it is asked for.
        prefetch_factor: Batches prepared ahead, per worker.
        transforms: Applied to each subgraph between sampling and slicing, in this order.
        redraw: Whether each epoch draws other neighbours; evaluation keeps them.
        input_time: The time of each seed, shape ``(S,)``, for a temporal sampler; None takes its nodes' own.

    Raises:
        ValueError: If `num_workers` is negative, `prefetch_factor` below 1, or `input_nodes` empty.
    """

    def __init__(
        self,
        sampler: NodeSampler,
        builder: BatchBuilder,
        input_nodes: NDArray[np.integer],
        order: SeedOrder,
        *,
        num_workers: int = 2,
        prefetch_factor: int = 2,
        transforms: Sequence[SubgraphTransform] = (),
        redraw: bool = True,
        input_time: NDArray[Any] | None = None,
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"`num_workers` must be 0 or more, but got {num_workers}. HINT: 0 uses no threads.")
        if prefetch_factor < 1:
            raise ValueError(
                f"`prefetch_factor` must be at least 1, but got {prefetch_factor}."
                " HINT: `num_workers=0` prepares no batch ahead."
            )
        self.node_sampler = sampler
        self.builder = builder
        self.input_nodes = sampler.check_seeds(input_nodes)
        self.input_time = input_time
        self._own_seeds = OwnSeeds(sampler, self.input_nodes) if getattr(sampler, "draws_own_seeds", False) else None
        self.order = order
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.transforms = tuple(transforms)
        self.redraw = redraw
        # Lightning reads these two as it does on a DataLoader; batches are cut by `order`, not by a batch sampler.
        self.batch_sampler = None
        self.sampler = EpochSampler(order) if order.shuffle else FixedSampler(order)
        self.stats = LoaderStats()
        self._delivered = (0, 0)  # an epoch, and how many of its batches were delivered
        self._resumed = False

    @property
    def batch_size(self) -> int:
        """Seeds per batch; groups of seeds, if `order` shuffles groups."""
        return self.order.batch_size

    def __len__(self) -> int:
        """Batches per epoch (on this rank)."""
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Data]:
        """Deliver one epoch's batches, from the first one that was not yet delivered if the loader was resumed."""
        epoch = self.sampler.current_epoch
        # Lightning may start another epoch than the one that was resumed, if `limit_train_batches` ended that early.
        start = self._num_delivered(epoch) if self._resumed else 0
        self._resumed, self._delivered = False, (epoch, start)
        seed_order = self.order.epoch(epoch)

        def prepare(index: int) -> tuple[Data, LoaderStats]:
            try:
                return self._prepare(epoch, index, self.order.batch(seed_order, index))
            except Exception as error:
                error.add_note(f"This happened while batch {index} of epoch {epoch} was prepared.")
                raise

        prefetch = OrderedPrefetch(
            prepare,
            range(start, len(self)),
            num_workers=self.num_workers,
            max_ahead=max(1, self.num_workers * self.prefetch_factor),
        )
        with closing(iter(prefetch)) as batches:
            asked = time.perf_counter()
            for index, (batch, stats) in enumerate(batches, start):
                stats.wait_s = time.perf_counter() - asked
                self.stats += stats
                self._delivered = (epoch, index + 1)
                yield batch
                asked = time.perf_counter()
        if self.sampler.current_epoch == epoch:
            self.sampler.set_epoch(epoch + 1)

    def _prepare(self, epoch: int, index: int, input_id: NDArray[np.int64]) -> tuple[Data, LoaderStats]:
        seeds = self.input_nodes[input_id]
        order = self.order
        key = SampleKey(order.seed, epoch if self.redraw else 0, index * order.world_size + order.rank)

        sample = self.node_sampler.sample if self._own_seeds is None else self._own_seeds.sample
        # A sampler that knows no times need not take any.
        options = {} if self.input_time is None else {"time": self.input_time[input_id]}

        def resample(attempt: int) -> Subgraph:
            return sample(seeds, key._replace(attempt=attempt), **options)

        started = time.perf_counter()
        subgraph = resample(0)
        for transform in self.transforms:
            subgraph = transform(subgraph, resample)
        if self._own_seeds is not None:
            input_id = self._own_seeds.input_id(subgraph)
        sampled = time.perf_counter()
        batch = self.builder.build(subgraph, input_id)
        return batch, LoaderStats(
            batches=1,
            nodes=subgraph.num_nodes,
            edges=subgraph.num_edges,
            sample_s=sampled - started,
            slice_s=time.perf_counter() - sampled,
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the epoch and the number of its batches that were delivered."""
        epoch = self.sampler.current_epoch
        return {"epoch": epoch, "batch": self._num_delivered(epoch)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last delivered batch; a finished epoch is followed by the next one."""
        epoch, batch = int(state["epoch"]), int(state["batch"])
        self.sampler.set_epoch(epoch + 1 if batch >= len(self) else epoch)
        self._delivered, self._resumed = (epoch, batch), True

    def _num_delivered(self, epoch: int) -> int:
        return self._delivered[1] if self._delivered[0] == epoch else 0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.node_sampler!r}, batch_size={self.batch_size},"
            f" batches={len(self)}, num_workers={self.num_workers})"
        )
