from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

from lightning_gnnopt.loading.seeds import EpochSampler, FixedSampler, SeedOrder

sizes = st.integers(1, 60)
world_sizes = st.integers(1, 4)


def shards(num_seeds: int, world_size: int, *, epoch: int = 0, **kwargs: bool) -> list[np.ndarray]:
    return [
        SeedOrder(num_seeds, 4, rank=rank, world_size=world_size, seed=3, **kwargs).epoch(epoch)
        for rank in range(world_size)
    ]


@given(sizes, world_sizes)
def test_unshuffled_shards_hold_every_seed_once(num_seeds: int, world_size: int) -> None:
    parts = shards(num_seeds, world_size)
    assert sorted(np.concatenate(parts).tolist()) == list(range(num_seeds))
    for rank, part in enumerate(parts):
        assert part.tolist() == list(range(rank, num_seeds, world_size))


@settings(deadline=None)
@given(sizes, world_sizes, st.integers(0, 5))
def test_shuffled_shards_cover_every_seed_and_are_equally_long(num_seeds: int, world_size: int, epoch: int) -> None:
    parts = shards(num_seeds, world_size, epoch=epoch, shuffle=True)
    assert {len(part) for part in parts} == {-(-num_seeds // world_size)}
    counts = Counter(np.concatenate(parts).tolist())
    assert set(counts) == set(range(num_seeds))
    padding = -num_seeds % world_size
    assert sum(counts.values()) - num_seeds == padding
    if padding <= num_seeds:
        assert max(counts.values()) <= 2
    lengths = {len(SeedOrder(num_seeds, 4, shuffle=True, rank=r, world_size=world_size)) for r in range(world_size)}
    assert len(lengths) == 1


@settings(deadline=None)
@given(sizes, st.integers(1, 20), world_sizes, st.booleans(), st.booleans())
def test_batches_cut_the_order_in_pieces(
    num_seeds: int, batch_size: int, world_size: int, shuffle: bool, drop_last: bool
) -> None:
    for rank in range(world_size):
        kwargs = {"shuffle": shuffle, "rank": rank, "world_size": world_size}
        order = SeedOrder(num_seeds, batch_size, **kwargs)
        if drop_last and order.num_local >= batch_size:
            order = SeedOrder(num_seeds, batch_size, drop_last=True, **kwargs)
        epoch = order.epoch(0)
        assert len(epoch) == order.num_local
        batches = [order.batch(epoch, index) for index in range(len(order))]
        assert all(len(batch) == batch_size for batch in batches[:-1])
        joined = np.concatenate(batches).tolist() if batches else []
        if order.drop_last:
            assert all(len(batch) == batch_size for batch in batches)
            assert joined == epoch[: len(epoch) // batch_size * batch_size].tolist()
        else:
            assert joined == epoch.tolist()


def test_each_epoch_and_each_seed_has_its_order() -> None:
    orders = [SeedOrder(50, 8, shuffle=True, seed=seed).epoch(epoch).tolist() for seed in (0, 1) for epoch in range(5)]
    assert len({tuple(order) for order in orders}) == 10
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert SeedOrder(50, 8, shuffle=True, seed=1).epoch(4).tolist() == orders[-1]
    assert SeedOrder(50, 8, seed=1).epoch(4).tolist() == list(range(50))


def test_ranks_share_one_shuffled_order() -> None:
    whole = SeedOrder(10, 4, shuffle=True, seed=3).epoch(2)
    first, second, third = shards(10, 3, epoch=2, shuffle=True)
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
