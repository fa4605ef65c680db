from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.loading.groups import GroupOrder

group_lists = st.lists(st.integers(0, 9), min_size=1, max_size=40)


def batches(order: GroupOrder, epoch: int = 0) -> list[list[int]]:
    groups = order.epoch(epoch)
    return [order.batch(groups, index).tolist() for index in range(len(order))]


@settings(deadline=None, max_examples=200)
@given(group_lists, st.integers(1, 4), st.integers(1, 4), st.booleans(), st.booleans(), st.integers(0, 3))
def test_a_batch_is_all_seeds_of_its_groups_and_all_ranks_have_equally_many(
    groups: list[int], size: int, world_size: int, shuffle: bool, pad: bool, epoch: int
) -> None:
    found: list[int] = []
    lengths, repeated = set(), set()
    for rank in range(world_size):
        order = GroupOrder(np.array(groups), size, shuffle=shuffle, pad=pad, seed=3, rank=rank, world_size=world_size)
        lengths.add(len(order))
        repeated.add(order.num_repeated)
        for batch in batches(order, epoch):
            chosen = {groups[place] for place in batch}
            assert sorted(batch) == [place for place, group in enumerate(groups) if group in chosen]
            assert 1 <= len(chosen) <= size
            found += sorted(chosen)
    different = sorted(set(groups))
    assert set(found) == set(different)
    (length,) = lengths
    # Padding fills up the shares; otherwise a group comes twice only if there are fewer of them than batches.
    expected = -len(different) % world_size if pad else max(0, length * world_size - len(different))
    assert repeated == {expected}
    assert len(found) == len(different) + expected


def test_a_rank_with_a_group_less_has_as_many_batches() -> None:
    groups = np.array([0, 1, 2, 2, 3, 4])
    orders = [GroupOrder(groups, 2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [batches(order) for order in orders] == [[[0, 2, 3], [5]], [[1], [4]]]
    padded = [GroupOrder(groups, 2, pad=True, rank=rank, world_size=2) for rank in (0, 1)]
    assert [batches(order) for order in padded] == [[[0, 2, 3], [5]], [[1, 4], [0]]]


def test_groups_are_shuffled_by_seed_and_epoch_and_never_torn() -> None:
    groups = np.arange(40) % 10
    orders = [batches(GroupOrder(groups, 3, shuffle=True, seed=s), epoch) for s in (0, 1) for epoch in range(3)]
    assert len({str(order) for order in orders}) == 6
    assert orders[5] == batches(GroupOrder(groups, 3, shuffle=True, seed=1), 2)
    for order in orders:
        assert [len(batch) for batch in order] == [12, 12, 12, 4]
        assert sorted(place for batch in order for place in batch) == list(range(40))


def test_unshuffled_groups_go_by_their_number() -> None:
    assert batches(GroupOrder(np.array([8, 2, 8, 5, 2]), 1)) == [[1, 4], [3], [0, 2]]


def test_an_incomplete_last_batch_can_be_dropped() -> None:
    groups = np.array([0, 1, 1, 2, 2, 2])
    assert batches(GroupOrder(groups, 2, drop_last=True)) == [[0, 1, 2]]
    message = (
        "`drop_last=True` leaves no batch: there are 3 groups but `groups_per_batch` is 4."
        " HINT: lower `groups_per_batch` or set `drop_last=False`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GroupOrder(groups, 4, drop_last=True)


def test_a_size_below_one_is_refused() -> None:
    message = "`groups_per_batch` must be at least 1, but got 0. HINT: 1 puts each group into a batch of its own."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GroupOrder(np.array([0, 1]), 0)
