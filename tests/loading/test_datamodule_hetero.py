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
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

from lightning_gnnopt.loading import GraphDataModule, SimulatedDevice
from lightning_gnnopt.loading.hetero_batches import HeteroBatchBuilder
from lightning_gnnopt.sampling import HeteroNeighborSampler, HeteroTopology, SampleKey

from .graphs import make_data, prefetch_threads
from .hetero_graphs import AT, CITES, NUM_NODES, WRITES, WRITTEN, differences, make_hetero, no_differences
from .modules import make_trainer

STAGES = ("train", "val", "test", "predict")


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


def add_masks(data: HeteroData, node_type: str) -> HeteroData:
    """Odd nodes train; even ones validate below 20 and test from there on."""
    node = torch.arange(NUM_NODES[node_type])
    storage = data[node_type]
    storage.train_mask = node % 2 == 1
    storage.val_mask = (node % 2 == 0) & (node < 20)
    storage.test_mask = (node % 2 == 0) & (node >= 20)
    return data


def make_masked(*node_types: str) -> HeteroData:
    data = make_hetero()
    for node_type in node_types or ("paper",):
        add_masks(data, node_type)
    return data


def make_datamodule(data: HeteroData | None = None, **options: Any) -> GraphDataModule:
    options = {"num_neighbors": [3, 2], "batch_size": 8, "seed": 5, **options}
    return GraphDataModule(make_masked() if data is None else data, **options)


def loader_of(datamodule: GraphDataModule, stage: str) -> Any:
    return getattr(datamodule, f"{stage}_dataloader")()


def seeds(loader: Any, node_type: str = "paper") -> list[int]:
    return [node for batch in loader for node in batch[node_type].n_id[: batch[node_type].batch_size].tolist()]


def joined(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


class Typed(L.LightningModule):
    """Two layers over authors, papers and venues, which have a place in a table instead of features."""

    num_layers = 2

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.venue = nn.Embedding(8, 4)
        widths = [{"author": 3, "paper": 5, "venue": 4}, dict.fromkeys(("author", "paper", "venue"), 8)]
        self.convs = nn.ModuleList(
            HeteroConv({name: SAGEConv((width[name[0]], width[name[2]]), 8) for name in (WRITES, CITES, WRITTEN, AT)})
            for width in widths
        )
        self.out = nn.Linear(8, 3)
        self.seen: dict[str, list[list[int]]] = {stage: [] for stage in STAGES}
        self.batches: list[HeteroData] = []
        self.losses: list[float] = []

    def forward(self, batch: HeteroData) -> Tensor:
        x = {"author": batch["author"].x, "paper": batch["paper"].x, "venue": self.venue(batch["venue"].n_id)}
        for conv in self.convs:
            x = {name: value.relu() for name, value in conv(x, batch.edge_index_dict).items()}
        return self.out(x["paper"][: batch["paper"].batch_size])

    def step(self, batch: HeteroData, stage: str) -> Tensor:
        size = batch["paper"].batch_size
        self.seen[stage].append(batch["paper"].n_id[:size].tolist())
        return nn.functional.cross_entropy(self(batch), batch["paper"].y[:size])

    def training_step(self, batch: HeteroData, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        loss = self.step(batch, "train")
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: HeteroData, batch_idx: int) -> None:
        self.log("val/loss", self.step(batch, "val"), batch_size=batch["paper"].batch_size)

    def test_step(self, batch: HeteroData, batch_idx: int) -> None:
        self.log("test/loss", self.step(batch, "test"), batch_size=batch["paper"].batch_size)

    def predict_step(self, batch: HeteroData, batch_idx: int) -> Tensor:
        return torch.cat([batch["paper"].n_id[: batch["paper"].batch_size, None], self(batch)], dim=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


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


# ---- labels ----------------------------------------------------------------------------------------------------------


def labelled(y: Any) -> HeteroData:
    data = make_masked()
    data["paper"].y = y
    return data


def test_classes_are_counted() -> None:
    datamodule = make_datamodule()
    assert (datamodule.num_classes, datamodule.multilabel) == (3, False)
    assert make_datamodule(num_classes=9).num_classes == 9
    assert make_datamodule(labelled(torch.arange(40).view(-1, 1) % 4)).num_classes == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_node_may_have_several_labels(dtype: torch.dtype) -> None:
    datamodule = make_datamodule(labelled((torch.arange(160).view(40, 4) % 3 == 0).to(dtype)))
    assert (datamodule.num_classes, datamodule.multilabel) == (4, True)
    assert next(iter(datamodule.train_dataloader()))["paper"].y.shape[1:] == (4,)


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (torch.arange(40) % 3 - 1, {}, "`y` must be from 0 to 1 (2 classes) for every node of `train_mask`, but 7 of"),
        (
            torch.arange(40) % 3,
            {"num_classes": 2},
            "`y` must be from 0 to 1 (2 classes) for every node of `train_mask`",
        ),
        (torch.arange(160).view(40, 4), {}, "`y` must be 0 or 1 (multi-label) for every node of `train_mask`, but"),
        (torch.full((40, 4), 0.5), {}, "`y` must be 0 or 1 (multi-label) for every node of `train_mask`, but"),
    ],
)
def test_wrong_labels_are_refused_at_once(y: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(labelled(y), **options)


@pytest.mark.parametrize("y", [torch.zeros(39).long(), torch.zeros(41).long(), torch.tensor(3)])
def test_labels_of_another_number_are_refused_at_once(y: Tensor) -> None:
    message = f"`y` must be of shape (N,) or (N, C) for the graph's 40 nodes, but its shape is {tuple(y.shape)}. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(labelled(y))


def test_labels_outside_the_masks_do_not_matter() -> None:
    data = labelled(torch.where(torch.arange(40) % 2 == 0, -1, 2))
    del data["paper"].val_mask, data["paper"].test_mask
    assert make_datamodule(data).num_classes == 3


@pytest.mark.parametrize("y", [torch.rand(40), torch.rand(40, 1)])
def test_numbers_to_predict_are_no_classes(y: Tensor) -> None:
    datamodule = make_datamodule(labelled(y))
    assert torch.equal(torch.cat([b["paper"].y[: b["paper"].batch_size] for b in datamodule.predict_dataloader()]), y)
    with pytest.raises(ValueError, match=r"^`num_classes` is not known, because 'paper' nodes hold no classes in `y`"):
        _ = datamodule.num_classes


def test_without_labels_the_number_of_classes_is_not_known() -> None:
    datamodule = make_datamodule(make_masked("author"))
    message = r"^`num_classes` is not known, because 'author' nodes hold no .* HINT: pass `num_classes=\.\.\.`\.$"
    with pytest.raises(ValueError, match=message):
        _ = datamodule.num_classes
    assert not datamodule.multilabel
    assert make_datamodule(make_masked("author"), num_classes=2).num_classes == 2


def test_a_type_without_features_says_so() -> None:
    with pytest.raises(ValueError, match=r"^`num_features` is not known: 'venue' nodes hold no `x`\. HINT: "):
        _ = make_datamodule(input_type="venue").num_features


# ---- refusals --------------------------------------------------------------------------------------------------------

KNOWN = "of the node types ['author', 'paper', 'venue']"


def empty_mask() -> HeteroData:
    data = make_masked()
    data["paper"].val_mask = torch.zeros(40, dtype=torch.bool)
    return data


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            make_hetero(),
            {},
            f"`input_type` must say which nodes are inputs, as none {KNOWN} have masks. HINT: name one",
        ),
        (
            make_masked("author", "paper"),
            {},
            f"`input_type` must say which nodes are inputs, as ['author', 'paper'] {KNOWN} have masks. HINT: name one",
        ),
        (
            make_masked(),
            {"input_type": "papers"},
            "Unknown input_type 'papers'. Did you mean 'paper'? Known: author, p",
        ),
        (
            make_data(),
            {"input_type": "paper"},
            "`input_type` is for a `HeteroData`, but `data` is a Data and `input_typ",
        ),
        (HeteroData(), {}, "`data` must hold nodes and edges of some types, but has node types [] and edge types []."),
        (empty_mask(), {}, "`val_mask` must choose at least one node, but all of its 40 values are False."),
        (make_masked(), {"sampler": "labor"}, "`sampler` must be 'neighbor' or a function for a `HeteroData`, but got"),
        (
            make_masked(),
            {"sampler": lambda topology: HeteroNeighborSampler(topology, [2])},
            "`num_neighbors` must be left out with a `sampler` function, but got [3, 2]. HINT: give the fan-outs to",
        ),
    ],
)
def test_what_does_not_fit_is_refused_at_once(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(data, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("eval_mode='layerwise'", {"eval_mode": "layerwise"}),
        ("cache", {"cache": "1MB"}),
        ("cache", {"cache": "auto"}),
        ("features", {"features": "x.npy"}),
        ("feature_dtype", {"feature_dtype": "int8"}),
        ("weight_attr", {"weight_attr": "edge_weight"}),
        ("time_attr", {"time_attr": "year"}),
        ("input_time_attr", {"input_time_attr": "year"}),
        ("edge_format", {"edge_format": "csc"}),
    ],
)
def test_what_is_for_one_type_only_is_refused_at_once(name: str, options: dict[str, Any]) -> None:
    message = f"`{name}` is for homogeneous graphs, but `data` is a HeteroData. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.+"):
        make_datamodule(**options)


@pytest.mark.parametrize(
    ("fanouts", "message"),
    [
        ({CITES: [3, 2]}, "`num_neighbors` must have fan-outs for every edge type, but has none for"),
        (
            {CITES: [3, 2], WRITES: [1, 1], WRITTEN: [0, 0], AT: [0, 0], ("a", "b", "c"): [1, 1]},
            "`num_neighbors` must be for edge types of the graph, but ('a', 'b', 'c') is none of them:",
        ),
        ([], "`num_neighbors` must "),
    ],
)
def test_wrong_fan_outs_are_refused(fanouts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.* HINT: "):
        make_datamodule(num_neighbors=fanouts).setup("fit")
    with pytest.raises(
        ValueError, match=f"^{re.escape(message.replace('num_neighbors', 'eval_num_neighbors'))}.* HINT: "
    ):
        make_datamodule(eval_num_neighbors=fanouts).setup("fit")


def test_a_feature_that_is_no_number_is_refused_at_once() -> None:
    data = make_masked()
    data["author"].x[3, 1] = float("inf")
    message = "`x of 'author'` must be finite, but 1 of its 90 values are NaN or infinite. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_datamodule(data)


@pytest.mark.parametrize("cache", [0, "0B"])
def test_no_cache_is_no_cache(cache: int | str) -> None:
    assert len(list(make_datamodule(cache=cache).train_dataloader())) == 3


def test_an_edge_that_points_past_the_last_node_is_refused() -> None:
    data = make_masked()
    data[WRITES].edge_index[0, 7] = 30
    with pytest.raises(
        ValueError, match=re.escape(f"`edge_index of {WRITES}` must hold sources from 0 to 29 (30 nodes)")
    ):
        make_datamodule(data).setup("fit")


def test_fewer_fan_outs_than_layers_are_refused() -> None:
    message = "`num_neighbors` must hold one fan-out for each of the model's 2 layers, but samples 1 hop"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_trainer(1).fit(Typed(), make_datamodule(num_neighbors=[3]))
    message = "`eval_num_neighbors` must hold one fan-out for each of the model's 2 layers, but samples 1 hop"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_trainer(1).fit(Typed(), make_datamodule(eval_num_neighbors=[3]))


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
