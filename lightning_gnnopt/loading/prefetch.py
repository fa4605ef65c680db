"""PrefetchLoader: batches are sampled, sliced and on the device before the training step asks for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import lightning as L
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading.pipeline import AUTO, BatchPipeline, PipelineOptions
from lightning_gnnopt.loading.placement import HostPlacement, Placement
from lightning_gnnopt.loading.returned import EpochBatches, check_state, epoch_stages, refuse_returning, trainer_calls
from lightning_gnnopt.loading.seeds import EpochSampler, FixedSampler, SeedOrder
from lightning_gnnopt.loading.sources import BatchSource
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.transform import SubgraphTransform
from lightning_gnnopt.loading.worker_choice import StretchClock, WorkerChoice
from lightning_gnnopt.sampling import SampleKey


class PrefetchLoader:
    """Yields sampled batches in order; they are the same bits for any number of workers and on every run.

    A pass over the loader starts its threads at the first batch and ends them with the last, at an error, or when the
    iterator is closed. Under Lightning each pass draws the epoch that Lightning sets; elsewhere each pass draws the
    one after the last that came to its end. Its position is part of Lightning's checkpoints, so a resumed run goes on
    with the batch after the last one that was delivered.

    A batch is the consumer's for as long as it keeps one of its tensors: ``list(loader)`` holds as many batches as
    it says. The large tensors of a batch share one reused buffer, which is free again when the last of them is dropped;
    small ones, such as labels and ids, have memory of their own. On a device this goes by the stream
    that was current when the batch was asked for; work on other streams has to be waited for before a batch is
    dropped.

    If a transform `returns_seeds`, how many batches an epoch has is known only at its end: there is no length then.
    `len(loader.order)` is the number of batches before those of the inputs that were left out.

    Args:
        source: What the batches are made from.
        order: Which inputs stand in which batch.
        num_workers: Threads that prepare batches, each a whole batch; 0 prepares each batch when it is asked for.
            ``"auto"`` tries both out, on some hundred batches, and goes on with what is faster.
        prefetch_factor: Batches prepared ahead, per worker.
        max_bytes_in_flight: Bytes of the batches that are being written or wait to be asked for, all together, as a
            number or with a unit (``"2GiB"``); a batch that is larger goes alone. None counts batches only.
        timeout_s: Seconds without a sign of the worker whose batch is due after which a `TimeoutError` names it; None
            waits for ever.
        transforms: Applied to each subgraph between sampling and slicing, in this order.
        redraw: Whether each epoch draws other neighbours; evaluation keeps them.
        placement: Where the batches go, `HostPlacement` by default; `DevicePlacement` brings them to a device.

    Attributes:
        worker_choice: What ``num_workers="auto"`` has found out; None without it, and on a device.
        agree: Maps a number of this rank to the largest of all ranks, which call it at the same points of an epoch;
            needed where a transform `returns_seeds` and there are several ranks. :meth:`follow` sets these three.
        gather: Makes a list of a value of each rank; called by `state_dict` where a transform `returns_seeds`. Without
            it only the rank whose state was saved can go on in the middle of an epoch.
        num_used: Counts the batches that the consumer has begun with; `state_dict` leaves out any fetched ahead.

    Raises:
        ValueError: If an option is out of its range, or a transform `returns_seeds` where no input can be left out.
    """

    def __init__(
        self,
        source: BatchSource,
        order: SeedOrder,
        *,
        num_workers: int | str = 2,
        prefetch_factor: int = 2,
        max_bytes_in_flight: int | str | None = "2GiB",
        timeout_s: float | None = 600.0,
        transforms: Sequence[SubgraphTransform] = (),
        redraw: bool = True,
        placement: Placement | None = None,
    ) -> None:
        self.options = PipelineOptions(
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            max_bytes_in_flight=max_bytes_in_flight,
            timeout_s=timeout_s,
        )
        self.source = source
        self.order = order
        self.transforms: tuple[SubgraphTransform, ...] = ()
        for transform in transforms:
            self.add_transform(transform)
        self.redraw = redraw
        self.placement = HostPlacement() if placement is None else placement
        # Lightning reads these two as it does on a DataLoader; batches are cut by `order`, not by a batch sampler.
        self.batch_sampler = None
        self.sampler = EpochSampler(order) if order.shuffle else FixedSampler(order)
        # Where a device computes, the host's cores are free.
        tries = num_workers == AUTO and isinstance(self.placement, HostPlacement)
        self.worker_choice = WorkerChoice(self.options.threads) if tries else None
        self._stats = LoaderStats()
        self._pipeline: BatchPipeline | None = None
        self._delivered = (0, 0)  # an epoch, and how many of its batches were delivered
        self._not_of_pass = 0  # of what `num_used` counts
        self._resumed = False
        self._batches: EpochBatches | None = None  # of the pass that runs, or was loaded
        self._planned: EpochBatches | None = None  # of the epoch that was drawn from last without a pass
        self.agree: Callable[[int], int] | None = None
        self.gather: Callable[[Any], Sequence[Any]] | None = None
        self.num_used: Callable[[], int] | None = None

    @property
    def stats(self) -> LoaderStats:
        """What was counted so far; transfers that have not ended yet come in later."""
        if self._pipeline is not None:
            self._stats.transfer_s += self._pipeline.transfers_s()
        return self._stats

    @property
    def batch_size(self) -> int:
        """Inputs per batch; groups of seeds, if `order` shuffles groups."""
        return self.order.batch_size

    @property
    def num_workers(self) -> int:
        """Threads that prepare batches; of ``"auto"``, those that were chosen or, as long as none are, those tried."""
        return self.options.threads if self.worker_choice is None else self.worker_choice.num_workers

    @property
    def prefetch_factor(self) -> int:
        """Batches prepared ahead, per worker."""
        return self.options.prefetch_factor

    @property
    def returns_seeds(self) -> bool:
        """Whether a transform may leave out inputs, which come back at the end of the epoch."""
        return any(getattr(transform, "returns_seeds", False) for transform in self.transforms)

    def __len__(self) -> int:
        """Batches per epoch (on this rank); a `TypeError` if a transform `returns_seeds`."""
        if self.returns_seeds:
            raise TypeError(
                "A `PrefetchLoader` has no length if one of its `transforms` returns seeds: what is left out comes back"
                f" in further batches. HINT: `len(loader.order)` counts the others, {len(self.order):,}."
            )
        return len(self.order)

    def add_transform(self, transform: SubgraphTransform) -> None:
        """Apply one more transform, after the others, from the next pass on; a running one keeps what it started with.

        Raises:
            ValueError: If it `returns_seeds` and batches cannot do without some of theirs.
        """
        if getattr(transform, "returns_seeds", False):
            refuse_returning(self.order, self.source)
        self.transforms = (*self.transforms, transform)

    def remove_transform(self, transform: SubgraphTransform) -> None:
        """Apply this very transform no more from the next pass on; nothing is done if it is not there."""
        self.transforms = tuple(other for other in self.transforms if other is not transform)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws."""
        self.sampler.set_epoch(epoch)

    def follow(self, trainer: L.Trainer) -> None:
        """Be told which Trainer trains on this loader, before it asks for a batch; needed where there is no length.

        It then fetches a batch ahead, a run's first one before it sets the epoch, and its ranks have to agree.
        """
        self.set_epoch(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        self.num_used, self.agree, self.gather = trainer_calls(trainer)

    def __iter__(self) -> Generator[Data | HeteroData, None, None]:
        """Deliver one epoch's batches, from the first one that was not yet delivered if the loader was resumed."""
        epoch, returns_seeds = self.sampler.current_epoch, self.returns_seeds
        # Lightning may start another epoch than was resumed, if `limit_train_batches` ended that early.
        start = self._num_delivered(epoch) if self._resumed else 0
        if not self._resumed or self._batches is None or self._batches.epoch != epoch:
            self._batches = EpochBatches(self.order, epoch)
        self._resumed, self._delivered = False, (epoch, start)
        self._not_of_pass = (0 if self.num_used is None else self.num_used()) - start
        if returns_seeds and self.order.world_size > 1 and self.agree is None:
            raise ValueError(
                f"`agree` must be set where a transform returns seeds on one of {self.order.world_size} ranks, which"
                " would make different numbers of steps, but it is None. HINT: `follow(trainer)` sets it."
            )
        stages = epoch_stages(self._batches, self.source, self.transforms, partial(self._key, epoch))
        for numbers in self._batches.rounds(start, agree=self.agree if returns_seeds else None):
            for stretch, options, clock in self._stretches(numbers):
                if self._pipeline is not None:  # Lightning asks for no batch too many, so its last pass did not end
                    self._stats.transfer_s += self._pipeline.transfers_s(wait=True)
                self._pipeline = BatchPipeline(stages, stretch, options=options, placement=self.placement)
                with closing(iter(self._pipeline)) as batches:
                    for index, (placed, stats) in enumerate(batches, stretch.start):
                        self._stats += stats
                        self._delivered = (epoch, index + 1)
                        if clock is not None:
                            clock.delivered(time.perf_counter())
                        yield placed.take()  # and keep no reference: the consumer decides when the batch goes
        if self.sampler.current_epoch == epoch:
            self.sampler.set_epoch(epoch + 1)

    def _stretches(self, numbers: range) -> Iterator[tuple[range, PipelineOptions, StretchClock | None]]:
        """Divide a round's batches into those that one pipeline prepares; all of them, unless threads are tried out."""
        choice = self.worker_choice
        if choice is None:
            yield numbers, self.options, None
            return
        for stretch in choice.stretches(numbers):
            options = replace(self.options, num_workers=stretch.workers)
            yield stretch.numbers, options, StretchClock(choice, stretch, time.perf_counter())

    def warm_up(self) -> None:
        """Prepare the first batch and drop it, so that no kernel is compiled while training waits.

        Transforms are left out: they may keep count of what they see.
        """
        if len(self.order):
            self.draw(len(self._planned_of(self.sampler.current_epoch).inputs(0)))

    def sample(self, index: int, epoch: int | None = None) -> Any:
        """Draw one of an epoch's planned batches without building it, and without transforms.

        The epoch is by default the one that the next pass draws.

        Raises:
            IndexError: If the epoch has no batch of this number.
        """
        if not 0 <= index < len(self.order):
            raise IndexError(
                f"`index` must be from 0 to {len(self.order) - 1}, the last batch, but got {index}."
                " HINT: batches of inputs that were left out cannot be drawn alone."
            )
        epoch = self.sampler.current_epoch if epoch is None else epoch
        return self.source.sample(self._planned_of(epoch).inputs(index), self._key(epoch, index))

    def draw(self, num_inputs: int, *, attempt: int = 0) -> tuple[Any, Data | HeteroData]:
        """Draw and build a batch around the first inputs of the epoch that the next pass draws, without transforms.

        The loader's place, its epoch and its statistics stay as they are.

        Args:
            num_inputs: How many inputs; all of the epoch's if it has fewer.
            attempt: The attempt, from 0, as a transform's `resample` numbers them.

        Returns:
            What was sampled and the batch, which is where other batches go.

        Raises:
            ValueError: If `num_inputs` is below 1.
        """
        if num_inputs < 1:
            raise ValueError(f"`num_inputs` must be at least 1, but got {num_inputs}. HINT: 1 is the smallest batch.")
        epoch = self.sampler.current_epoch
        input_id = self._planned_of(epoch).first(num_inputs)
        sampled = self.source.sample(input_id, self._key(epoch, 0)._replace(attempt=attempt))
        self.placement.expect(self.options.max_ahead, self.options.max_bytes)
        return sampled, self.placement.place(self.source.plan(sampled, input_id)).take()

    def _planned_of(self, epoch: int) -> EpochBatches:
        if self._planned is None or self._planned.epoch != epoch:
            self._planned = EpochBatches(self.order, epoch)
        return self._planned

    def _key(self, epoch: int, index: int) -> SampleKey:
        number = index * self.order.world_size + self.order.rank
        return SampleKey(self.order.seed, epoch if self.redraw else 0, number)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the epoch, the number of its batches that were delivered and what they left out.

        With it, what its batches depend on, to tell if a loader that goes on from there would draw others.
        """
        epoch = self.sampler.current_epoch
        batch = self._num_delivered(epoch)
        if self.num_used is not None and not self._resumed:
            batch = min(batch, self.num_used() - self._not_of_pass)
        state = {"epoch": epoch, "batch": batch, **self._order_state()}
        batches = self._batches
        if self.returns_seeds or (batches is not None and batches.has_left_out):
            kept, rounds = ({}, []) if batches is None or batches.epoch != epoch else batches.state(batch)
            ranks = {self.order.rank: kept} if self.gather is None else dict(enumerate(self.gather(kept)))
            state.update(kept=ranks, rounds=rounds)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last delivered batch; a finished epoch is followed by the next one.

        Raises:
            ValueError: If the state is of the middle of an epoch whose batches were others than this loader's.
        """
        is_over = check_state(state, self._order_state(), rank=self.order.rank, returns_seeds=self.returns_seeds)
        epoch = int(state["epoch"])
        self.sampler.set_epoch(epoch + 1 if is_over else epoch)
        self._delivered, self._resumed = (epoch, len(self.order) if is_over else int(state["batch"])), True
        if not is_over:
            kept = state.get("kept", {}).get(self.order.rank)
            self._batches = EpochBatches(self.order, epoch, kept=kept, rounds=state.get("rounds", []))

    def _order_state(self) -> dict[str, Any]:
        order = self.order
        return {
            "num_batches": len(order),
            "num_inputs": self.source.num_inputs,
            "batch_size": order.batch_size,
            "seed": order.seed,
            "world_size": order.world_size,
            "shuffle": order.shuffle,
            "pad": order.pad,
        }

    def _num_delivered(self, epoch: int) -> int:
        return self._delivered[1] if self._delivered[0] == epoch else 0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.source!r}, batch_size={self.batch_size},"
            f" batches={len(self.order)}{'+' * self.returns_seeds}, num_workers={self.num_workers})"
        )
