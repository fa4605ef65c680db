"""A LightningModule that takes batches like `NeighborLoader`'s and knows nothing of this package, and its Trainer.

And a classifier of this package, which says what it needs.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn import GraphSAGE

from lightning_gnnopt.models import NodeClassifier

from .graphs import C, F


class Recorder(L.LightningModule):
    """Trains two layers, and notes what it was given and what came out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = GraphSAGE(F, 8, num_layers=2, out_channels=C)
        self.batches: list[tuple[int, int, Data]] = []  # epoch, number, batch
        self.losses: list[float] = []
        self.validated: list[Data] = []

    def _loss(self, batch: Data) -> Tensor:
        logits = self.net(batch.x, batch.edge_index)[: batch.batch_size]
        return torch.nn.functional.cross_entropy(logits, batch.y[: batch.batch_size])

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.batches.append((self.current_epoch, batch_idx, batch))
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        self.log("loss", self._loss(batch), batch_size=batch.batch_size)
        self.validated.append(batch)

    def test_step(self, batch: Data, batch_idx: int) -> None:
        self.log("loss", self._loss(batch), batch_size=batch.batch_size)

    def predict_step(self, batch: Data, batch_idx: int) -> Tensor:
        return batch.n_id[: batch.batch_size]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def make_trainer(max_epochs: int = 3, **kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(accelerator="cpu", max_epochs=max_epochs, enable_model_summary=False, **{**quiet, **kwargs})


def classifier(**kwargs: Any) -> NodeClassifier:
    return NodeClassifier("sage", **{"in_channels": F, "out_channels": C, "hidden_channels": 8, **kwargs})
