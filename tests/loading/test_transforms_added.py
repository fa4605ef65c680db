"""Transforms that come and go, and batches that are drawn beside a pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest

from lightning_gnnopt.loading import BatchBuilder, LoaderStats, NodeSource, PrefetchLoader
from lightning_gnnopt.loading.groups import GroupOrder
from lightning_gnnopt.loading.placement import DevicePlacement, Placed
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.loading.simulated import SimulatedDevice
from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.cluster import ClusterSampler

from .graphs import make_data, make_loader, prefetch_threads, same_batch, same_batches


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


class Attempt:
    """Takes one attempt's draw, and notes the number of seeds of each batch."""

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt
        self.seen: list[int] = []

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        self.seen.append(subgraph.batch_size)
        return resample(self.attempt)

    def __eq__(self, other: object) -> bool:
        return True  # what is removed is the transform itself, not one like it

    __hash__ = object.__hash__


def bits(subgraph: Subgraph) -> tuple[list[int], ...]:
    return subgraph.n_id.tolist(), subgraph.row.tolist(), subgraph.col.tolist(), subgraph.positions.tolist()


# ---- add and remove --------------------------------------------------------------------------------------------------


def test_a_transform_is_applied_from_when_it_was_added_to_when_it_was_removed() -> None:
    loader, plain = make_loader(num_workers=2), [list(epoch) for epoch in [make_loader()] for _ in range(3)]
    one, other = Attempt(1), Attempt(2)
    with_one = make_loader(transforms=[Attempt(1)])
    with_one.set_epoch(1)

    assert same_batches(list(loader), plain[0])
    loader.add_transform(other)
    loader.add_transform(one)
    assert loader.transforms == (other, one)
    assert loader.transforms[0] is other
    loader.remove_transform(other)
    assert [transform is one for transform in loader.transforms] == [True]
    assert same_batches(list(loader), list(with_one))
    loader.remove_transform(one)
    loader.remove_transform(one)  # it is gone already
    assert loader.transforms == ()
    assert same_batches(list(loader), plain[2])
    assert sorted(one.seen) == [3, 8, 8, 8, 8]
    assert other.seen == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_running_pass_keeps_the_transforms_it_started_with(num_workers: int) -> None:
    first, second = Attempt(1), Attempt(2)
    loader = make_loader(num_workers=num_workers, transforms=[first])
    batches = []
    for number, batch in enumerate(loader):
        batches.append(batch)
        if number == 1:
            loader.remove_transform(first)
            loader.add_transform(second)
    assert same_batches(batches, list(make_loader(transforms=[Attempt(1)])))
    assert (len(first.seen), len(second.seen)) == (5, 0)
    list(loader)
    assert (len(first.seen), len(second.seen)) == (5, 5)


def test_a_transform_that_leaves_out_seeds_has_to_say_so() -> None:
    def cut(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        object.__setattr__(subgraph, "batch_size", 5)
        return subgraph

    loader = make_loader(transforms=[cut], num_workers=0)
    message = (
        "`transforms` must return all 8 of the seeds of batch 0 of epoch 0, but returned 5. HINT: one that keeps only"
        " the first of them says so by an attribute `returns_seeds = True`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}(\n|$)"):
        list(loader)


# ---- draw and sample -------------------------------------------------------------------------------------------------


def test_a_whole_batch_drawn_is_the_first_of_the_pass() -> None:
    loader = make_loader(num_workers=0)
    for epoch in (0, 1):
        subgraph, batch = loader.draw(8)
        assert batch.n_id.tolist() == subgraph.n_id.tolist()
        passed = list(loader)
        assert same_batch(batch, passed[0]), epoch


@pytest.mark.parametrize("num_inputs", [1, 5, 8, 11, 35])
@pytest.mark.parametrize("attempt", [0, 3])
def test_what_is_drawn_is_around_the_first_inputs_with_the_runs_key(num_inputs: int, attempt: int) -> None:
    loader = make_loader(nodes=range(20, 55), order={"rank": 1, "world_size": 3}, transforms=[Attempt(7)])
    loader.set_epoch(4)
    subgraph, batch = loader.draw(num_inputs, attempt=attempt)
    input_id = loader.order.epoch(4)[:num_inputs]  # a rank has 12
    expected = loader.source.sampler.sample(20 + input_id, SampleKey(5, 4, 1, attempt))
    assert bits(subgraph) == bits(expected)
    assert same_batch(batch, loader.source.builder.build(expected, input_id))
    assert batch.batch_size == min(num_inputs, 12)
    assert loader.transforms[0].seen == []


def test_evaluation_is_drawn_as_it_is_passed() -> None:
    loader = make_loader(order={"shuffle": False}, redraw=False, num_workers=0)
    loader.set_epoch(6)
    assert same_batch(loader.draw(8)[1], next(iter(loader)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_drawing_leaves_the_loader_as_it_was(num_workers: int) -> None:
    loader, reference = make_loader(num_workers=num_workers), list(make_loader(num_workers=0))
    loader.draw(3)
    loader.sample(2)
    assert loader.stats == LoaderStats()
    iterator, batches = iter(loader), []
    batches += islice(iterator, 2)
    state, stats = loader.state_dict(), loader.stats.copy()
    drawn = loader.draw(4)[1]
    loader.sample(1, epoch=9)
    assert loader.state_dict() == state
    assert loader.stats == stats
    assert same_batches([*batches, *iterator], reference)
    assert loader.stats.batches == 5
    assert same_batch(drawn, make_loader().draw(4)[1])


def test_what_is_drawn_goes_where_batches_go() -> None:
    moved: list[int] = []

    class Spy(DevicePlacement):
        def place(self, plan: BatchPlan, name: str = "a batch") -> Placed:
            placed = super().place(plan, name)
            moved.append(placed.moved_bytes)
            return placed

    device = SimulatedDevice()
    loader, here = make_loader(placement=Spy(device)), make_loader()
    _, batch = loader.draw(6)
    device.synchronize()  # the consumer's stream waits for the copy, the host does not
    assert len(moved) == 1
    assert moved[0] > 0
    assert same_batch(batch, here.draw(6)[1])
    device.close()  # a class made in a function, as `Spy`, lives on until a collection, and so would its threads


def test_of_groups_enough_are_drawn_and_cut() -> None:
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes, edge_ids=True)
    parts, nodes = np.arange(60) % 10, np.arange(35)  # groups of 3 or 4 seeds
    source = NodeSource(ClusterSampler(topology, parts=parts), BatchBuilder(data, topology), nodes)
    order = GroupOrder(parts[nodes], 2, shuffle=True, seed=5)
    loader = PrefetchLoader(source, order, num_workers=0)
    passed = np.concatenate([batch.input_id for batch in loader])
    loader.set_epoch(0)
    for num_inputs in (1, 7, 9, 30):
        subgraph, batch = loader.draw(num_inputs)
        assert batch.input_id.tolist() == passed[:num_inputs].tolist()
        assert subgraph.batch_size == num_inputs
        groups = set(parts[passed[:num_inputs]])
        assert set(parts[subgraph.n_id]) == groups
        assert subgraph.num_nodes == 6 * len(groups)


def test_a_batch_sampled_alone_is_that_of_the_pass() -> None:
    loader = make_loader(num_workers=0, order={"rank": 1, "world_size": 2})
    epochs = [list(loader) for _ in range(2)]
    for epoch, batches in enumerate(epochs):
        for index, batch in enumerate(batches):
            subgraph = loader.sample(index, epoch=epoch)
            assert subgraph.n_id.tolist() == batch.n_id.tolist()
            assert [subgraph.row.tolist(), subgraph.col.tolist()] == batch.edge_index.tolist()
    assert bits(loader.sample(1)) == bits(loader.sample(1, epoch=2))  # the coming one


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda loader: loader.draw(0), ValueError, "`num_inputs` must be at least 1, but got 0. HINT: 1 is the"),
        (lambda loader: loader.sample(5), IndexError, "`index` must be from 0 to 4, the last batch, but got 5. HINT:"),
        (lambda loader: loader.sample(-1), IndexError, "`index` must be from 0 to 4, the last batch, but got -1. HINT"),
    ],
)
def test_what_cannot_be_drawn(call: Callable[[Any], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        call(make_loader())
