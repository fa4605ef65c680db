"""Threads that prepare batches are tried out, and used where they pay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.loading import GraphDataModule, prefetch
from lightning_gnnopt.loading.pipeline import PipelineOptions
from lightning_gnnopt.loading.prefetch import PrefetchLoader
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.loading.worker_choice import Stretch, StretchClock, WorkerChoice
from tests.loading.values import ValueSource


class Clock:
    """Stands in for `time`; goes on by what the test says."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


def loader_of(num_batches: int, **options: Any) -> PrefetchLoader:
    return PrefetchLoader(ValueSource(num_batches), SeedOrder(num_batches, 1), **options)


def passed(loader: PrefetchLoader, clock: Clock, costs_s: dict[int, float]) -> list[tuple[int, int]]:
    """Run a pass in which a batch costs so much, by the number of threads; return each batch's value and threads."""
    found = []
    for batch in loader:
        assert loader._pipeline is not None
        workers = loader._pipeline._prefetch._num_workers
        found.append((int(batch[0][0]), workers))
        clock.now_s += costs_s[min(workers, 1)]
    return found


@pytest.mark.parametrize("pays", [False, True])
def test_the_faster_way_is_found_and_kept(pays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(prefetch, "time", clock)
    loader = loader_of(200, num_workers="auto")
    tried = loader.num_workers
    costs_s = {0: 0.010, 1: 0.009 if pays else 0.011}
    found = passed(loader, clock, costs_s)
    assert [value for value, _ in found] == list(range(200))
    workers = [used for _, used in found]
    assert workers[:36] == [tried] * 12 + [0] * 12 + [tried] * 12  # in turn
    choice = loader.worker_choice
    assert choice is not None
    assert choice.is_made
    assert choice.medians_s == {tried: pytest.approx(costs_s[1]), 0: pytest.approx(0.010)}
    assert loader.num_workers == choice.num_workers == (tried if pays else 0)
    assert set(workers[120:]) == {loader.num_workers}
    assert {used for _, used in passed(loader, clock, costs_s)} == {loader.num_workers}  # the next epoch, too


def test_a_pause_between_two_batches_says_nothing() -> None:
    choice = WorkerChoice(1)
    for number in range(5):
        choice.note(1, 60.0 if number == 3 else 0.010)  # a validation
        choice.note(0, 0.011)
    assert (choice.is_made, choice.num_workers) == (True, 1)


def test_short_epochs_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(prefetch, "time", clock)
    loader = loader_of(8, num_workers="auto")
    for _ in range(10):
        assert loader.worker_choice is not None
        assert not loader.worker_choice.is_made
        assert len(passed(loader, clock, {0: 1.0, 1: 2.0})) == 8
    assert loader.num_workers == 0
    assert loader.worker_choice is not None
    assert loader.worker_choice.is_made


def test_a_single_batch_has_nothing_to_be_prepared_beside() -> None:
    choice = WorkerChoice(2)
    for _ in range(5):
        (stretch,) = choice.stretches(range(7, 8))
        assert (stretch.numbers, stretch.workers) == (range(7, 8), 2)
    assert not choice.is_made


class Noting(WorkerChoice):
    """Remembers what it is told."""

    def __init__(self) -> None:
        super().__init__(1)
        self.noted: list[tuple[int, float]] = []

    def note(self, workers: int, batch_s: float) -> None:
        self.noted.append((workers, batch_s))


def test_the_first_batches_of_a_part_of_a_pass_are_not_timed() -> None:
    choice = Noting()
    clock = StretchClock(choice, Stretch(range(5), 1, is_pass=False), 0.0)
    for now_s in (5.0, 105.0, 205.0, 206.0, 208.0):
        assert choice.noted == []
        clock.delivered(now_s)
    assert choice.noted == [(1, 1.5)]


def test_what_it_takes_to_begin_a_pass_is_timed_where_passes_are_short() -> None:
    choice = Noting()
    (stretch,) = choice.stretches(range(4))
    clock = StretchClock(choice, stretch, 2.0)
    for now_s in (5.0, 6.0, 7.0, 8.0):
        clock.delivered(now_s)
    assert choice.noted == [(1, 1.5)]


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 50), st.integers(0, 60), st.integers(1, 4))
def test_stretches_are_all_batches_in_order(first: int, num: int, workers: int) -> None:
    choice = WorkerChoice(workers)
    for _ in range(3):
        stretches = list(choice.stretches(range(first, first + num)))
        assert [index for stretch in stretches for index in stretch.numbers] == list(range(first, first + num))
        assert {stretch.workers for stretch in stretches} <= {0, workers}
        assert all(stretch.is_pass == (len(stretch.numbers) == num) or num == 1 for stretch in stretches)
        # as long that something of each is timed
        assert all(stretch.is_pass or len(stretch.numbers) > 3 for stretch in stretches)


def test_batches_are_the_same_bits_however_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_gnnopt.datasets import load_dataset

    data = load_dataset("digits-knn")
    clock = Clock()
    monkeypatch.setattr(prefetch, "time", clock)
    found: dict[Any, list[torch.Tensor]] = {}
    for num_workers in (0, "auto"):
        datamodule = GraphDataModule(data, num_neighbors=[4, 4], batch_size=16, num_workers=num_workers, seed=3)
        loader = datamodule.train_dataloader()
        found[num_workers] = []
        for _ in range(3):
            for batch in loader:
                clock.now_s += 1.0
                found[num_workers] += [batch.x.clone(), batch.edge_index.clone(), batch.n_id.clone()]
    assert len(found[0]) == len(found["auto"])
    assert all(torch.equal(one, other) for one, other in zip(found[0], found["auto"], strict=True))
    assert loader.worker_choice is not None
    assert loader.worker_choice.is_made


def test_a_resumed_loader_tries_from_where_it_goes_on() -> None:
    loader = loader_of(30, num_workers="auto")
    batches = iter(loader)
    values = [int(next(batches)[0][0]) for _ in range(17)]
    state = loader.state_dict()
    batches.close()  # type: ignore[attr-defined]
    again = loader_of(30, num_workers="auto")
    again.load_state_dict(state)
    assert values + [int(batch[0][0]) for batch in again] == list(range(30))


def test_on_a_device_nothing_is_tried() -> None:
    from lightning_gnnopt.loading import SimulatedDevice
    from lightning_gnnopt.loading.placement import DevicePlacement

    loader = loader_of(4, num_workers="auto", placement=DevicePlacement(SimulatedDevice()))
    assert loader.worker_choice is None
    assert loader.num_workers == PipelineOptions(num_workers="auto").threads > 0


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (3, 2), (64, 2)])
def test_a_core_is_left_to_train(cores: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_gnnopt.loading.pipeline.usable_cores", lambda: cores)
    options = PipelineOptions(num_workers="auto", prefetch_factor=3)
    assert (options.threads, options.max_ahead) == (threads, 3 * threads)


@pytest.mark.parametrize("wrong", ["many", -1, ""])
def test_another_word_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"`num_workers` must be 0 or more, or 'auto', but got .* HINT: 0 uses no"):
        PipelineOptions(num_workers=wrong)
