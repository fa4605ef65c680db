"""What `GraphDataModule` does not look at where it loads links, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch_geometric.data import Data, HeteroData

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.link_split import LinkSplit
from lightning_gnnopt.loading.links import LinkTask
from lightning_gnnopt.sampling import SaintNodeSampler

from .graphs import N, make_data, prefetch_threads
from .hetero_graphs import CITES, WRITES, make_hetero
from .link_runs import KINDS, MODES, LinkPredictor, make_datamodule
from .modules import make_trainer


@pytest.fixture(autouse=True)
def _no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    yield
    assert prefetch_threads() == []


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
