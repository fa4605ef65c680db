"""Seeds that a transform leaves out come back at the end of the epoch."""

from __future__ import annotations

import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading import BatchBuilder, GraphDataModule, NodeSource, PrefetchLoader, SeedOrder
from lightning_gnnopt.loading.groups import GroupOrder
from lightning_gnnopt.loading.returned import EpochBatches
from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.cluster import ClusterSampler
from lightning_gnnopt.sampling.saint_node import SaintNodeSampler

from .graphs import make_data, make_loader, prefetch_threads, same_batch, same_batches
from .hetero_graphs import make_hetero
from .modules import Recorder, make_trainer
from .test_link_source import make_plain


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


def first_seeds(subgraph: Subgraph, num_seeds: int) -> Subgraph:
    """Keep the first seeds; the others become nodes of the first hop."""
    counts = list(subgraph.num_sampled_nodes or [])
    counts[1] += counts[0] - num_seeds
    counts[0] = num_seeds
    return replace(subgraph, num_sampled_nodes=counts, batch_size=num_seeds)


class Shrink:
    """Keeps as many seeds as a rule says, which is given the batch's seeds."""

    returns_seeds = True

    def __init__(self, rule: Callable[[list[int]], int]) -> None:
        self.rule = rule

    def __call__(self, subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        seeds = subgraph.n_id[: subgraph.batch_size].tolist()
        return first_seeds(subgraph, min(self.rule(seeds), len(seeds)))


def any_number(salt: int) -> Callable[[list[int]], int]:
    """A rule that follows no rule: from one to all."""
    return lambda seeds: 1 + zlib.crc32(bytes([*seeds, salt])) % len(seeds)


_MIXED = any_number(34)  # nine batches in epoch 0 and eleven in epoch 1, of the five that are planned


def at_most(num_seeds: int) -> Callable[[list[int]], int]:
    return lambda seeds: num_seeds


def make_shrinking(rule: Callable[[list[int]], int] | None = None, **options: Any) -> PrefetchLoader:
    """A loader of five planned batches."""
    return make_loader(transforms=[Shrink(_MIXED if rule is None else rule)], **options)


def inputs(batches: list[Data]) -> list[list[int]]:
    return [batch.input_id.tolist() for batch in batches]


def seen(batches: list[Data]) -> list[int]:
    return list(chain.from_iterable(inputs(batches)))


def expected_inputs(order: list[list[int]], rule: Callable[[list[int]], int], batch_size: int) -> list[list[int]]:
    """What an epoch's batches are to be, as one would do it by hand: a queue that is worked off round by round."""
    done: list[list[int]] = []
    while order:
        queue: list[int] = []
        for seeds in order:
            done.append(seeds[: rule(seeds)])
            queue += seeds[rule(seeds) :]
        order = [queue[i : i + batch_size] for i in range(0, len(queue), batch_size)]
    return done


# ---- what comes when -------------------------------------------------------------------------------------------------


def test_an_example_by_hand() -> None:
    loader = make_loader(
        nodes=range(10), batch_size=4, order={"shuffle": False}, transforms=[Shrink(at_most(3))], num_workers=0
    )
    assert inputs(list(loader)) == [[0, 1, 2], [4, 5, 6], [8, 9], [3, 7]]


def test_what_came_back_may_be_left_out_again() -> None:
    loader = make_loader(
        nodes=range(7), batch_size=4, order={"shuffle": False}, transforms=[Shrink(at_most(1))], num_workers=0
    )
    assert inputs(list(loader)) == [[0], [4], [1], [6], [2], [3], [5]]


@settings(max_examples=40, deadline=None)
@given(
    salt=st.integers(0, 255),
    num_seeds=st.integers(1, 30),
    batch_size=st.integers(1, 9),
    num_workers=st.sampled_from([0, 1, 3]),
)
def test_each_seed_is_seen_once_an_epoch(salt: int, num_seeds: int, batch_size: int, num_workers: int) -> None:
    rule = any_number(salt)
    loader = make_shrinking(rule, nodes=range(num_seeds), batch_size=batch_size, num_workers=num_workers)
    for epoch in range(2):
        batches, places = list(loader), loader.order.epoch(epoch)
        assert sorted(seen(batches)) == list(range(num_seeds))
        planned = [loader.order.batch(places, index).tolist() for index in range(len(loader.order))]
        assert inputs(batches) == expected_inputs(planned, rule, batch_size)
        for batch in batches:
            assert batch.batch_size == len(batch.input_id)
            assert torch.equal(batch.n_id[: batch.batch_size], batch.input_id)  # the input nodes are 0, 1, ...


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_pass_is_the_same_bits_for_any_number_of_workers(num_workers: int) -> None:
    inline, threaded = make_shrinking(num_workers=0), make_shrinking(num_workers=num_workers)
    for _ in range(3):
        assert same_batches(list(inline), list(threaded))
    assert inline.stats.batches == threaded.stats.batches
    assert threaded.stats.batches > 15


def test_what_is_not_left_out_changes_nothing() -> None:
    loader, plain = make_shrinking(at_most(8)), make_loader()
    for _ in range(2):
        assert same_batches(list(loader), list(plain))


@pytest.mark.parametrize("rank", [0, 1])
def test_further_batches_have_keys_of_their_own(rank: int) -> None:
    # Of 18 seeds, batches of 8, 8 and 2 are planned; six come back, and one of these again.
    loader = make_shrinking(at_most(5), order={"rank": rank, "world_size": 2}, num_workers=0)
    loader.agree = lambda number: number
    loader.set_epoch(3)
    batches = list(loader)
    assert [len(batch.input_id) for batch in batches] == [5, 5, 2, 5, 1]
    for index in (2, 4):  # which left out none, so that what was drawn is known
        seeds = batches[index].input_id.numpy()
        drawn = loader.source.sampler.sample(seeds, SampleKey(5, 3, 2 * index + rank))
        assert batches[index].n_id.tolist() == drawn.n_id.tolist()
        assert batches[index].edge_index.tolist() == [drawn.row.tolist(), drawn.col.tolist()]


def test_seeds_of_one_type_come_back_too() -> None:
    class ShrinkHetero:
        returns_seeds = True

        def __call__(self, subgraph: Any, resample: Callable[[int], Any]) -> Any:
            counts = {name: list(numbers) for name, numbers in subgraph.num_sampled_nodes.items()}
            left_out = max(0, counts["paper"][0] - 3)
            counts["paper"][0] -= left_out
            counts["paper"][1] += left_out
            return replace(subgraph, num_sampled_nodes=counts)

    data = make_hetero()
    data["paper"].train_mask = torch.arange(40) < 17
    datamodule = GraphDataModule(
        data, num_neighbors=[2, 2], batch_size=5, transforms=[ShrinkHetero()], shuffle=False, num_workers=0
    )
    datamodule.setup("fit")
    batches: list[HeteroData] = list(datamodule.train_dataloader())
    order = [list(range(i, min(i + 5, 17))) for i in range(0, 17, 5)]
    assert [batch["paper"].input_id.tolist() for batch in batches] == expected_inputs(order, at_most(3), 5)
    assert all(batch["paper"].batch_size == len(batch["paper"].input_id) for batch in batches)


# ---- length and errors -----------------------------------------------------------------------------------------------


def test_there_is_no_length() -> None:
    loader, shrink = make_loader(), Shrink(at_most(3))
    assert len(loader) == 5
    loader.add_transform(shrink)
    message = (
        "A `PrefetchLoader` has no length if one of its `transforms` returns seeds: what is left out comes back in"
        " further batches. HINT: `len(loader.order)` counts the others, 5."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        len(loader)
    assert "batches=5+," in repr(loader)
    loader.remove_transform(shrink)
    assert len(loader) == 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_batch_without_a_seed_is_an_error_that_names_it(num_workers: int) -> None:
    loader = make_shrinking(lambda seeds: 0 if len(seeds) == 3 else 8, num_workers=num_workers)
    loader.set_epoch(2)
    message = "`transforms` must return from 1 to 3 of the seeds of batch 4 of epoch 2, but returned 0. HINT: "
    received: list[Data] = []
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        received.extend(loader)
    assert len(received) == 4


def test_more_seeds_than_there_were_are_refused() -> None:
    class Grow:
        returns_seeds = True

        def __call__(self, subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
            return first_seeds(subgraph, 9)

    with pytest.raises(ValueError, match=r"must return from 1 to 8 of the seeds of batch 0 of epoch 0, but returned 9"):
        list(make_loader(transforms=[Grow()], num_workers=0))


def refused_loader(kind: str) -> PrefetchLoader:
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes, edge_ids=True)
    nodes, parts = np.arange(35), np.arange(60) % 10
    if kind == "links":
        links = make_plain()
        return PrefetchLoader(links, SeedOrder(links.num_inputs, 5), num_workers=0)
    if kind == "groups":
        source = NodeSource(ClusterSampler(topology, parts=parts), BatchBuilder(data, topology), nodes)
        return PrefetchLoader(source, GroupOrder(parts[nodes], 2), num_workers=0)
    source = NodeSource(SaintNodeSampler(topology), BatchBuilder(data, topology), nodes)
    return PrefetchLoader(source, SeedOrder(35, 8), num_workers=0)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("groups", "batches are whole groups of seeds (clusters)"),
        ("own", "SaintNodeSampler draws its own seeds"),
        ("links", "batches are not made from single nodes but from a LinkSource (links)"),
    ],
)
def test_where_no_seed_can_be_left_out(kind: str, reason: str) -> None:
    loader = refused_loader(kind)
    message = f"`transforms` must not leave out inputs (`returns_seeds`) where {reason}. HINT: let a transform remove"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        loader.add_transform(Shrink(at_most(3)))
    assert loader.transforms == ()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        PrefetchLoader(loader.source, loader.order, transforms=[Shrink(at_most(3))])
    assert len(list(loader)) == len(loader)


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


# ---- under a Trainer -------------------------------------------------------------------------------------------------


class Follows(L.Callback):
    """Tells the loader of its Trainer before the first batch is fetched, and gives it a transform."""

    def __init__(self, transform: Any = None) -> None:
        self.transform = transform

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        process = trainer.strategy.process_dataloader

        def process_dataloader(loader: Any) -> Any:
            if not isinstance(loader.sampler, torch.utils.data.SequentialSampler):
                loader.follow(trainer)
                if self.transform is not None:
                    loader.add_transform(self.transform)
            return process(loader)

        trainer.strategy.process_dataloader = process_dataloader


class Save(L.Callback):
    def __init__(self, hook: str, number: int, path: Path) -> None:
        self.number, self.path, self.seen = number, path, 0
        setattr(self, hook, self._save)

    def _save(self, trainer: L.Trainer, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.seen += 1
            if self.seen == self.number:
                trainer.save_checkpoint(self.path)


def make_datamodule(**options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, "edge_id": True, **options}
    return GraphDataModule(make_data(), **options)


def fit(*callbacks: L.Callback, num_workers: int = 0, path: Path | None = None, **options: Any) -> Recorder:
    module = Recorder()
    trainer = make_trainer(2, callbacks=[Follows(), *callbacks], **options)
    datamodule = make_datamodule(transforms=[Shrink(_MIXED)], num_workers=num_workers)
    trainer.fit(module, datamodule, ckpt_path=path, weights_only=None if path is None else True)
    return module


@pytest.fixture(scope="module")
def reference() -> Recorder:
    return fit(num_sanity_val_steps=0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fit_of_two_epochs(num_workers: int) -> None:
    module = fit(num_workers=num_workers, num_sanity_val_steps=0)
    loader = make_shrinking(num_workers=0)
    epochs = [list(loader), list(loader)]
    assert [entry[:2] for entry in module.batches] == [(0, i) for i in range(9)] + [(1, i) for i in range(11)]
    assert same_batches([entry[2] for entry in module.batches], [*epochs[0], *epochs[1]])
    assert len(module.validated) == 4  # two batches at the end of each epoch


def test_a_callback_may_add_the_transform_when_the_trainer_takes_the_loader(reference: Recorder) -> None:
    module = Recorder()
    trainer = make_trainer(2, callbacks=[Follows(Shrink(_MIXED))], num_sanity_val_steps=0)
    trainer.fit(module, make_datamodule(num_workers=2))
    assert module.losses == reference.losses


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("hook", "number", "step"),
    [
        ("on_train_batch_end", 1, 1),
        ("on_train_batch_end", 4, 4),
        ("on_train_batch_end", 5, 5),  # the last that was planned
        ("on_train_batch_end", 6, 6),
        ("on_train_batch_end", 7, 7),  # the last of the first round
        ("on_train_batch_end", 8, 8),
        ("on_validation_end", 1, 9),
        ("on_train_epoch_end", 1, 9),
        ("on_train_batch_end", 10, 10),
        ("on_train_batch_end", 19, 19),
    ],
)
def test_a_resumed_run_goes_on_to_the_bit(
    hook: str, number: int, step: int, num_workers: int, reference: Recorder, tmp_path: Path
) -> None:
    path = tmp_path / "middle.ckpt"
    fit(Save(hook, number, path), num_workers=num_workers, num_sanity_val_steps=0)
    resumed = fit(path=path, num_workers=num_workers)
    assert resumed.losses == reference.losses[step:]
    assert [entry[:2] for entry in resumed.batches] == [entry[:2] for entry in reference.batches[step:]]
    pairs = zip(resumed.batches, reference.batches[step:], strict=True)
    assert all(same_batch(one[2], other[2]) for one, other in pairs)


def test_limited_epochs_are_cut_and_validated(reference: Recorder) -> None:
    module = fit(limit_train_batches=7, num_sanity_val_steps=0)
    assert [entry[:2] for entry in module.batches] == [(epoch, i) for epoch in (0, 1) for i in range(7)]
    assert module.losses[:7] == reference.losses[:7]
    assert len(module.validated) == 4


def test_gradients_are_accumulated_to_the_end_of_the_epoch() -> None:
    module = Recorder()
    trainer = make_trainer(1, callbacks=[Follows()], accumulate_grad_batches=2)
    trainer.fit(module, make_datamodule(transforms=[Shrink(_MIXED)]))
    assert len(module.losses) == 9
    assert trainer.global_step == 5


def test_a_share_of_an_unknown_number_is_lightnings_to_refuse() -> None:
    with pytest.raises(MisconfigurationException, match=r"must be `1\.0` or an int"):
        fit(limit_train_batches=0.5)
