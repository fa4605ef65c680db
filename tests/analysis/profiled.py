"""Fits that tests profile."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch_geometric.data import Data

from lightning_gnnopt import GraphDataModule, NodeClassifier
from lightning_gnnopt.analysis import GNNProfiler
from lightning_gnnopt.analysis.records import Records

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def make_parts(data: Data, *, num_workers: int = 0, network: str = "gcn") -> tuple[NodeClassifier, GraphDataModule]:
    torch.manual_seed(0)
    datamodule = GraphDataModule(data, num_neighbors=[4, 4], batch_size=256, num_workers=num_workers)
    sizes = {"in_channels": datamodule.num_features, "out_channels": datamodule.num_classes, "hidden_channels": 8}
    return NodeClassifier(network, **sizes), datamodule


def fit(
    data: Data, profiler: GNNProfiler | None, *, epochs: int = 4, **options: Any
) -> tuple[L.Trainer, NodeClassifier]:
    model, datamodule = make_parts(data, num_workers=options.pop("num_workers", 0))
    trainer = L.Trainer(profiler=profiler, max_epochs=epochs, **(QUIET | options))
    torch.manual_seed(1)
    trainer.fit(model, datamodule)
    return trainer, model


def total(records: Records, **wanted: str) -> float:
    return sum(r.seconds for r in records.times if all(getattr(r, name) == value for name, value in wanted.items()))
