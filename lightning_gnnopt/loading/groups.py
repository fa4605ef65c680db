"""Batches of whole groups of seeds, for samplers that know which seeds belong together."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from lightning_gnnopt.loading.seeds import SeedOrder


class GroupOrder(SeedOrder):
    """The order of groups of seeds; a batch is all seeds of `groups_per_batch` groups.

    Groups are shuffled, shared among ranks, wrapped around and counted as `SeedOrder` does it with seeds, so that all
    ranks have equally many batches. Groups without a seed are left out. Batches differ in size as their groups do.

    Args:
        groups: The group of each seed, integers of shape ``(S,)``.
        groups_per_batch: Groups per batch and rank.
        shuffle: Whether to permute the groups anew in each epoch; they go by their number otherwise.
        drop_last: Whether to leave out a last batch of fewer groups than the others.
        pad: Whether to fill up the ranks' shares to the same number of groups instead of having each group once; by
            default as `shuffle` says.
        seed: The run's seed.
        rank: This process.
        world_size: Number of processes.

    Raises:
        ValueError: If `groups_per_batch` is below 1, or `drop_last` leaves no batch.

    Examples:
        >>> order = GroupOrder(np.array([7, 3, 7, 5]), groups_per_batch=2)
        >>> [order.batch(order.epoch(0), index).tolist() for index in range(len(order))]
        [[1, 3], [0, 2]]
    """

    _unit: ClassVar[str] = "groups"
    _size_name: ClassVar[str] = "groups_per_batch"
    _size_hint: ClassVar[str] = "1 puts each group into a batch of its own."

    def __init__(
        self,
        groups: NDArray[np.integer],
        groups_per_batch: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        pad: bool | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        # The seeds of group g are members[starts[g]:starts[g] + sizes[g]], as they stand among all seeds.
        self._members = np.argsort(group_of, kind="stable")
        self._sizes = sizes
        self._starts = np.cumsum(sizes) - sizes
        super().__init__(
            len(sizes),
            groups_per_batch,
            shuffle=shuffle,
            drop_last=drop_last,
            pad=pad,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )

    @override
    def batch(self, order: NDArray[np.int64], index: int) -> NDArray[np.int64]:
        """Cut one batch out of an epoch's groups: the positions of their seeds, group by group, shape ``(B,)``."""
        groups = super().batch(order, index)
        sizes = self._sizes[groups]
        shifts = self._starts[groups] - (np.cumsum(sizes) - sizes)
        positions: NDArray[np.int64] = self._members[np.repeat(shifts, sizes) + np.arange(sizes.sum())]
        return positions
