"""Modules and datamodules that tests of the validation process send to it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.demos.boring_classes import RandomDataset
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_gnnopt.evaluation.blueprint import Blueprint


class Obedient(L.LightningModule):
    """Validates a linear layer; a file says what else to do in `validation_step`."""

    def __init__(self, orders: str = "") -> None:
        super().__init__()
        torch.manual_seed(5)
        self.orders = orders
        self.net = nn.Sequential(nn.Linear(32, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        self.register_buffer("shift", torch.zeros(2), persistent=False)
        self.mean = MeanMetric()
        self.num_set_up = 0

    def setup(self, stage: str) -> None:
        self.num_set_up += 1
        nn.init.zeros_(self.net[0].weight)
        self.trainer.fit_loop  # noqa: B018 - there is one

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self._obey()
        out = self.net(batch) + self.shift
        self.mean.update(out.square().sum())
        self.log("mean", self.mean)
        self.log("x", out.sum(), on_step=True, on_epoch=True, prog_bar=True, batch_size=len(batch))
        self.log("draw", torch.rand(()), batch_size=len(batch))

    def on_validation_epoch_end(self) -> None:
        self.log("own/epoch", float(self.current_epoch))
        self.log("own/step", float(self.global_step))
        self.log("set_up", float(self.num_set_up))
        if self.logger is not None:
            self.logger.log_metrics({"said": 1.5}, step=7)
            self.logger.experiment.add_scalar("ignored", 1.0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _obey(self) -> None:
        order = Path(self.orders).read_text() if self.orders and Path(self.orders).exists() else ""
        if order == "raise":
            self.mean.update(1e9)  # what is left behind must not be found by the next validation
            raise ValueError("this batch is bad")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "exit":
            os._exit(3)
        if order == "hang":
            Path(self.orders + ".hangs").write_text("yes")
            time.sleep(600)
        if order == "print":
            print("said by the module")
            os.write(1, b"written past Python\n")


class Randomly(L.LightningDataModule):
    """Draws another split in each `setup`."""

    def __init__(self, num_workers: int = 0) -> None:
        super().__init__()
        self.num_workers = num_workers
        self.num_torn_down = 0

    def setup(self, stage: str) -> None:
        self.rows = torch.randn(24, 32)

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 8), batch_size=4)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=8, num_workers=self.num_workers)

    def teardown(self, stage: str) -> None:
        del self.rows


class Big(L.LightningDataModule):
    """Has features of 200 MB, and reads all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.x = torch.rand(200 * 2**20 // 128, 32)

    def val_dataloader(self) -> Any:
        return DataLoader(_Chunks(self.x), batch_size=None)


class _Chunks(torch.utils.data.Dataset[Tensor]):
    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return 64

    def __getitem__(self, k: int) -> Tensor:
        return self.x[k :: len(self)]


class Lazy(L.LightningModule):
    """Has layers that learn their widths from the first batch: torch's and PyG's."""

    def __init__(self) -> None:
        super().__init__()
        from torch_geometric.nn.dense import Linear

        self.net = nn.Sequential(nn.LazyLinear(6), nn.LazyBatchNorm1d(), Linear(-1, 2))

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("x", self.net(batch).sum(), batch_size=len(batch))


class Surrounded(L.LightningModule):
    """Logs what it finds in its environment."""

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "PYTHONPATH", "GIVEN")
        self.log_dict({name: float(name in os.environ) for name in names}, batch_size=1)
        self.log("world", float(self.trainer.world_size), batch_size=1)
        self.log("threads", float(torch.get_num_threads()), batch_size=1)
        self.log("is_double", float(torch.get_default_dtype() == torch.float64), batch_size=1)


def loader(num_workers: int = 0) -> Any:
    torch.manual_seed(3)
    return DataLoader(torch.randn(24, 32), batch_size=8, num_workers=num_workers)


def quiet_trainer(**kwargs: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **kwargs,
    )  # fmt: skip


def blueprint_of(module: L.LightningModule, loaders: Any = None, datamodule: Any = None, **kwargs: Any) -> Blueprint:
    """What `Blueprint.of` gives during a fit of these."""
    trainer = quiet_trainer()
    trainer.strategy._lightning_module = module
    trainer._data_connector.attach_data(module, val_dataloaders=loaders, datamodule=datamodule)
    return Blueprint.of(trainer, module, device=torch.device("cpu"), callbacks=[], **kwargs)


def write_weights(module: nn.Module, path: Path) -> Path:
    """Write a snapshot's file."""
    state = module.state_dict()
    buffers = {name: value for name, value in module.named_buffers() if name not in state}
    torch.save({"state_dict": dict(state), "buffers": buffers}, path)
    return path
