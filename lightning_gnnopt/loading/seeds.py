"""Which seeds stand in which batch: shuffled per epoch, cut per rank, the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler, SequentialSampler
from typing_extensions import override

from lightning_gnnopt.sampling import SampleKey


class SeedOrder:
    """The order of a loader's seeds, as a pure function of ``(seed, epoch)``.

    Every rank draws the same order and takes every ``world_size``-th seed of it. A shuffled (training) order is padded
    by wrapping around, so that all ranks run the same number of batches; an evaluation order is not, so that no node
    is judged twice.

    Args:
        num_seeds: Number of seeds over all ranks.
        batch_size: Seeds per batch and rank.
        shuffle: Whether to permute the seeds anew in each epoch.
        drop_last: Whether to leave out a last batch that is smaller than the others.
        seed: The run's seed.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: If `batch_size` is below 1, or `drop_last` leaves no batch.
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
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        if drop_last and self.num_local < batch_size:
            raise ValueError(
                f"`drop_last=True` leaves no batch: there are {self.num_local:,} {self._unit}"
                f" but `{self._size_name}` is {batch_size:,}."
                f" HINT: lower `{self._size_name}` or set `drop_last=False`."
            )

    @property
    def num_local(self) -> int:
        """Seeds of this rank in one epoch."""
        if self.shuffle:
            return -(-self.num_seeds // self.world_size)
        return len(range(self.rank, self.num_seeds, self.world_size))

    def __len__(self) -> int:
        """Batches of this rank in one epoch."""
        return self.num_local // self.batch_size if self.drop_last else -(-self.num_local // self.batch_size)

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """Positions of this rank's seeds in one epoch.

        Args:
            epoch: Epoch number.

        Returns:
            Int64 array of shape ``(num_local,)``.
        """
        if not self.shuffle:
            return np.arange(self.rank, self.num_seeds, self.world_size, dtype=np.int64)
        order = SampleKey(self.seed, epoch).permutation(self.num_seeds)
        return np.resize(order, self.num_local * self.world_size)[self.rank :: self.world_size]

    def batch(self, order: NDArray[np.int64], index: int) -> NDArray[np.int64]:
        """Cut one batch out of an epoch's order, shape ``(B,)``."""
        return order[index * self.batch_size : (index + 1) * self.batch_size]


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
