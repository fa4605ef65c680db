"""PrefetchLoader: batches are sampled, sliced and on the device before the training step asks for them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading.pipeline import BatchPipeline, PipelineOptions, Stages
from lightning_gnnopt.loading.placement import HostPlacement, Placement
from lightning_gnnopt.loading.seeds import EpochSampler, FixedSampler, SeedOrder
from lightning_gnnopt.loading.sources import BatchSource
from lightning_gnnopt.loading.stats import LoaderStats
from lightning_gnnopt.loading.transform import SubgraphTransform
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

    Args:
        source: What the batches are made from.
        order: Which inputs stand in which batch.
        num_workers: Threads that prepare batches, each a whole batch; 0 prepares each batch when it is asked for.
        prefetch_factor: Batches prepared ahead, per worker.
        max_bytes_in_flight: Bytes of the batches that are being written or wait to be asked for, all together, as a
            number or with a unit (``"2GiB"``); a batch that is larger goes alone. None counts batches only.
        timeout_s: Seconds without a sign of the worker whose batch is due after which a `TimeoutError` names it; None
            waits for ever.
        transforms: Applied to each subgraph between sampling and slicing, in this order.
        redraw: Whether each epoch draws other neighbours; evaluation keeps them.
        placement: Where the batches go, `HostPlacement` by default; `DevicePlacement` brings them to a device.

    Raises:
        ValueError: If an option is out of its range.
    """

    def __init__(
        self,
        source: BatchSource,
        order: SeedOrder,
        *,
        num_workers: int = 2,
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
        self.transforms = tuple(transforms)
        self.redraw = redraw
        self.placement = HostPlacement() if placement is None else placement
        # Lightning reads these two as it does on a DataLoader; batches are cut by `order`, not by a batch sampler.
        self.batch_sampler = None
        self.sampler = EpochSampler(order) if order.shuffle else FixedSampler(order)
        self._stats = LoaderStats()
        self._pipeline: BatchPipeline | None = None
        self._delivered = (0, 0)  # an epoch, and how many of its batches were delivered
        self._resumed = False

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
        """Threads that prepare batches."""
        return self.options.num_workers

    @property
    def prefetch_factor(self) -> int:
        """Batches prepared ahead, per worker."""
        return self.options.prefetch_factor

    def __len__(self) -> int:
        """Batches per epoch (on this rank)."""
        return len(self.order)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws."""
        self.sampler.set_epoch(epoch)

    def __iter__(self) -> Generator[Data | HeteroData, None, None]:
        """Deliver one epoch's batches, from the first one that was not yet delivered if the loader was resumed."""
        epoch = self.sampler.current_epoch
        # Lightning may start another epoch than the one that was resumed, if `limit_train_batches` ended that early.
        start = self._num_delivered(epoch) if self._resumed else 0
        self._resumed, self._delivered = False, (epoch, start)
        if self._pipeline is not None:  # Lightning does not ask for a batch too many, so its last pass did not end
            self._stats.transfer_s += self._pipeline.transfers_s(wait=True)
        self._pipeline = BatchPipeline(
            self._stages(epoch), range(start, len(self)), options=self.options, placement=self.placement
        )
        with closing(iter(self._pipeline)) as batches:
            for index, (placed, stats) in enumerate(batches, start):
                self._stats += stats
                self._delivered = (epoch, index + 1)
                yield placed.take()  # and keep no reference: the consumer decides when the batch goes
        if self.sampler.current_epoch == epoch:
            self.sampler.set_epoch(epoch + 1)

    def warm_up(self) -> None:
        """Prepare the first batch and drop it, so that no kernel is compiled while training waits.

        Transforms are left out: they may keep count of what they see.
        """
        stages = self._stages(self.sampler.current_epoch, transforms=())
        if len(self):
            plan = stages.plan(0, stages.sample(0))
            self.placement.expect(self.options.max_ahead, self.options.max_bytes)
            self.placement.place(plan).take()

    def _stages(self, epoch: int, *, transforms: Sequence[SubgraphTransform] | None = None) -> Stages:
        order, source = self.order, self.source
        transforms = self.transforms if transforms is None else transforms
        seed_order = order.epoch(epoch)

        def inputs(index: int) -> NDArray[np.int64]:
            return order.batch(seed_order, index)

        def sample(index: int) -> Any:
            input_id = inputs(index)
            key = SampleKey(order.seed, epoch if self.redraw else 0, index * order.world_size + order.rank)
            return transformed(lambda attempt: source.sample(input_id, key._replace(attempt=attempt)))

        def transformed(resample: Callable[[int], Any]) -> Any:
            sampled = resample(0)
            for transform in transforms:
                sampled = transform(sampled, resample)
            return sampled

        return Stages(
            sample=sample,
            plan=lambda index, sampled: source.plan(sampled, inputs(index)),
            describe=lambda index: f"batch {index} of epoch {epoch}",
        )

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: the epoch and the number of its batches that were delivered.

        With it, what its batches depend on, to tell if a loader that goes on from there would draw others.
        """
        epoch = self.sampler.current_epoch
        return {"epoch": epoch, "batch": self._num_delivered(epoch), **self._order_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last delivered batch; a finished epoch is followed by the next one.

        Raises:
            ValueError: If the state is of the middle of an epoch whose batches were others than this loader's.
        """
        epoch, batch = int(state["epoch"]), int(state["batch"])
        own = self._order_state()
        others = {name: (state[name], value) for name, value in own.items() if state.get(name, value) != value}
        if others and 0 < batch < int(state.get("num_batches", len(self))):
            changes = ", ".join(f"`{name}` {was} (now {now})" for name, (was, now) in others.items())
            raise ValueError(
                f"The checkpoint was saved after batch {batch} of epoch {epoch} of a loader with {changes}: the rest of"
                " that epoch cannot be told from what was trained already. HINT: resume with the same settings, or from"
                " a checkpoint saved at the end of a whole epoch (`limit_train_batches` cuts epochs)."
            )
        finished = batch >= int(state.get("num_batches", len(self)))
        self.sampler.set_epoch(epoch + 1 if finished else epoch)
        self._delivered, self._resumed = (epoch, len(self) if finished else batch), True

    def _order_state(self) -> dict[str, Any]:
        order = self.order
        return {
            "num_batches": len(self),
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
            f" batches={len(self)}, num_workers={self.num_workers})"
        )
