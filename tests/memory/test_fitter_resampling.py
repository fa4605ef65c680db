"""Fitters that draw a batch anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from lightning_gnnopt.sampling import Subgraph
from tests.memory.fitting import HELD, budget_for, bytes_of, drawn, make

# Resampling


class Draws:
    """Gives prepared batches, and notes what it was asked for."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.attempts = list(batches), list[int]()

    def __call__(self, attempt: int) -> Any:
        self.attempts.append(attempt)
        return self.batches[attempt - 1]


def of_fanouts(*fanouts: int) -> list[Subgraph]:
    return [drawn(num_neighbors=[fanout, 4])[0] for fanout in fanouts]


def test_the_first_draw_that_fits_is_taken() -> None:
    large, *others = of_fanouts(8, 7, 6, 2, 1)
    draws = Draws(others)
    fitter = make(large, bytes_of(others[2]), ("resample", "prune"))
    assert fitter(large, draws) is others[2]
    assert draws.attempts == [1, 2, 3]
    tally = fitter.tally
    assert (tally.batches, tally.over, tally.resamples, tally.pruned) == (1, 1, 3, 0)
    assert tally.edges == others[2].num_edges


def test_if_none_fits_the_smallest_is_pruned() -> None:
    large, *others = of_fanouts(8, 7, 3, 6)
    fitter = make(large, budget_for(others[1], 0.8), ("resample", "prune"), max_resamples=3)
    pruned = fitter(large, Draws(others))
    assert set(pruned.positions.tolist()) <= set(others[1].positions.tolist())
    assert (fitter.tally.resamples, fitter.tally.edges) == (3, others[1].num_edges)


def test_draws_that_are_all_alike_are_given_up() -> None:
    (large,) = of_fanouts(8)
    draws = Draws([large] * 10)
    make(large, bytes_of(large) - 100, ("resample", "prune"))(large, draws)
    assert draws.attempts == [1, 2, 3]


def test_draws_that_differ_are_all_tried() -> None:
    sizes = [8, 2, 8, 2, 8, 2, 8, 2, 8, 2]
    large, *others = of_fanouts(8, *sizes)
    draws = Draws(others)
    make(large, bytes_of(others[1]) - 100, ("resample", "prune"))(large, draws)
    assert draws.attempts == list(range(1, 11))


@pytest.mark.parametrize("max_resamples", [0, 2])
def test_no_more_draws_than_allowed(max_resamples: int) -> None:
    (large,) = of_fanouts(8)
    draws = Draws([large] * 10)
    make(large, bytes_of(large) - 1, ("resample", "prune"), max_resamples=max_resamples)(large, draws)
    assert len(draws.attempts) == max_resamples


def test_how_to_draw_anew_is_asked_only_where_it_may_help() -> None:
    large, small = of_fanouts(8, 2)
    asked: list[str] = []
    fitter = make(large, bytes_of(small), ("resample", "prune"))
    fitter.fit(small, lambda: asked.append("fits"))  # type: ignore[func-returns-value]
    fitter.spread_bytes = (bytes_of(large) - bytes_of(small)) / 4.1
    fitter.fit(large, lambda: asked.append("hopeless"))  # type: ignore[func-returns-value]
    assert (asked, fitter.tally.pruned) == ([], 1)
    fitter.spread_bytes = (bytes_of(large) - bytes_of(small)) / 3.9
    draws = Draws([small])
    assert fitter.fit(large, lambda: draws) is small
    assert draws.attempts == [1]


def test_without_a_way_to_draw_anew_it_is_pruned() -> None:
    (large,) = of_fanouts(8)
    fitter = make(large, budget_for(large, 0.5), ("resample", "prune"))
    assert bytes_of(fitter(large)) <= fitter.budget_bytes
    assert fitter.tally.resamples == 0


def test_a_resampled_batch_that_is_too_large_is_left_to_the_split() -> None:
    large, *others = of_fanouts(8, 3, 6)
    fitter = make(large, budget_for(others[0], 0.8), ("resample", "split"), max_resamples=2)
    assert fitter(large, Draws(others)) is others[0]
    assert fitter.splits


def test_watching_changes_nothing() -> None:
    subgraph, batch = drawn()
    for stage in ("train", "val"):
        fitter = make(subgraph, HELD + 1, "watch", stage=stage)
        assert fitter(subgraph, lambda attempt: pytest.fail("drawn anew")) is subgraph
        assert fitter.parts(batch) is None
        assert (fitter.tally.batches, fitter.tally.over, fitter.tally.splits) == (1, 1, 0)
