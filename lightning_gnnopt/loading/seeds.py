"""Which seeds stand in which batch: shuffled per epoch, cut per rank, the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler
from typing_extensions import override

from lightning_gnnopt.sampling import SampleKey


class SeedOrder:
    """The order of a loader's seeds, as a pure function of ``(seed, epoch)``.

    Every rank draws the same order, takes every ``world_size``-th seed of it, and has as many batches as any other
    rank: DDP waits for ever for one that has less. A padded (training) order is wrapped around, so that all ranks have
    the same number of seeds. In one that is not padded (evaluation) each seed stands once, and shares differ by one
    seed at most. Where one seed less would be one batch less, the last full batch leaves a seed for one more. Only if
    there are not enough seeds for that, the ranks concerned repeat one: see :attr:`num_repeated`.

    Args:
        num_seeds: Number of seeds over all ranks.
        batch_size: Seeds per batch and rank.
        shuffle: Whether to permute the seeds anew in each epoch.
        drop_last: Whether to leave out a last batch that is smaller than the others.
        pad: Whether to fill up the ranks' shares to the same size instead of having each seed once; by default as
            `shuffle` says.
        seed: The run's seed.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: If `batch_size` is below 1, or `drop_last` leaves no batch.

    Examples:
        >>> orders = [SeedOrder(9, 4, rank=rank, world_size=2) for rank in (0, 1)]
        >>> [[order.batch(order.epoch(0), index).tolist() for index in range(len(order))] for order in orders]
        [[[0, 2, 4, 6], [8]], [[1, 3, 5], [7]]]
    """

    # What is counted, for error messages.
    _unit: ClassVar[str] = "seeds"
    _size_name: ClassVar[str] = "batch_size"
    _size_hint: ClassVar[str] = "1024 is a common size for sampled graphs."

    def __init__(
        self,
        num_seeds: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        pad: bool | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"`{self._size_name}` must be at least 1, but got {batch_size}. HINT: {self._size_hint}")
        self.num_seeds = num_seeds
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.pad = shuffle if pad is None else pad
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        if drop_last and not len(self):
            raise ValueError(
                f"`drop_last=True` leaves no batch: there are {self._smallest_share:,} {self._unit}"
                f" but `{self._size_name}` is {batch_size:,}."
                f" HINT: lower `{self._size_name}` or set `drop_last=False`."
            )

    @property
    def _largest_share(self) -> int:
        return -(-self.num_seeds // self.world_size)

    @property
    def _smallest_share(self) -> int:
        return self._largest_share if self.pad else self.num_seeds // self.world_size

    @property
    def num_local(self) -> int:
        """Seeds of this rank in one epoch."""
        if self.pad:
            return self._largest_share
        return max(len(range(self.rank, self.num_seeds, self.world_size)), len(self))

    @property
    def num_repeated(self) -> int:
        """Places of an epoch, over all ranks, that hold a seed which stands in it already.

        In an order that is not padded it is 0, unless there are fewer seeds than ranks or `batch_size` is 1.
        """
        if self.pad:
            return -self.num_seeds % self.world_size
        return max(0, len(self) * self.world_size - self.num_seeds)  # a seed for each batch, and no more

    def __len__(self) -> int:
        """Batches of each rank in one epoch."""
        if self.drop_last:
            return self._smallest_share // self.batch_size
        return -(-self._largest_share // self.batch_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions of this rank's seeds in one epoch.

        Args:
            epoch: Epoch number.

        Returns:
            Int64 array of shape ``(num_local,)``.
        """
        end = self._largest_share * self.world_size if self.pad else self.num_seeds
        places = np.arange(self.rank, end, self.world_size, dtype=np.int64)
        if end > self.num_seeds:
            places %= self.num_seeds
        if len(places) < self.num_local:  # by one: a seed of its own again or, if it has none, the first of all
            places = np.append(places, places[:1] if len(places) else np.int64(0))
        return SampleKey(self.seed, epoch).permutation(self.num_seeds)[places] if self.shuffle else places

    def batch(self, order: NDArray[np.int64], index: int) -> NDArray[np.int64]:
        """Cut one batch out of an epoch's order, shape ``(B,)``."""
        return order[self._start(index) : self._start(index + 1)]

    def _start(self, index: int) -> int:
        """Where a batch starts: after full ones, but so early that each batch from it on gets a seed."""
        return min(index * self.batch_size, self.num_local - (len(self) - index))


class EpochSampler(Sampler[int]):
    """What Lightning looks for on a loader: it calls `set_epoch` on ``loader.sampler`` before each epoch."""

    def __init__(self, order: SeedOrder) -> None:
        self._order = order
        self.current_epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next pass draws."""
        self.current_epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self._order.epoch(self.current_epoch).tolist())

    def __len__(self) -> int:
        return self._order.num_local


class FixedSampler(SequentialSampler, EpochSampler):
    """The same for seeds in their own order, recognised as unshuffled by Lightning."""

    def __init__(self, order: SeedOrder) -> None:
        EpochSampler.__init__(self, order)
        self.data_source = range(order.num_local)

    @override
    def __iter__(self) -> Iterator[int]:
        return EpochSampler.__iter__(self)

    @override
    def __len__(self) -> int:
        return EpochSampler.__len__(self)


def warn_of_repeats(order: SeedOrder, stage: str) -> None:
    """Say which inputs of an evaluation are judged twice, if any."""
    if not order.pad and order.num_repeated:
        rank_zero_warn(
            f"{order.num_repeated} inputs of {stage!r} are judged twice, so that all {order.world_size} processes"
            f" make {len(order)} steps: there are only {order.num_seeds}. HINT: evaluate on fewer devices or"
            " with a larger `eval_batch_size`."
        )
