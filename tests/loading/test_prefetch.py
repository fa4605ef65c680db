from __future__ import annotations

import re
import threading
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from lightning_gnnopt.loading import LoaderStats, PrefetchLoader, SubgraphTransform
from lightning_gnnopt.loading.batches import BatchBuilder
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Subgraph

from .graphs import make_data, make_loader, prefetch_threads, same_batch, same_batches

WORKERS = [0, 1, 2, 5]


def place(loader: PrefetchLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["batch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


@pytest.mark.parametrize("num_workers", WORKERS)
def test_a_pass_delivers_the_seeds_in_order_with_their_neighbours(num_workers: int) -> None:
    data, loader = make_data(), make_loader(num_workers=num_workers)
    batches = list(loader)

    assert [batch.batch_size for batch in batches] == [8, 8, 8, 8, 3]
    assert len(loader) == 5
    assert torch.cat([batch.input_id for batch in batches]).tolist() == loader.order.epoch(0).tolist()
    for batch in batches:
        assert torch.equal(batch.n_id[: batch.batch_size], batch.input_id)  # the input nodes are 0, 1, ..., 34
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])


def test_input_ids_are_places_among_the_input_nodes() -> None:
    loader = make_loader(nodes=[50, 7, 31], batch_size=2, num_workers=0)
    for batch in loader:
        assert torch.equal(batch.n_id[: batch.batch_size], torch.tensor([50, 7, 31])[batch.input_id])


@pytest.mark.parametrize("num_workers", WORKERS[1:])
@pytest.mark.parametrize("prefetch_factor", [1, 3])
def test_batches_are_the_same_bits_for_any_number_of_workers(num_workers: int, prefetch_factor: int) -> None:
    inline = make_loader(num_workers=0)
    threaded = make_loader(num_workers=num_workers, prefetch_factor=prefetch_factor)
    for _ in range(3):
        assert same_batches(list(inline), list(threaded))


def test_two_runs_are_the_same_and_epochs_differ() -> None:
    first, second = ([list(loader) for _ in range(3)] for loader in (make_loader(), make_loader()))
    assert all(map(same_batches, first, second))
    seeds = [torch.cat([batch.input_id for batch in epoch]).tolist() for epoch in first]
    assert len({tuple(ids) for ids in seeds}) == 3
    assert all(sorted(ids) == list(range(35)) for ids in seeds)
    assert not same_batches(list(make_loader(seed=6)), first[0])


def test_set_epoch_chooses_what_the_next_pass_draws() -> None:
    epochs = [list(loader) for loader in [make_loader()] for _ in range(4)]
    loader = make_loader()
    loader.set_epoch(3)
    assert same_batches(list(loader), epochs[3])
    loader.sampler.set_epoch(1)  # as Lightning does
    assert same_batches(list(loader), epochs[1])
    assert same_batches(list(loader), epochs[2])  # without it, the next


def test_unshuffled_training_draws_other_neighbours_in_each_epoch() -> None:
    loader = make_loader(order={"shuffle": False})
    first, second = list(loader), list(loader)
    assert [a.input_id.tolist() for a in first] == [b.input_id.tolist() for b in second]
    assert not any(map(same_batch, first, second))


def test_evaluation_sees_the_same_neighbours_in_each_epoch() -> None:
    loader = make_loader(order={"shuffle": False}, redraw=False)
    first = list(loader)
    loader.set_epoch(7)
    assert same_batches(first, list(loader))
    assert torch.cat([batch.input_id for batch in first]).tolist() == list(range(35))


def test_ranks_draw_their_own_neighbours_for_their_own_seeds() -> None:
    ranks = [list(make_loader(order={"rank": rank, "world_size": 2})) for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [3, 3]
    seeds = [torch.cat([batch.input_id for batch in batches]).tolist() for batches in ranks]
    assert set(seeds[0]) | set(seeds[1]) == set(range(35))
    assert len(seeds[0]) + len(seeds[1]) == 36

    # The same seeds on two ranks: the neighbours differ all the same.
    keys: list[SampleKey] = []

    class Spy(NeighborSampler):
        def sample(self, seeds: Any, key: SampleKey) -> Subgraph:
            keys.append(key)
            return super().sample(seeds, key)

    for rank in (0, 1):
        loader = make_loader(order={"rank": rank, "world_size": 2}, num_workers=0)
        loader.source.sampler = Spy(loader.source.sampler.topology, [3])
        loader.set_epoch(4)
        list(loader)
    assert sorted(keys) == [SampleKey(5, 4, batch, 0) for batch in range(6)]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stats_add_up(num_workers: int) -> None:
    loader = make_loader(num_workers=num_workers)
    assert loader.stats == LoaderStats()
    batches = list(loader)
    first = loader.stats.copy()
    assert first.batches == 5
    assert first.nodes == sum(batch.num_nodes for batch in batches)
    assert first.edges == sum(batch.num_edges for batch in batches)
    assert min(first.sample_s, first.slice_s, first.wait_s) > 0

    more = list(islice(loader, 2))
    second = loader.stats - first
    assert second.batches == 2
    assert second.nodes == sum(batch.num_nodes for batch in more)
    assert second.edges == sum(batch.num_edges for batch in more)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_times_are_those_of_the_parts(num_workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only sampling (1 s a batch) and slicing (10 s a batch) move."""
    now = [0.0]
    monkeypatch.setattr("lightning_gnnopt.loading.pipeline.time.perf_counter", lambda: now[0])

    class SlowSampler(NeighborSampler):
        def sample(self, seeds: Any, key: SampleKey) -> Subgraph:
            now[0] += 1
            return super().sample(seeds, key)

    class SlowBuilder(BatchBuilder):
        def plan(self, subgraph: Subgraph, input_id: Any) -> BatchPlan:
            now[0] += 10
            return super().plan(subgraph, input_id)

    loader = make_loader(num_workers=num_workers, prefetch_factor=1)
    loader.source.sampler = SlowSampler(loader.source.sampler.topology, [3])
    loader.source.builder = SlowBuilder(make_data(), loader.source.sampler.topology)
    list(loader)
    assert (loader.stats.sample_s, loader.stats.slice_s) == (5.0, 50.0)
    if num_workers == 0:
        assert loader.stats.wait_s == 55.0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 3, 5])
def test_a_resumed_loader_delivers_exactly_the_rest(num_workers: int, done: int) -> None:
    reference = make_loader(num_workers=0)
    epochs = [list(reference) for _ in range(3)]

    loader = make_loader(num_workers=num_workers)
    list(loader)
    iterator = iter(loader)
    delivered = list(islice(iterator, done))
    state = loader.state_dict()
    iterator.close()
    assert same_batches(delivered, epochs[1][:done])
    assert (state["epoch"], state["batch"]) == (1, done)

    resumed = make_loader(num_workers=num_workers)
    resumed.load_state_dict(state)
    if done < 5:
        assert resumed.state_dict() == state
        assert same_batches(list(resumed), epochs[1][done:])
    assert same_batches(list(resumed), epochs[2])


def test_a_finished_epoch_resumes_with_the_next_one() -> None:
    loader, resumed = make_loader(), make_loader()
    list(loader)
    assert place(loader) == (1, 0)
    resumed.load_state_dict(loader.state_dict())
    assert same_batches(list(resumed), list(loader))

    resumed.load_state_dict({"epoch": 2, "batch": 5})  # as Lightning saves it: it never asks for a sixth batch
    assert place(resumed) == (3, 0)
    loader.set_epoch(3)
    assert same_batches(list(resumed), list(loader))


def test_a_resumed_position_belongs_to_its_epoch() -> None:
    """With `limit_train_batches` an epoch ends early, and Lightning goes on with the next one."""
    loader, reference = make_loader(), make_loader()
    loader.load_state_dict({"epoch": 0, "batch": 3})
    loader.set_epoch(1)
    assert place(loader) == (1, 0)
    reference.set_epoch(1)
    assert same_batches(list(loader), list(reference))

    loader.load_state_dict({"epoch": 0, "batch": 5})
    loader.set_epoch(0)  # Lightning asks for what is left of a finished epoch
    assert list(loader) == []


def test_a_position_is_resumed_once() -> None:
    loader = make_loader()
    loader.load_state_dict({"epoch": 2, "batch": 3})
    assert len(list(loader)) == 2
    loader.set_epoch(2)
    assert len(list(loader)) == 5


def test_an_abandoned_pass_is_started_over() -> None:
    loader = make_loader()
    first = next(iter(loader))
    assert same_batch(next(iter(loader)), first)
    assert place(loader) == (0, 1)


class Smallest:
    """Draws each batch four times and keeps the first of the draws with the fewest nodes."""

    def __init__(self) -> None:
        self.threads: set[int] = set()

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        self.threads.add(threading.get_ident())
        return min([subgraph, *(resample(attempt) for attempt in (1, 2, 3))], key=lambda draw: draw.num_nodes)


def test_transforms_may_draw_again() -> None:
    smallest = Smallest()
    assert isinstance(smallest, SubgraphTransform)
    loader = make_loader(transforms=[smallest], num_workers=2)
    batches = list(loader)
    assert threading.get_ident() not in smallest.threads

    order, chosen = loader.order.epoch(0), []
    for index, batch in enumerate(batches):
        seeds = loader.order.batch(order, index)
        draws = [loader.source.sampler.sample(seeds, SampleKey(5, 0, index, attempt)) for attempt in range(4)]
        sizes = [draw.num_nodes for draw in draws]
        chosen.append(sizes.index(min(sizes)))
        expected = draws[chosen[-1]]
        assert batch.n_id.tolist() == expected.n_id.tolist()
        assert batch.edge_index.tolist() == [expected.row.tolist(), expected.col.tolist()]
    assert max(chosen) > 0
    assert loader.stats.nodes == sum(batch.num_nodes for batch in batches)
    assert same_batches(batches, list(make_loader(transforms=[Smallest()], num_workers=0)))


def test_transforms_run_in_their_order_on_what_the_one_before_returned() -> None:
    seen: list[tuple[str, int]] = []

    def first(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        seen.append(("first", len(subgraph.positions)))
        return resample(1)

    def second(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        seen.append(("second", len(subgraph.positions)))
        return subgraph

    loader = make_loader(transforms=[first, second], num_workers=0, nodes=[0], batch_size=1)
    list(loader)
    draws = [loader.source.sampler.sample(np.array([0]), SampleKey(5, 0, 0, attempt)).num_edges for attempt in (0, 1)]
    assert seen == [("first", draws[0]), ("second", draws[1])]


@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_error_names_its_batch_and_comes_in_its_place(num_workers: int) -> None:
    def fail(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        if subgraph.batch_size == 3:  # the last batch
            raise RuntimeError("no such batch")
        return subgraph

    received: list[Data] = []
    loader = make_loader(transforms=[fail], num_workers=num_workers)
    loader.set_epoch(2)
    with pytest.raises(RuntimeError, match="no such batch") as caught:
        received.extend(loader)
    assert caught.value.__notes__ == ["This happened while batch 4 of epoch 2 was prepared."]
    assert loader.stats.batches == 4
    assert place(loader) == (2, 4)


def test_closing_a_pass_ends_its_threads() -> None:
    loader = make_loader(num_workers=3, batch_size=1)
    iterator = iter(loader)
    next(iterator)
    assert len(prefetch_threads()) == 3
    iterator.close()
    assert prefetch_threads() == []


def test_nothing_starts_before_the_first_batch_is_asked_for() -> None:
    loader = make_loader(num_workers=3)
    iterator = iter(loader)
    assert prefetch_threads() == []
    loader.set_epoch(4)  # Lightning sets the epoch after it made the iterator
    reference = make_loader()
    reference.set_epoch(4)
    assert same_batches(list(iterator), list(reference))


def test_what_lightning_looks_for() -> None:
    shuffled, fixed = make_loader(), make_loader(order={"shuffle": False})
    assert isinstance(fixed.sampler, torch.utils.data.SequentialSampler)
    assert not isinstance(shuffled.sampler, torch.utils.data.SequentialSampler)
    assert shuffled.batch_sampler is None
    assert shuffled.batch_size == 8
    assert repr(shuffled) == (
        "PrefetchLoader(NeighborSampler(Topology(num_nodes=60, num_edges=300), num_neighbors=[3, 2]),"
        " batch_size=8, batches=5, num_workers=2)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_workers": -1},
            "`num_workers` must be 0 or more, or 'auto', but got -1. HINT: 0 uses no threads; 'auto' tries out whether"
            " threads pay.",
        ),
        (
            {"prefetch_factor": 0},
            "`prefetch_factor` must be at least 1, but got 0. HINT: `num_workers=0` prepares no batch ahead.",
        ),
        ({"nodes": []}, "`seeds` must hold at least one node, but it is empty. HINT: check the split's mask."),
        (
            {"nodes": [0, 60]},
            "`seeds` must be node ids from 0 to 59, but found 60."
            " HINT: seeds are global ids of the graph that is sampled.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_loader(**arguments)


def test_the_loader_is_a_plain_iterable_of_batches() -> None:
    loader = make_loader()
    assert isinstance(loader, PrefetchLoader)
    assert not isinstance(loader, torch.utils.data.DataLoader)
    assert {type(batch) for batch in loader} == {Data}
