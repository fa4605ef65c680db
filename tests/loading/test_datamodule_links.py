"""`GraphDataModule` on links, under a Trainer."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GraphSAGE, HeteroConv, SAGEConv
from torch_geometric.transforms import RandomLinkSplit

from lightning_gnnopt.loading import GraphDataModule, SimulatedDevice
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.sampling import NeighborSampler, SaintNodeSampler

from .graphs import F, N, make_data, prefetch_threads
from .hetero_graphs import AT, CITES, WRITES, WRITTEN, make_hetero, no_differences
from .modules import make_trainer

MODES: list[dict[str, Any]] = [{"negatives": "binary"}, {"negatives": "triplet"}, {"negatives": "triplet", "amount": 3}]
KINDS = ["homogeneous", "heterogeneous"]


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


def split(kind: str, **options: Any) -> tuple[Any, Any, Any]:
    """Graphs to train, to validate and to test on; negatives to train on are left to be drawn."""
    seed_everything(0)  # negatives are drawn by Python's own generator
    options = {"num_val": 0.1, "num_test": 0.2, "add_negative_train_samples": False, **options}
    if kind == "homogeneous":
        return RandomLinkSplit(**options)(make_data())
    return RandomLinkSplit(edge_types=[WRITES], **options)(make_hetero())


def links_of(data: Data | HeteroData) -> Any:
    return data[WRITES] if isinstance(data, HeteroData) else data


def make_datamodule(kind: str, task: dict[str, Any], **options: Any) -> GraphDataModule:
    """Links of a random split."""
    graphs = split(kind)
    options = {"num_neighbors": [3, 2], "batch_size": 32, "seed": 5, **options}
    return GraphDataModule(graphs[0], links=LinkTask.from_splits(*graphs, **task), **options)


def places(batch: Data | HeteroData, name: str, side: int) -> Tensor:
    """Global ids of ends, by what a batch says of their places in it."""
    if not isinstance(batch, HeteroData):
        return batch.n_id[batch[name]]
    node_type = WRITES[2 * side]
    return batch[node_type].n_id[batch[node_type][name]]


def pairs(batch: Data | HeteroData) -> list[tuple[int, ...]]:
    """Sources, destinations and, behind them, labels; or negative destinations."""
    storage = links_of(batch)
    if "edge_label_index" in storage:
        n_ids = [batch[name].n_id if isinstance(batch, HeteroData) else batch.n_id for name in WRITES[::2]]
        ends = [n_id[side] for n_id, side in zip(n_ids, storage.edge_label_index, strict=True)]
        label = storage.edge_label if "edge_label" in storage else torch.ones(len(ends[0]))
        return list(zip(*(part.tolist() for part in (*ends, label)), strict=True))
    source, target = places(batch, "src_index", 0), places(batch, "dst_pos_index", 1)
    negative = places(batch, "dst_neg_index", 1).view(len(source), -1)
    return [(a, b, *rest) for a, b, rest in zip(source.tolist(), target.tolist(), negative.tolist(), strict=True)]


def input_ids(*batches: Data | HeteroData) -> list[int]:
    return [place for batch in batches for place in links_of(batch).input_id.tolist()]


class LinkPredictor(L.LightningModule):
    """Dot products of two layers' outputs; notes what it was given."""

    num_layers = 2

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        if kind == "homogeneous":
            self.net: nn.Module = GraphSAGE(F, 8, num_layers=2)
        else:
            self.venue = nn.Embedding(8, 4)
            widths = [{"author": 3, "paper": 5, "venue": 4}, dict.fromkeys(("author", "paper", "venue"), 8)]
            self.net = nn.ModuleList(
                HeteroConv(
                    {name: SAGEConv((width[name[0]], width[name[2]]), 8) for name in (WRITES, CITES, WRITTEN, AT)}
                )
                for width in widths
            )
        self.batches: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}
        self.losses: list[float] = []

    def embed(self, batch: Any) -> tuple[Tensor, Tensor]:
        if self.kind == "homogeneous":
            z = self.net(batch.x, batch.edge_index)
            return z, z
        x = {"author": batch["author"].x, "paper": batch["paper"].x, "venue": self.venue(batch["venue"].n_id)}
        for conv in self.net:
            x = {name: value.relu() for name, value in conv(x, batch.edge_index_dict).items()}
        return x["author"], x["paper"]

    def step(self, batch: Any, stage: str) -> Tensor:
        self.batches[stage].append(batch)
        (sources, targets), links = self.embed(batch), links_of(batch)
        if "edge_label_index" in links:
            ends = links.edge_label_index
            scores = (sources[ends[0]] * targets[ends[1]]).sum(-1)
            return nn.functional.binary_cross_entropy_with_logits(scores, links.edge_label.clamp(max=1))
        if isinstance(batch, HeteroData):
            index = batch["author"].src_index, batch["paper"].dst_pos_index, batch["paper"].dst_neg_index
        else:
            index = batch.src_index, batch.dst_pos_index, batch.dst_neg_index
        source = sources[index[0]]
        positive = (source * targets[index[1]]).sum(-1, keepdim=True)
        negative = (source[:, None] * targets[index[2].view(len(source), -1)]).sum(-1)
        return nn.functional.softplus(negative - positive).mean()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.step(batch, "train")
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", self.step(batch, "val"), batch_size=len(input_ids(batch)))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.step(batch, "test"), batch_size=len(input_ids(batch)))

    def predict_step(self, batch: Any, batch_idx: int) -> list[tuple[int, ...]]:
        self.batches["predict"].append(batch)
        return pairs(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


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


# ---- masks and labels of nodes ---------------------------------------------------------------------------------------


def changed(**changes: Any) -> Data:
    return make_data().update(changes)


@pytest.mark.parametrize(
    "data",
    [
        changed(y=None),
        changed(y=torch.arange(N) - 1),
        changed(y=torch.rand(N)),
        changed(train_mask=torch.zeros(N, dtype=torch.bool)),
        changed(val_mask=torch.zeros(N, 10, dtype=torch.bool)),
    ],
    ids=["no y", "y below 0", "floating y", "empty mask", "ten masks"],
)
def test_masks_are_not_looked_at(data: Data) -> None:
    ends = torch.tensor([[0, 1, 2], [3, 4, 5]])
    datamodule = GraphDataModule(data, links=LinkTask(train=LinkSplit(ends)), num_neighbors=[3], shuffle=False)
    (batch,) = datamodule.train_dataloader()
    assert batch.n_id[batch.edge_label_index].tolist() == ends.tolist()
    assert datamodule.val_dataloader() == []
    assert [len(datamodule.nodes(stage)) for stage in ("train", "val", "test")] == [0, 0, 0]


def test_an_embedding_may_be_narrower_than_the_nodes_classes() -> None:
    class Narrow(LinkPredictor):
        out_channels = 2

    module = Narrow("homogeneous")
    make_trainer(1).fit(module, make_datamodule("homogeneous", MODES[0]))
    assert len(module.losses) == 7


# ---- refusals --------------------------------------------------------------------------------------------------------

ENDS = torch.tensor([[0, 1], [2, 3]])
LINKS = LinkTask(train=LinkSplit(ENDS))


@pytest.mark.parametrize("stage", ["train", "val", "test", "predict"])
def test_a_stage_without_links_is_left_out(stage: str) -> None:
    others = {name: LinkSplit(ENDS) for name in ("train", "val", "test", "predict") if name != stage}
    datamodule = GraphDataModule(make_data(), links=LinkTask(**others), num_neighbors=[3, 2])
    if stage != "train":
        assert getattr(datamodule, f"{stage}_dataloader")() == []
        return
    message = (
        "`links` must hold links for 'train', but has only ['val', 'test', 'predict']."
        " HINT: `LinkTask(train=LinkSplit(edge_label_index), ...)`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        datamodule.train_dataloader()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(1, num_sanity_val_steps=0).fit(LinkPredictor("homogeneous"), datamodule)


@pytest.mark.parametrize("data", [make_data(), make_hetero()])
@pytest.mark.parametrize(
    ("name", "options"), [("eval_mode='layerwise'", {"eval_mode": "layerwise"}), ("cache", {"cache": "1MB"})]
)
def test_what_is_for_nodes_only_is_refused_at_once(name: str, options: dict[str, Any], data: Any) -> None:
    kind = "homogeneous graphs" if isinstance(data, HeteroData) else "nodes, not for links"
    message = f"`{name}` is for {kind}, but `data` is a {type(data).__name__} and `links` are given. HINT: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.+"):
        GraphDataModule(data, links=LINKS, **options)


@pytest.mark.parametrize("links", [3, "train", LinkSplit(ENDS), ENDS])
def test_what_is_no_task_is_refused_at_once(links: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^`links` must be a `LinkTask`, but got .* HINT: "):
        GraphDataModule(make_data(), links=links)


@pytest.mark.parametrize(
    ("data", "task", "message"),
    [
        (
            make_data(),
            LinkTask(val=LinkSplit(torch.tensor([[0], [60]]))),
            "`val.edge_label_index` must hold destinations from 0 to 59 (60 nodes), but found 60. HINT: ",
        ),
        (
            make_hetero(),
            LinkTask(train=LinkSplit(torch.tensor([[30], [3]])), edge_type=WRITES),
            "`train.edge_label_index` must hold sources from 0 to 29 (30 nodes), but found 30. HINT: ",
        ),
        (make_data(), LinkTask(train=LinkSplit(ENDS), edge_type=CITES), "`edge_type` must be None in a homogeneous"),
        (make_hetero(), LINKS, "`edge_type` must join two node types of the graph, ['author', 'paper', 'venue'], but"),
        (
            make_hetero(),
            LinkTask(train=LinkSplit(ENDS), edge_type=("author", "likes", "film")),
            "`edge_type` must join two node types of the graph, ['author', 'paper', 'venue'], but got ('author', 'lik",
        ),
    ],
)
def test_links_of_another_graph_are_refused(data: Any, task: LinkTask, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        GraphDataModule(data, links=task, num_neighbors=[3]).setup("fit")


def test_a_sampler_that_draws_its_own_seeds_is_refused() -> None:
    message = (
        "`sampler` must start from the seeds it is given, but SaintNodeSampler draws its own: the ends of a link might"
        " not be in its batch. HINT: use a `NeighborSampler`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        GraphDataModule(
            make_data(), links=LINKS, sampler=partial(SaintNodeSampler), eval_num_neighbors=[3]
        ).train_dataloader()


def test_fewer_fan_outs_than_layers_are_refused() -> None:
    message = "`num_neighbors` must hold one fan-out for each of the model's 2 layers, but samples 1 hop"
    for kind in KINDS:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            make_trainer(1).fit(LinkPredictor(kind), make_datamodule(kind, MODES[0], num_neighbors=[3]))


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
