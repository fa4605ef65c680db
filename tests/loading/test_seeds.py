from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from lightning_gnnopt.loading.seeds import EpochSampler, FixedSampler, SeedOrder
from lightning_gnnopt.sampling import SampleKey

sizes = st.integers(0, 60)
batch_sizes = st.integers(1, 20)
world_sizes = st.integers(1, 5)
flags = st.booleans()


def ranks(num_seeds: int, batch_size: int, world_size: int, **kwargs: Any) -> list[SeedOrder]:
    return [
        SeedOrder(num_seeds, batch_size, rank=rank, world_size=world_size, seed=3, **kwargs)
        for rank in range(world_size)
    ]


def batches(order: SeedOrder, epoch: int = 0) -> list[list[int]]:
    positions = order.epoch(epoch)
    assert positions.dtype == np.int64
    assert len(positions) == order.num_local
    return [order.batch(positions, index).tolist() for index in range(len(order))]


def flat(nested: list[list[Any]]) -> list[Any]:
    return [item for part in nested for item in part]


def fewest_batches(num_seeds: int, batch_size: int, world_size: int) -> int:
    """How many batches each rank needs at least, so that all of them together hold every seed."""
    return next(count for count in range(num_seeds + 1) if count * batch_size * world_size >= num_seeds)


@settings(deadline=None, max_examples=300)
@given(sizes, batch_sizes, world_sizes, flags, st.integers(0, 5))
def test_evaluation_judges_every_seed_once_in_equally_many_batches(
    num_seeds: int, batch_size: int, world_size: int, shuffle: bool, epoch: int
) -> None:
    orders = ranks(num_seeds, batch_size, world_size, shuffle=shuffle, pad=False)
    of_ranks = [batches(order, epoch) for order in orders]
    count = fewest_batches(num_seeds, batch_size, world_size)
    assert [len(rank) for rank in of_ranks] == [count] * world_size
    assert all(1 <= len(batch) <= batch_size for rank in of_ranks for batch in rank)
    assert [batches(order, epoch) for order in orders] == of_ranks
    judged = Counter(flat(flat(of_ranks)))
    assert set(judged) == set(range(num_seeds))
    # With fewer seeds than batches there is no way around judging one twice; otherwise none is.
    repeated = max(0, count * world_size - num_seeds)
    assert judged.total() - num_seeds == repeated
    assert {order.num_repeated for order in orders} == {repeated}
    shares = [len(flat(rank)) for rank in of_ranks]
    assert shares == [order.num_local for order in orders]
    assert max(shares) - min(shares) <= 1
    # Batch by batch, ranks differ by one seed at most: none waits long for another.
    for same in zip(*of_ranks, strict=True):
        assert max(map(len, same)) - min(map(len, same)) <= 1


def test_evaluation_by_brute_force() -> None:
    """All small cases, in their own order: a rank has every n-th seed, and who lacks one repeats its own first."""
    for num_seeds, batch_size, world_size in itertools.product(range(14), range(1, 6), range(1, 6)):
        count = fewest_batches(num_seeds, batch_size, world_size)
        for rank, order in enumerate(ranks(num_seeds, batch_size, world_size)):
            own = list(range(num_seeds))[rank::world_size]
            expected = own if len(own) >= count else [*own, own[0] if own else 0]
            assert order.epoch(0).tolist() == expected
            of_rank = batches(order)
            assert flat(of_rank) == expected
            assert len(of_rank) == count
            assert all(1 <= len(batch) <= batch_size for batch in of_rank)


@settings(deadline=None, max_examples=300)
@given(sizes, batch_sizes, world_sizes, flags, st.integers(0, 5))
def test_training_covers_every_seed_in_equally_large_batches(
    num_seeds: int, batch_size: int, world_size: int, shuffle: bool, epoch: int
) -> None:
    orders = ranks(num_seeds, batch_size, world_size, shuffle=shuffle, pad=True)
    of_ranks = [batches(order, epoch) for order in orders]
    assert all(list(map(len, rank)) == list(map(len, of_ranks[0])) for rank in of_ranks)
    counts = Counter(flat(flat(of_ranks)))
    assert set(counts) == set(range(num_seeds))
    padding = -num_seeds % world_size
    assert counts.total() - num_seeds == padding
    assert {order.num_repeated for order in orders} == {padding}
    if padding <= num_seeds:
        assert max(counts.values(), default=0) <= 2


@settings(deadline=None, max_examples=300)
@given(sizes, batch_sizes, world_sizes, flags, flags)
def test_dropping_the_last_batch_leaves_equally_many_full_ones(
    num_seeds: int, batch_size: int, world_size: int, shuffle: bool, pad: bool
) -> None:
    fewest = -(-num_seeds // world_size) if pad else num_seeds // world_size  # seeds of the last rank
    kwargs = {"shuffle": shuffle, "pad": pad, "drop_last": True}
    if fewest < batch_size:
        for rank in range(world_size):
            with pytest.raises(ValueError, match=f"leaves no batch: there are {fewest} seeds"):
                SeedOrder(num_seeds, batch_size, rank=rank, world_size=world_size, **kwargs)
        return
    for order in ranks(num_seeds, batch_size, world_size, **kwargs):
        of_rank = batches(order)
        assert list(map(len, of_rank)) == [batch_size] * (fewest // batch_size)
        assert flat(of_rank) == order.epoch(0)[: len(flat(of_rank))].tolist()
        assert len(set(flat(of_rank))) == len(flat(of_rank))


@settings(deadline=None, max_examples=200)
@given(sizes, batch_sizes, flags, flags, st.sampled_from([None, False, True]))
def test_one_process_cuts_the_whole_order_in_pieces(
    num_seeds: int, batch_size: int, shuffle: bool, drop_last: bool, pad: bool | None
) -> None:
    drop_last = drop_last and num_seeds >= batch_size
    order = SeedOrder(num_seeds, batch_size, shuffle=shuffle, drop_last=drop_last, pad=pad, seed=3)
    whole = SampleKey(3, 2).permutation(num_seeds).tolist() if shuffle else list(range(num_seeds))
    pieces = [whole[first : first + batch_size] for first in range(0, num_seeds, batch_size)]
    if drop_last:
        pieces = [piece for piece in pieces if len(piece) == batch_size]
    assert batches(order, 2) == pieces
    assert order.num_local == num_seeds
    assert order.num_repeated == 0


def test_training_is_padded_by_default_and_evaluation_is_not() -> None:
    assert [SeedOrder(5, 2, shuffle=shuffle).pad for shuffle in (False, True)] == [False, True]
    assert SeedOrder(5, 2, rank=1, world_size=2, pad=True).epoch(0).tolist() == [1, 3, 0]
    assert SeedOrder(5, 2, rank=1, world_size=2).epoch(0).tolist() == [1, 3]


def test_a_rank_with_a_seed_less_splits_its_last_full_batch() -> None:
    first, second = ranks(17, 4, 2)
    assert batches(first) == [[0, 2, 4, 6], [8, 10, 12, 14], [16]]
    assert batches(second) == [[1, 3, 5, 7], [9, 11, 13], [15]]


@pytest.mark.parametrize(
    ("num_seeds", "batch_size", "repeated"), [(7, 1, 2), (2, 8, 1), (1, 1, 2), (6, 1, 0), (7, 2, 0)]
)
def test_seeds_are_repeated_only_where_they_do_not_suffice(num_seeds: int, batch_size: int, repeated: int) -> None:
    orders = ranks(num_seeds, batch_size, 3)
    assert [order.num_repeated for order in orders] == [repeated] * 3
    judged = flat([flat(batches(order)) for order in orders])
    assert len(judged) - len(set(judged)) == repeated


def test_each_epoch_and_each_seed_has_its_order() -> None:
    orders = [SeedOrder(50, 8, shuffle=True, seed=seed).epoch(epoch).tolist() for seed in (0, 1) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 10
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert SeedOrder(50, 8, shuffle=True, seed=1).epoch(4).tolist() == orders[-1]
    assert SeedOrder(50, 8, seed=1).epoch(4).tolist() == list(range(50))


def test_ranks_share_one_shuffled_order() -> None:
    whole = SeedOrder(10, 4, shuffle=True, seed=3).epoch(2)
    first, second, third = (order.epoch(2) for order in ranks(10, 4, 3, shuffle=True))
    assert first.tolist() == whole[[0, 3, 6, 9]].tolist()
    assert second.tolist() == whole[[1, 4, 7, 0]].tolist()  # wraps around: 12 places for 10 seeds
    assert third.tolist() == whole[[2, 5, 8, 1]].tolist()


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_size_below_one_is_refused(batch_size: int) -> None:
    message = f"`batch_size` must be at least 1, but got {batch_size}. HINT: 1024 is a common size for sampled graphs."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SeedOrder(10, batch_size)


def test_dropping_the_only_batch_is_refused() -> None:
    message = (
        "`drop_last=True` leaves no batch: there are 3 seeds but `batch_size` is 4."
        " HINT: lower `batch_size` or set `drop_last=False`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        SeedOrder(5, 4, shuffle=True, drop_last=True, world_size=2)
    assert len(SeedOrder(5, 3, shuffle=True, drop_last=True, world_size=2)) == 1


@pytest.mark.parametrize("kind", [EpochSampler, FixedSampler])
def test_a_sampler_lists_the_epochs_seeds(kind: type[EpochSampler]) -> None:
    order = SeedOrder(9, 4, shuffle=kind is EpochSampler, seed=3, rank=1, world_size=2)
    sampler = kind(order)
    for epoch in (0, 4):
        sampler.set_epoch(epoch)
        assert sampler.current_epoch == epoch
        assert list(sampler) == order.epoch(epoch).tolist()
        assert len(sampler) == order.num_local


def test_lightning_takes_only_fixed_seeds_for_sequential() -> None:
    order = SeedOrder(9, 4)
    assert isinstance(FixedSampler(order), SequentialSampler)
    assert not isinstance(EpochSampler(order), SequentialSampler)
