"""A short run on a graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from lightning_gnnopt import GraphDataModule, NodeClassifier

from .runs import Run, fit


def graph() -> Any:
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(2)
    data = Data(
        x=torch.randn(120, 8, generator=generator),
        y=torch.randint(3, (120,), generator=generator),
        edge_index=torch.randint(120, (2, 600), generator=generator),
    )
    node = torch.arange(120)
    data.train_mask, data.val_mask, data.test_mask = node < 60, (node >= 60) & (node < 100), node >= 100
    return data


def graph_run(folder: Path, *callbacks: L.Callback, dropout: float = 0.5, **options: Any) -> Run:
    torch.manual_seed(4)
    module = NodeClassifier("sage", in_channels=8, out_channels=3, hidden_channels=8, dropout=dropout)
    datamodule = GraphDataModule(graph(), num_neighbors=[3, 2], batch_size=12, seed=3)
    return fit(folder, *callbacks, module=module, data=datamodule, **options)
