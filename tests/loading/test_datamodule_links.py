"""`GraphDataModule` on links, under a Trainer."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from lightning_gnnopt.loading import GraphDataModule, SimulatedDevice
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.sampling import NeighborSampler

from .graphs import N, make_data, prefetch_threads
from .hetero_graphs import WRITES, no_differences
from .link_runs import KINDS, MODES, LinkPredictor, input_ids, links_of, make_datamodule, pairs, split
from .modules import make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


# ---- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("task", MODES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_it_trains_validates_and_tests(kind: str, task: dict[str, Any], num_workers: int) -> None:
    graphs, module = split(kind), LinkPredictor(kind)
    datamodule = make_datamodule(kind, task, num_workers=num_workers)
    trainer = make_trainer(3, num_sanity_val_steps=0)
    trainer.fit(module, datamodule)
    trainer.test(module, datamodule, verbose=False)
    triplet, amount = task["negatives"] == "triplet", task.get("amount", 1)
    num_train, num_val, num_test = (
        int((links_of(data).edge_label > 0).sum()) if triplet else links_of(data).edge_label.numel() for data in graphs
    )
    steps = -(-num_train // 32)
    assert len(module.losses) == 3 * steps
    edges = {tuple(column) for column in links_of(graphs[0]).edge_label_index.t().tolist()}

    drawn = []
    for epoch in range(3):
        batches = module.batches["train"][steps * epoch : steps * (epoch + 1)]
        assert sorted(input_ids(*batches)) == list(range(num_train))  # each link once
        found = [entry for batch in batches for entry in pairs(batch)]
        expected = Counter(map(tuple, links_of(graphs[0]).edge_label_index.t().tolist()))
        if triplet:
            assert Counter(entry[:2] for entry in found) == expected
            assert {len(entry) for entry in found} == {2 + amount}
            drawn.append([entry[2:] for entry in found])
        else:
            assert Counter(entry[:2] for entry in found if entry[2] == 1) == expected
            drawn.append([entry[:2] for entry in found if entry[2] == 0])
            assert len(drawn[-1]) == num_train
            assert set(drawn[-1]) - edges  # by chance some of them are links
    assert drawn[0] != drawn[1]
    assert drawn[1] != drawn[2]

    per_epoch = -(-num_val // 32)
    validated = [
        [
            entry
            for batch in module.batches["val"][per_epoch * epoch : per_epoch * (epoch + 1)]
            for entry in pairs(batch)
        ]
        for epoch in range(3)
    ]
    assert validated[0] == validated[1] == validated[2]
    for data, stage, count, found in (
        (graphs[1], "val", num_val, validated[0]),
        (graphs[2], "test", num_test, [entry for batch in module.batches["test"] for entry in pairs(batch)]),
    ):
        links = links_of(data)
        ends = list(map(tuple, links.edge_label_index.t().tolist()))
        if triplet:
            assert [entry[:2] for entry in found] == ends[:count], stage
        else:
            assert found == [(*end, label) for end, label in zip(ends, links.edge_label.tolist(), strict=True)], stage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", MODES, ids=str)
def test_validation_draws_the_same_negatives_in_each_epoch(kind: str, task: dict[str, Any]) -> None:
    """Where the splits have none of their own."""
    graphs = split(kind, neg_sampling_ratio=0.0)
    datamodule = GraphDataModule(
        graphs[0],
        links=LinkTask.from_splits(*graphs, **task),
        num_neighbors=[3, 2],
        batch_size=8,
    )
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader()):
        first, second = list(loader), list(loader)
        assert no_differences(first, second)
        found = [entry for batch in first for entry in pairs(batch)]
        assert len(found) == loader.order.num_seeds * (2 if task["negatives"] == "binary" else 1)
    train = datamodule.train_dataloader()
    first, second = list(train), list(train)
    assert not no_differences(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_given_links_in_their_order(kind: str) -> None:
    graphs = split(kind)
    ends = links_of(graphs[2]).edge_label_index
    task = LinkTask(predict=LinkSplit(ends), negatives="binary", edge_type=WRITES if kind == "heterogeneous" else None)
    datamodule = GraphDataModule(graphs[0], links=task, num_neighbors=[3, 2], batch_size=7)
    found = make_trainer().predict(LinkPredictor(kind), datamodule)
    assert [entry[:2] for part in found for entry in part] == list(map(tuple, ends.t().tolist()))
    assert [len(part) for part in found][:-1] == [7] * (len(found) - 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_neighbourhood_is_that_of_the_training_graph(kind: str) -> None:
    """Links to validate on are no edges of it: a model must not see what it is asked for."""
    graphs = split(kind)
    datamodule = make_datamodule(kind, MODES[0], eval_num_neighbors=[-1, -1])
    name = WRITES if kind == "heterogeneous" else None
    known = Counter(map(tuple, links_of(graphs[0]).edge_index.t().tolist()))
    for batch in datamodule.val_dataloader():
        edges = links_of(batch).edge_index
        n_ids = [batch[part].n_id for part in name[::2]] if name else [batch.n_id] * 2
        found = Counter(zip(n_ids[0][edges[0]].tolist(), n_ids[1][edges[1]].tolist(), strict=True))
        assert found <= known


def test_links_may_have_labels_of_their_own() -> None:
    data = make_data()
    ends = torch.randint(N, (2, 20), generator=torch.Generator().manual_seed(0))
    label = torch.arange(20) % 4
    task = LinkTask(train=LinkSplit(ends, edge_label=label), negatives="binary")
    (batch,) = GraphDataModule(data, links=task, num_neighbors=[3], shuffle=False).train_dataloader()
    assert batch.edge_label.tolist() == [*(label + 1).tolist(), *[0] * 20]
    assert batch.n_id[batch.edge_label_index[:, :20]].tolist() == ends.tolist()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", MODES[::2], ids=str)
def test_batches_on_a_device_are_the_hosts(kind: str, task: dict[str, Any], num_workers: int) -> None:
    losses = []
    with SimulatedDevice(host_computes=True) as device:
        for where in (device, None):
            module = LinkPredictor(kind)
            trainer = make_trainer(2)
            trainer.fit(module, make_datamodule(kind, task, device=where, num_workers=num_workers))
            losses.append(module.losses)
            stats = trainer.train_dataloader.stats
            assert stats.copies == (0 if where is None else stats.batches)
        for stage in ("train", "val", "test"):
            there, here = (
                list(getattr(make_datamodule(kind, task, device=where), f"{stage}_dataloader")())
                for where in (device, None)
            )
            assert no_differences(there, here)
    assert losses[0] == losses[1]


# ---- on and on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", MODES[:2], ids=str)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(
    num_workers: int, task: dict[str, Any], kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "middle.ckpt"

    class Saves(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(path)

    whole, resumed = LinkPredictor(kind), LinkPredictor(kind)
    options = {"num_workers": num_workers, "batch_size": 28}
    quiet = {"num_sanity_val_steps": 0}
    make_trainer(3, callbacks=[Saves()], **quiet).fit(whole, make_datamodule(kind, task, **options))
    make_trainer(3, **quiet).fit(resumed, make_datamodule(kind, task, **options), ckpt_path=path, weights_only=True)
    assert 4 % (len(whole.losses) // 3)  # in the middle
    assert resumed.losses == whole.losses[4:]
    assert no_differences(resumed.batches["train"], whole.batches["train"][4:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_used", [False, True])
def test_it_travels_to_another_process(kind: str, is_used: bool) -> None:
    datamodule = make_datamodule(kind, MODES[0])
    if is_used:
        list(datamodule.train_dataloader())
    copy = pickle.loads(pickle.dumps(datamodule))
    for stage in ("train", "val", "test"):
        loaders = [getattr(one, f"{stage}_dataloader")() for one in (copy, make_datamodule(kind, MODES[0]))]
        assert no_differences(*map(list, loaders))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_links(world_size: int, kind: str) -> None:
    found: dict[str, list[int]] = {"train": [], "val": []}
    lengths, negatives = set(), []
    for rank in range(world_size):
        datamodule = make_datamodule(kind, MODES[0], batch_size=7)
        datamodule.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=None, overfit_batches=0
        )
        loaders = {"train": datamodule.train_dataloader(), "val": datamodule.val_dataloader()}
        lengths.add(tuple(map(len, loaders.values())))
        for stage, loader in loaders.items():
            batches = list(loader)
            found[stage] += input_ids(*batches)
            if stage == "train":
                negatives.append([entry[:2] for batch in batches for entry in pairs(batch) if entry[2] == 0])
    count = {stage: links_of(data).edge_label.numel() for stage, data in zip(found, split(kind), strict=False)}
    assert set(found["train"]) == set(range(count["train"]))
    assert len(found["train"]) == -(-count["train"] // world_size) * world_size
    assert sorted(found["val"]) == list(range(count["val"]))
    assert len(lengths) == 1
    assert len({tuple(part) for part in negatives}) == world_size  # each draws its own


def test_a_link_sees_nothing_from_after_its_time() -> None:
    data = make_data()
    data.time = torch.arange(N)
    ends = torch.tensor([[5, 9, 20], [30, 11, 2]])
    task = LinkTask(train=LinkSplit(ends, edge_label_time=torch.tensor([31, 12, 40])))
    datamodule = GraphDataModule(data, links=task, num_neighbors=[-1, -1], time_attr="time", shuffle=False)
    assert isinstance(datamodule.sampler, NeighborSampler)
    (batch,) = datamodule.train_dataloader()
    assert batch.edge_label_time.tolist() == [31, 12, 40]
    limit = np.array([31, 12, 40, 31, 12, 40])  # of each end's tree
    order = batch.batch.numpy()
    assert (batch.n_id.numpy()[6:] <= limit[order[6:]]).all()
    assert batch.n_id[batch.edge_label_index].tolist() == ends.tolist()
