"""Fits of a graph over several processes; tests run ``python -m tests.parallel.fits`` in a process of its own."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import BatchNorm, GATConv, GCNConv

from lightning_gnnopt import NodeClassifier
from lightning_gnnopt.parallel import GraphParallelStrategy, LearnedBalance, PartitionDataModule

N, F, C = 300, 12, 4


class Net(nn.Module):
    """GCN, batch norm, GAT: what needs degrees, statistics and softmax.

    A bias before the norm would have a gradient of rounding errors only, of which Adam makes whole steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_channels, self.out_channels = F, C
        self.first, self.norm, self.last = (
            GCNConv(F, 16, bias=False),
            BatchNorm(16),
            GATConv(16, C, heads=2, concat=False),
        )

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x, edge_index)).relu(), edge_index)  # type: ignore[no-any-return]


def make_graph(*, targets: str = "uneven") -> Data:
    """A directed graph of which most train nodes, or all, are in one part of two."""
    generator = torch.Generator().manual_seed(0)
    data = Data(
        x=torch.randn(N, F, generator=generator),
        y=torch.randint(C, (N,), generator=generator),
        edge_index=torch.randint(N, (2, 2000), generator=generator),
    )
    order = torch.arange(N)
    data.train_mask = order < (100 if targets == "one-part" else 190)
    data.val_mask = (order >= 200) & (order < 251)  # an odd number
    data.test_mask = order >= 251
    return data


class Slow(NodeClassifier):
    """Its first process takes longer for each of its nodes; tells how many it has."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.world_size > 1 and self.global_rank == 0:
            time.sleep(2e-4 * batch.num_nodes)
        self.log("own_nodes", float(batch.num_nodes))
        return super().training_step(batch, batch_idx)


def fit(folder: Path, num_parts: int, *, epochs: int, targets: str, ckpt_path: Path | None = None) -> dict[str, Any]:
    """Fit and test, in forked processes; return what was logged."""
    L.seed_everything(3, verbose=False)
    data = make_graph(targets=targets)
    datamodule = PartitionDataModule(data, folder=folder / targets, owner=torch.arange(N) * num_parts // N)
    is_slow = targets == "slow"
    module = (Slow if is_slow else NodeClassifier)(Net(), optimizer={"name": "Adam", "lr": 0.01})
    balance = LearnedBalance(every_n_steps=2) if is_slow else "fixed"
    saving = ModelCheckpoint(folder, f"{num_parts}-{epochs}", enable_version_counter=False)
    trainer = L.Trainer(
        accelerator="cpu", devices=num_parts, max_epochs=epochs,
        strategy=GraphParallelStrategy(start_method="fork", balance=balance),
        callbacks=[saving], logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, datamodule, ckpt_path=ckpt_path)
    trained = dict(trainer.callback_metrics)
    tested = trainer.test(module, datamodule, verbose=False)[0]
    metrics: dict[str, Any] = {**trained, **tested}
    return {name: float(value) for name, value in metrics.items()}


def main() -> None:
    """A folder, and fits in turn: ``folder,parts,epochs,targets`` and maybe ``,checkpoint``."""
    warnings.simplefilter("ignore")
    for given in sys.argv[2:]:
        name, num_parts, epochs, targets, *checkpoint = given.split(",")
        folder = Path(sys.argv[1]) / name
        folder.mkdir(exist_ok=True)
        ckpt_path = Path(sys.argv[1]) / checkpoint[0] if checkpoint else None
        metrics = fit(folder, int(num_parts), epochs=int(epochs), targets=targets, ckpt_path=ckpt_path)
        print("METRICS " + json.dumps(metrics), flush=True)


if __name__ == "__main__":
    main()
