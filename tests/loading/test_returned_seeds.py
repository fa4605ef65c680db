"""Seeds that a transform leaves out come back at the end of the epoch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
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
from lightning_gnnopt.sampling import SampleKey, Subgraph, Topology
from lightning_gnnopt.sampling.cluster import ClusterSampler
from lightning_gnnopt.sampling.saint_node import SaintNodeSampler

from .graphs import make_data, make_loader, prefetch_threads, same_batch, same_batches
from .hetero_graphs import make_hetero
from .modules import Recorder, make_trainer
from .shrinking import MIXED, Shrink, any_number, at_most, expected_inputs, first_seeds, inputs, make_shrinking, seen
from .test_link_source import make_plain


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert prefetch_threads() == []


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
    datamodule = make_datamodule(transforms=[Shrink(MIXED)], num_workers=num_workers)
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
    trainer = make_trainer(2, callbacks=[Follows(Shrink(MIXED))], num_sanity_val_steps=0)
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
    trainer.fit(module, make_datamodule(transforms=[Shrink(MIXED)]))
    assert len(module.losses) == 9
    assert trainer.global_step == 5


def test_a_share_of_an_unknown_number_is_lightnings_to_refuse() -> None:
    with pytest.raises(MisconfigurationException, match=r"must be `1\.0` or an int"):
        fit(limit_train_batches=0.5)
