"""Models that are swept, and the batches and peaks of a sweep found by hand."""

from __future__ import annotations

import copy
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import SAGEConv
from typing_extensions import override

from lightning_gnnopt import GraphDataModule
from lightning_gnnopt.analysis.records import SweepRecord
from lightning_gnnopt.analysis.sweeps.sweep import sampling_sweep
from lightning_gnnopt.memory.meter import PeakMeter

FANOUTS = [4, 3]


class Plain(L.LightningModule):
    """A LightningModule as a user writes it; it keeps what it was trained on."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = SAGEConv(64, width), SAGEConv(width, 10)
        self.form = "optimizer"

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.second(self.first(x, edge_index).relu(), edge_index)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        rows = slice(batch["batch_size"]) if "batch_size" in batch else batch.train_mask
        loss = nn.functional.cross_entropy(self(batch.x, batch.edge_index)[rows], batch.y[rows])
        self.log("loss", loss)
        return loss

    @override
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        return {
            "optimizer": optimizer,
            "list": [optimizer],
            "lists": ([optimizer], [scheduler]),
            "dict": {"optimizer": optimizer, "lr_scheduler": scheduler},
            "two": [optimizer, torch.optim.SGD(self.parameters())],
            "none": None,
        }[self.form]


SEEN: list[Any] = []


class Seeing(Plain):
    """Keeps the batches; copies of it share the list."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        SEEN.append(batch)
        return super().training_step(batch, batch_idx)


def batches_of(data: Data, batch_size: int, count: int, **options: Any) -> list[Data]:
    """The same batches, through worker threads and over epochs."""
    datamodule = GraphDataModule(
        data, num_neighbors=FANOUTS, batch_size=batch_size, seed=5, drop_last=True, num_workers=2, **options
    )
    loader = datamodule.train_dataloader()
    found: list[Data] = []
    while len(found) < count:
        found += list(loader)
    return found[:count]


def hand_peaks(model: Plain, batches: list[Data]) -> list[int]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())
    peaks = []
    for place, batch in enumerate([batches[0], batches[0], *batches]):
        with PeakMeter("cpu") as meter:
            rows = slice(batch["batch_size"]) if "batch_size" in batch else batch.train_mask
            loss = nn.functional.cross_entropy(model(batch.x, batch.edge_index)[rows], batch.y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del loss
        if place >= 2:
            peaks.append(meter.peak.allocated_bytes)
    return peaks


def sweep(data: Any, model: Any, **options: Any) -> list[SweepRecord]:
    common: dict[str, Any] = {"batches": 5, "seed": 5, "num_neighbors": FANOUTS}
    if isinstance(data, GraphDataModule):
        del common["num_neighbors"]
    return sampling_sweep(data, model, **(common | options))
