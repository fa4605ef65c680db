"""What a Trainer must be like, and where validation beside it finds room."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ParallelStrategy

from lightning_gnnopt.evaluation import AsyncValidation
from lightning_gnnopt.evaluation import surroundings as module
from lightning_gnnopt.evaluation.surroundings import check, checkpoint_folder, spare_device

from .runs import Rows, Tiny, fit


class NoStep(L.LightningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError

    def configure_optimizers(self) -> Any:
        raise AssertionError


class NoLoader(Rows):
    val_dataloader = L.LightningDataModule.val_dataloader


def refused(folder: Path, *callbacks: L.Callback, **options: Any) -> str:
    with pytest.raises(ValueError, match=r" HINT: ") as caught:
        fit(folder, *callbacks, **options)
    return str(caught.value)


def test_without_a_validation_step(tmp_path: Path) -> None:
    told = refused(tmp_path, AsyncValidation(), module=NoStep())
    assert told.startswith("`AsyncValidation` runs `validation_step`, but NoStep has none.")


def test_without_batches_to_validate_on(tmp_path: Path) -> None:
    assert "there is no `val_dataloader`" in refused(tmp_path, AsyncValidation(), data=NoLoader())
    assert "there is no `val_dataloader`" in refused(tmp_path, AsyncValidation(), data=(Rows().train_dataloader(),))


def test_one_is_enough(tmp_path: Path) -> None:
    """Lightning refuses a second one of a kind by itself."""
    first, second = AsyncValidation(dirpath=tmp_path / "a"), AsyncValidation(dirpath=tmp_path / "b", monitor="val/loss")
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `AsyncValidation`"):
        fit(tmp_path, first, second)


def test_a_checkpoint_of_the_same_metric(tmp_path: Path) -> None:
    told = refused(tmp_path, AsyncValidation(), ModelCheckpoint(tmp_path, monitor="val/acc", mode="max"))
    assert told.startswith("`ModelCheckpoint(monitor='val/acc')` would save today's weights")


@pytest.mark.parametrize("strategy", [FSDPStrategy, ParallelStrategy])
def test_strategies_that_shard_are_refused(strategy: type) -> None:
    sharded: Any = types.new_class("Sharded", (strategy,))
    sharded.__abstractmethods__ = frozenset()
    trainer: Any = types.SimpleNamespace(strategy=object.__new__(sharded))
    with pytest.raises(ValueError, match=r"strategy of one device or DDP, but got Sharded\. HINT: `strategy='ddp'`"):
        check(trainer, Tiny(), monitor=None)


def test_what_fits_is_taken() -> None:
    callbacks = [
        AsyncValidation(),
        ModelCheckpoint(monitor=None),
        ModelCheckpoint(monitor="train/loss"),
    ]
    trainer = L.Trainer(accelerator="cpu", callbacks=callbacks, logger=False)  # type: ignore[arg-type]
    trainer._data_connector.attach_data(Tiny(), datamodule=Rows())  # type: ignore[attr-defined]
    check(trainer, Tiny(), monitor="val/acc")
    with pytest.raises(ValueError, match="ModelCheckpoint"):
        check(trainer, Tiny(), monitor="train/loss")
    assert isinstance(DDPStrategy(), DDPStrategy)


def test_checkpoints_lie_where_they_do_with_lightning(tmp_path: Path) -> None:
    """Beside the logger's files; or in the Trainer's folder; or where one says."""
    for logger in (False, CSVLogger(tmp_path / "logs", name="run", version=3), CSVLogger(tmp_path, version="mine")):
        trainer = L.Trainer(accelerator="cpu", logger=logger, default_root_dir=tmp_path / "root")
        [lightnings] = trainer.checkpoint_callbacks
        expected = lightnings._ModelCheckpoint__resolve_ckpt_dir(trainer)  # type: ignore[attr-defined]
        assert checkpoint_folder(trainer, None) == Path(expected).absolute()
        assert checkpoint_folder(trainer, tmp_path / "own") == tmp_path / "own"


@pytest.mark.parametrize("where", ["s3://bucket/run", "gs://bucket"])
def test_a_folder_of_another_machine_is_refused(where: str) -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=where)
    with pytest.raises(ValueError, match=r"`dirpath` must be a folder of this machine.* HINT: "):
        checkpoint_folder(trainer, None)
    with pytest.raises(ValueError, match=r"`dirpath` must be a folder of this machine.* HINT: "):
        checkpoint_folder(trainer, Path(where))


def on(device: str, used: list[int]) -> Any:
    strategy = types.SimpleNamespace(root_device=torch.device(device))
    return types.SimpleNamespace(strategy=strategy, device_ids=used, num_devices=len(used), precision="32-true")


@pytest.mark.parametrize(
    ("device", "used", "num_devices", "expected"),
    [
        ("cpu", [], 4, "cpu"),
        ("mps", [0], 1, "cpu"),
        ("cuda:0", [0], 1, "cpu"),
        ("cuda:0", [0], 2, "cuda:1"),
        ("cuda:1", [1], 2, "cuda:0"),
        ("cuda:1", [0, 1], 4, "cuda:2"),
        ("cuda:3", [0, 1, 2, 3], 4, "cpu"),
    ],
)
def test_a_device_that_is_free(
    device: str, used: list[int], num_devices: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = types.SimpleNamespace(device_count=lambda: num_devices, is_available=lambda: num_devices > 0)
    monkeypatch.setattr(module.torch, "get_device_module", lambda device: counted)
    assert spare_device(on(device, used), "auto") == torch.device(expected)
    assert spare_device(on(device, used), "cpu") == torch.device("cpu")
    assert spare_device(on(device, used), f"cuda:{num_devices - 1}") == torch.device("cuda", num_devices - 1)
    with pytest.raises(ValueError, match=rf"`device`.*'cuda:{num_devices}', and torch finds {num_devices} of type"):
        spare_device(on(device, used), f"cuda:{num_devices}")


def test_another_kind_of_device_may_compute_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = on("cuda:0", [0])
    trainer.precision = "16-mixed"
    monkeypatch.setattr(module.torch, "get_device_module", lambda device: types.SimpleNamespace(device_count=lambda: 1))
    with pytest.warns(UserWarning, match=r"With `precision='16-mixed'`, validation on 'cpu' may not compute as 'cuda'"):
        spare_device(trainer, "auto")
