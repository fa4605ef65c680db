"""A small heterogeneous graph, what compares batches of any kind, and a module that trains on the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Data, HeteroData
from torch_geometric.nn import HeteroConv, SAGEConv

from lightning_gnnopt.loading import GraphDataModule

from .graphs import same_bits

NUM_NODES = {"author": 30, "paper": 40, "venue": 8}
WRITES, CITES, WRITTEN, AT = (
    ("author", "writes", "paper"),
    ("paper", "cites", "paper"),
    ("paper", "written", "author"),
    ("paper", "at", "venue"),
)
NUM_EDGES = {WRITES: 120, CITES: 160, WRITTEN: 110, AT: 40}


def make_hetero(*, seed: int = 0) -> HeteroData:
    """Has every kind of attribute that PyG cuts or leaves; venues have none."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data.title, data.scale = "a graph", torch.tensor([1.0, 2.0])
    data["author"].x = torch.randn(30, 3, generator=generator)
    data["author"].node_index = torch.arange(90).view(3, 30)  # PyG joins what is named `index` in its last dimension
    data["author"].mean = torch.randn(4, generator=generator)
    data["paper"].x = torch.randn(40, 5, generator=generator)
    data["paper"].y = torch.arange(40) % 3
    data["paper"].year = np.arange(1980, 2020)
    data["venue"].num_nodes = 8
    for name, count in NUM_EDGES.items():
        source, target = (torch.randint(NUM_NODES[end], (count,), generator=generator) for end in name[::2])
        data[name].edge_index = torch.stack([source, target])
    data[WRITES].edge_attr = torch.randn(120, 2, generator=generator)
    data[CITES].edge_weight = torch.rand(160, generator=generator)
    data[CITES].source = "a list"
    return data


def flat(batch: Data | HeteroData) -> dict[tuple[Any, str], Any]:
    """All that a batch holds, by type and name."""
    return {(getattr(store, "_key", None), name): store[name] for store in batch.stores for name in store}


def differences(found: Data | HeteroData, expected: Data | HeteroData) -> list[tuple[Any, str]]:
    """What two batches do not have in common, bit for bit."""
    left, right = flat(found), flat(expected)
    return [
        key
        for key in left.keys() | right.keys()
        if key not in left or key not in right or not same_bits(left[key], right[key])
    ]


def no_differences(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    return len(found) == len(expected) and not any(differences(a, b) for a, b in zip(found, expected, strict=True))


STAGES = ("train", "val", "test", "predict")


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
