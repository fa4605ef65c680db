"""Passes that go on from a state with seeds that are still to come back."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gnnopt.loading import PrefetchLoader

from .graphs import make_loader, prefetch_threads, same_batches
from .shrinking import at_most, make_shrinking, seen


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


# ---- going on from a state -------------------------------------------------------------------------------------------


def saved(loader: PrefetchLoader, path: Path) -> dict[str, Any]:
    """A state as it comes out of a checkpoint."""
    torch.save(loader.state_dict(), path)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_pass_goes_on_wherever_it_was(num_workers: int, tmp_path: Path) -> None:
    whole = [list(epoch) for epoch in [make_shrinking(num_workers=0)] for _ in range(2)]
    assert [len(epoch) for epoch in whole] == [9, 11]
    for epoch, batches in enumerate(whole):
        for number in range(len(batches) + 1):
            loader, resumed = make_shrinking(num_workers=num_workers), make_shrinking(num_workers=num_workers)
            loader.set_epoch(epoch)
            iterator = iter(loader)
            assert len(list(islice(iterator, number))) == number
            state = saved(loader, tmp_path / "state.pt")
            assert (state["epoch"], state["batch"]) == (epoch, number)
            iterator.close()
            resumed.load_state_dict(state)
            if number < len(batches):
                assert resumed.state_dict() == state
                assert same_batches(list(resumed), batches[number:])
            assert resumed.sampler.current_epoch == epoch + 1


def test_what_was_prepared_ahead_is_not_in_the_state() -> None:
    """Half of the batches may be through their transforms when one has been delivered."""
    done = threading.Event()
    through: list[int] = []

    def rule(seeds: list[int]) -> int:
        through.append(len(seeds))
        if len(through) == 4:
            done.set()
        return 2

    loader = make_shrinking(rule, num_workers=3)
    iterator = iter(loader)
    next(iterator)
    assert done.wait(30)
    assert loader.state_dict()["kept"] == {0: {0: 2}}
    iterator.close()


def test_what_the_consumer_did_not_begin_with_is_not_in_the_state() -> None:
    begun = [100]  # whatever it counted before
    whole, loader = list(make_shrinking(num_workers=0)), make_shrinking(num_workers=2)
    loader.num_used = lambda: begun[0]
    iterator = iter(loader)
    next(iterator)  # fetched ahead
    assert loader.state_dict()["batch"] == 0
    for number in range(1, 10):
        next(iterator, None)
        begun[0] += 1
        state, resumed = loader.state_dict(), make_shrinking(num_workers=0)
        assert (state["epoch"], state["batch"]) == ((0, number) if number < 9 else (1, 0))
        resumed.load_state_dict(state)
        resumed.num_used = lambda: begun[0]
        if number < 9:
            assert resumed.state_dict() == state
            assert same_batches(list(resumed), whole[number:])


def test_a_state_holds_plain_numbers(tmp_path: Path) -> None:
    loader = make_shrinking(at_most(5), num_workers=0)
    iterator = iter(loader)
    list(islice(iterator, 6))
    state = saved(loader, tmp_path / "state.pt")
    assert state == loader.state_dict()
    assert state["kept"] == {0: dict.fromkeys([0, 1, 2, 3, 5], 5)}  # batch 4 has three seeds
    assert state["rounds"] == [2]  # the twelve that are left
    iterator.close()


def test_the_rest_is_refused_without_the_transform() -> None:
    loader, plain = make_shrinking(num_workers=0), make_loader(num_workers=0)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    iterator.close()
    with pytest.raises(ValueError, match=r"^The checkpoint was saved after batch 1 .*`returns_seeds` True \(now False"):
        plain.load_state_dict(state)
    other = make_shrinking(num_workers=0, batch_size=4)
    with pytest.raises(ValueError, match=r"`batch_size` 8 \(now 4\)"):
        other.load_state_dict(state)


def test_a_state_from_before_the_transform_was_there_is_one_that_left_out_nothing() -> None:
    plain, loader = make_loader(num_workers=0), make_shrinking(num_workers=0)
    iterator = iter(plain)
    done = list(islice(iterator, 2))
    loader.load_state_dict(plain.state_dict())
    iterator.close()
    rest = list(loader)
    assert sorted(seen([*done, *rest])) == list(range(35))
