"""Seeds that come back on several ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
from torch_geometric.data import Data

from lightning_gnnopt.loading import PrefetchLoader, SeedOrder
from lightning_gnnopt.loading.returned import EpochBatches

from .graphs import prefetch_threads, same_batches
from .shrinking import any_number, at_most, make_shrinking, seen


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


# ---- several ranks ---------------------------------------------------------------------------------------------------


class Ranks:
    """What a reduction over the processes does, for threads."""

    def __init__(self, world_size: int) -> None:
        self.barrier = threading.Barrier(world_size, timeout=30)
        self.values: list[Any] = [None] * world_size
        self.calls: list[list[int]] = []

    def gather(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def agree(self, rank: int, number: int) -> int:
        numbers = self.gather(rank, number)
        if rank == 0:
            self.calls.append(numbers)
        return max(numbers)


def on_ranks(world_size: int, run: Callable[[PrefetchLoader], Any], rule_of: Any, **options: Any) -> tuple[list, Ranks]:
    """Run something at once on a loader of each rank."""
    ranks, results, errors = Ranks(world_size), [None] * world_size, []

    def work(rank: int) -> None:
        try:
            loader = make_shrinking(rule_of(rank), order={"rank": rank, "world_size": world_size}, **options)
            loader.agree = lambda number: ranks.agree(rank, number)
            loader.gather = lambda value: ranks.gather(rank, value)
            results[rank] = run(loader)
        except BaseException as error:
            errors.append(error)
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return results, ranks


def test_all_ranks_make_the_same_number_of_steps() -> None:
    # A rank has 18 seeds: batches of 4, 4, 4, 4, 2. Rank 0 leaves out 3 of each full batch, rank 1 none.
    (first, second), ranks = on_ranks(
        2, lambda loader: list(loader), lambda rank: at_most([1, 4][rank]), batch_size=4, num_workers=0
    )
    # 13 left (one of the last batch), then 3 x 3, then 2 x 3 of 9 = 4, 4, 1 and so on.
    left_out, expected = 13, []
    while left_out:
        number = -(-left_out // 4)
        expected.append([number, 0])
        left_out -= number
    assert ranks.calls == [*expected, [0, 0]]
    assert len(first) == len(second) == 5 + sum(number for number, _ in expected)
    orders = [SeedOrder(35, 4, shuffle=True, seed=5, rank=rank, world_size=2).epoch(0).tolist() for rank in (0, 1)]
    assert sorted(seen(first)) == sorted(orders[0])
    # The other goes through its own seeds again, in their order and around.
    again = seen(second[5:])
    assert seen(second[:5]) == orders[1]
    assert again == (orders[1] * 10)[: len(again)]
    assert all(batch.batch_size == 4 for batch in second[5:])


def test_seeds_that_stand_in_for_missing_ones_do_not_come_back() -> None:
    """A rank that repeats seeds may have to leave some out then, which were seen before."""
    results, ranks = on_ranks(
        3, lambda loader: list(loader), lambda rank: at_most([1, 4, 3][rank]), batch_size=4, num_workers=1
    )
    assert len({len(batches) for batches in results}) == 1
    for rank, batches in enumerate(results):
        order = SeedOrder(35, 4, shuffle=True, seed=5, rank=rank, world_size=3).epoch(0).tolist()
        assert set(seen(batches)) == set(order)
        num_own = next(number for number in range(len(batches) + 1) if set(seen(batches[:number])) == set(order))
        assert sorted(seen(batches[:num_own])) == sorted(order)  # once, until all were there
    assert ranks.calls[-1] == [0, 0, 0]


@pytest.mark.parametrize("number", [0, 3, 5, 6, 7])
def test_each_rank_resumes_with_what_it_left_out_itself(number: int) -> None:
    def rule_of(rank: int) -> Callable[[list[int]], int]:
        return any_number(rank)

    def whole(loader: PrefetchLoader) -> list[Data]:
        return list(loader)

    def part(loader: PrefetchLoader) -> dict[str, Any]:
        iterator = iter(loader)
        list(islice(iterator, number))
        state = loader.state_dict()
        iterator.close()
        return state

    epochs, _ = on_ranks(2, whole, rule_of, batch_size=4, num_workers=0)
    states, _ = on_ranks(2, part, rule_of, batch_size=4, num_workers=1)
    assert number < len(epochs[0])
    assert states[0] == states[1]

    def rest(loader: PrefetchLoader) -> list[Data]:
        loader.load_state_dict(states[0])  # Lightning saves that of rank 0
        return list(loader)

    resumed, _ = on_ranks(2, rest, rule_of, batch_size=4, num_workers=1)
    for batches, all_batches in zip(resumed, epochs, strict=True):
        assert same_batches(batches, all_batches[number:])


def test_a_rank_without_a_state_of_its_own_does_not_go_on() -> None:
    loaders = [make_shrinking(order={"rank": rank, "world_size": 2}, num_workers=0) for rank in (0, 1)]
    for loader in loaders:
        loader.agree = lambda number: number
    iterator = iter(loaders[0])
    next(iterator)
    with pytest.raises(ValueError, match=r"^The checkpoint was saved after batch 1 .* `rank` 0 \(now 1\)"):
        loaders[1].load_state_dict(loaders[0].state_dict())
    iterator.close()


def test_ranks_must_agree() -> None:
    loader = make_shrinking(order={"world_size": 2}, num_workers=0)
    with pytest.raises(ValueError, match=r"^`agree` must be set .* on one of 2 ranks, .* but it is None. HINT: "):
        next(iter(loader))
    loader.agree = lambda number: 0
    with pytest.raises(ValueError, match=r"^`agree` must return the largest .* this rank has 2 and it returned 0"):
        list(loader)


def test_a_round_that_no_batch_is_through_of_is_agreed_on_anew() -> None:
    batches = EpochBatches(SeedOrder(8, 4), 0)
    rounds = batches.rounds()
    assert list(next(rounds)) == [0, 1]
    batches.keep(0, 1)
    assert list(next(rounds)) == [2]
    assert batches.state(2) == ({0: 1}, [])
    assert batches.state(3) == ({0: 1}, [1])
    batches.keep(2, 1)
    assert list(next(rounds)) == [3]
    assert batches.state(3) == ({0: 1, 2: 1}, [1])
    assert batches.inputs(3).tolist() == [2, 3]
