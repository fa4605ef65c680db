"""Links of a random split, and a module that predicts them."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch_geometric import seed_everything
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import GraphSAGE, HeteroConv, SAGEConv
from torch_geometric.transforms import RandomLinkSplit

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.loading.links import LinkTask

from .graphs import F, make_data
from .hetero_graphs import AT, CITES, WRITES, WRITTEN, make_hetero

MODES: list[dict[str, Any]] = [{"negatives": "binary"}, {"negatives": "triplet"}, {"negatives": "triplet", "amount": 3}]
KINDS = ["homogeneous", "heterogeneous"]


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
