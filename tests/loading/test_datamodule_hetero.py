"""`GraphDataModule` on a `HeteroData`, under a Trainer."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from lightning_gnnopt.loading import GraphDataModule, SimulatedDevice
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, SampleKey

from .graphs import prefetch_threads
from .hetero_graphs import (
    AT,
    CITES,
    NUM_NODES,
    STAGES,
    WRITES,
    WRITTEN,
    Typed,
    differences,
    make_datamodule,
    make_masked,
    no_differences,
)
from .modules import make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


def loader_of(datamodule: GraphDataModule, stage: str) -> Any:
    return getattr(datamodule, f"{stage}_dataloader")()


def seeds(loader: Any, node_type: str = "paper") -> list[int]:
    return [node for batch in loader for node in batch[node_type].n_id[: batch[node_type].batch_size].tolist()]


def joined(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


# ---- end to end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_it_trains_validates_tests_and_predicts(num_workers: int) -> None:
    data = make_masked()
    module, datamodule = Typed(), make_datamodule(data, num_workers=num_workers, eval_num_neighbors=[-1, -1])
    trainer = make_trainer(3, num_sanity_val_steps=0)
    trainer.fit(module, datamodule)
    for epoch in range(3):
        trained = module.seen["train"][3 * epoch : 3 * epoch + 3]
        assert [len(batch) for batch in trained] == [8, 8, 4]
        assert sorted(joined(trained)) == list(range(1, 40, 2))
        validated = module.seen["val"][2 * epoch : 2 * epoch + 2]
        assert joined(validated) == list(range(0, 20, 2))
    assert module.seen["train"][:3] != module.seen["train"][3:6]
    (metrics,) = trainer.test(module, datamodule, verbose=False)
    assert joined(module.seen["test"]) == list(range(20, 40, 2))
    predicted = torch.cat(trainer.predict(module, datamodule))
    assert predicted[:, 0].tolist() == list(range(40))

    # All neighbours: as on the whole graph, of which all nodes are seeds.
    data["paper"].batch_size, data["venue"].n_id = 40, torch.arange(8)
    with torch.no_grad():
        expected = module.eval()(data)
    assert torch.allclose(predicted[:, 1:], expected, atol=1e-5)
    test = data["paper"].test_mask
    loss = nn.functional.cross_entropy(expected[test], data["paper"].y[test])
    assert metrics["test/loss"] == pytest.approx(loss.item(), abs=1e-5)


def test_training_batches_are_those_of_parts_built_by_hand() -> None:
    data = make_masked()
    topology = HeteroTopology.from_data(data, edge_ids=True)
    sampler, builder = HeteroNeighborSampler(topology, [3, 2]), HeteroBatchBuilder(data, topology, edge_id=True)
    nodes = np.arange(1, 40, 2)
    loader = make_datamodule(data, edge_id=True).train_dataloader()
    for epoch in range(2):
        order = SampleKey(5, epoch).permutation(20)
        for index, batch in enumerate(loader):
            places = order[8 * index : 8 * index + 8]
            subgraph = sampler.sample({"paper": nodes[places]}, SampleKey(5, epoch, index))
            assert differences(batch, builder.build(subgraph, "paper", places)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_on_a_device_are_the_hosts(num_workers: int) -> None:
    losses = []
    with SimulatedDevice(host_computes=True) as device:
        for where in (device, None):
            module = Typed()
            datamodule = make_datamodule(device=where, num_workers=num_workers, edge_id=True)
            trainer = make_trainer(2)
            trainer.fit(module, datamodule)
            losses.append(module.losses)
            stats = trainer.train_dataloader.stats
            assert (stats.batches, stats.copies) == (6, 0 if where is None else 6)
        for stage in STAGES:
            there, here = (
                list(loader_of(make_datamodule(device=where, edge_id=True), stage)) for where in (device, None)
            )
            assert no_differences(there, here)
    assert losses[0] == losses[1]


def test_evaluation_draws_the_same_in_every_epoch() -> None:
    datamodule = make_datamodule(eval_num_neighbors={CITES: [2, 1], WRITES: [1, 1], WRITTEN: [0, 1], AT: [0, 0]})
    for stage in ("val", "test", "predict"):
        loader = loader_of(datamodule, stage)
        first, second = list(loader), list(loader)
        assert no_differences(first, second)
        for batch in first:
            assert batch[AT].edge_index.size(1) == batch[WRITTEN].num_sampled_edges[0] == 0
            degrees = torch.bincount(batch[CITES].edge_index[1], minlength=1)
            assert degrees.max() <= 2
    train = datamodule.train_dataloader()
    assert not no_differences(list(train), list(train))


def test_fan_outs_may_differ_by_edge_type() -> None:
    data = make_masked()
    fanouts = {CITES: [-1, 0], WRITES: [2, 1], WRITTEN: [0, 3], AT: [0, 0]}
    datamodule = make_datamodule(data, num_neighbors=fanouts)
    assert datamodule.sampler.num_neighbors == fanouts
    assert datamodule.eval_sampler is datamodule.sampler
    source, target = data[CITES].edge_index
    for batch in datamodule.train_dataloader():
        size, n_id = batch["paper"].batch_size, batch["paper"].n_id
        found = n_id[batch[CITES].edge_index]
        for seed in n_id[:size].tolist():
            assert sorted(found[0][found[1] == seed].tolist()) == sorted(source[target == seed].tolist())
        assert batch[CITES].num_sampled_edges[1] == 0
        assert torch.bincount(batch[WRITES].edge_index[1], minlength=size)[:size].max() <= 2
        assert batch["venue"].num_nodes == 0


def test_a_sampler_may_be_a_function() -> None:
    data = make_masked()

    def without_replacement(topology: HeteroTopology) -> HeteroNeighborSampler:
        return HeteroNeighborSampler(topology, [2, 2], disjoint=True)

    datamodule = GraphDataModule(data, sampler=without_replacement, batch_size=8)
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["paper"].batch[:8].tolist() == list(range(8))
    assert datamodule.sampler.num_hops == 2


# ---- which nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("node_type", ["author", "paper"])
def test_the_type_with_masks_has_the_inputs(node_type: str) -> None:
    data = make_masked(node_type)
    datamodule = make_datamodule(data)
    assert datamodule.num_features == data[node_type].x.size(1)
    for stage in ("train", "val", "test"):
        nodes = data[node_type][f"{stage}_mask"].nonzero().view(-1).tolist()
        assert datamodule.nodes(stage).tolist() == nodes
        assert sorted(seeds(loader_of(datamodule, stage), node_type)) == nodes
    assert seeds(datamodule.predict_dataloader(), node_type) == list(range(NUM_NODES[node_type]))


def test_of_two_types_with_masks_one_is_chosen() -> None:
    data = make_masked("paper", "author")
    assert sorted(seeds(make_datamodule(data, input_type="author").train_dataloader(), "author")) == list(
        range(1, 30, 2)
    )
    assert sorted(seeds(make_datamodule(data, input_type="paper").train_dataloader())) == list(range(1, 40, 2))


def test_a_type_without_masks_can_be_predicted() -> None:
    datamodule = make_datamodule(make_masked("paper"), input_type="venue", batch_size=3)
    assert seeds(datamodule.predict_dataloader(), "venue") == list(range(8))
    assert datamodule.val_dataloader() == datamodule.test_dataloader() == []
    message = (
        "`data['venue']` must hold `train_mask` to run this stage, but it has none."
        " HINT: `torch_geometric.transforms.RandomNodeSplit` makes the three masks."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datamodule.train_dataloader()


def test_a_predict_mask_chooses_what_is_predicted() -> None:
    data = make_masked()
    data["paper"].predict_mask = torch.arange(40) % 13 == 3
    assert seeds(make_datamodule(data).predict_dataloader()) == [3, 16, 29]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_seeds(world_size: int) -> None:
    trained, validated, lengths = [], [], set()
    for rank in range(world_size):
        datamodule = make_datamodule(batch_size=3)
        datamodule.trainer = SimpleNamespace(
            global_rank=rank, world_size=world_size, lightning_module=None, overfit_batches=0
        )
        trained += seeds(datamodule.train_dataloader())
        validated += seeds(datamodule.val_dataloader())
        lengths.add((len(datamodule.train_dataloader()), len(datamodule.val_dataloader())))
    assert set(trained) == set(range(1, 40, 2))
    assert len(trained) == -(-20 // world_size) * world_size
    assert sorted(validated) == list(range(0, 20, 2))
    assert len(lengths) == 1


# ---- on and on -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["fresh", "set up", "used"])
def test_it_travels_to_another_process(state: str) -> None:
    datamodule = make_datamodule(edge_id=True)
    expected = {stage: list(loader_of(make_datamodule(edge_id=True), stage)) for stage in STAGES}
    if state == "set up":
        datamodule.setup("fit")
    elif state == "used":
        list(datamodule.train_dataloader())
    copy = pickle.loads(pickle.dumps(datamodule))
    assert (copy.num_classes, copy.num_features) == (3, 5)
    for stage in STAGES:
        assert no_differences(list(loader_of(copy, stage)), expected[stage])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_goes_on_in_the_middle_of_an_epoch(num_workers: int, tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"

    class Saves(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(path)

    whole, resumed = Typed(), Typed()
    make_trainer(3, callbacks=[Saves()], num_sanity_val_steps=0).fit(whole, make_datamodule(num_workers=num_workers))
    make_trainer(3, num_sanity_val_steps=0).fit(
        resumed, make_datamodule(num_workers=num_workers), ckpt_path=path, weights_only=True
    )
    assert len(resumed.losses) == 9 - 4
    assert resumed.losses == whole.losses[4:]
    assert no_differences(resumed.batches, whole.batches[4:])
