from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

from lightning_gnnopt.evaluation.blueprint import Blueprint
from lightning_gnnopt.evaluation.child_logger import ChildLogger

from .child_modules import quiet_trainer


class _Taker(L.Callback):
    """Makes a blueprint when training starts."""

    def __init__(self, device: str = "cpu", **kwargs: Any) -> None:
        self.device, self.kwargs = torch.device(device), kwargs

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.blueprint = Blueprint.of(trainer, pl_module, device=self.device, **self.kwargs)


def blueprint_in_fit(taker: _Taker, *args: Any, datamodule: Any = None, **kwargs: Any) -> Blueprint:
    quiet_trainer(callbacks=[taker], limit_train_batches=1, **kwargs).fit(BoringModel(), *args, datamodule=datamodule)
    return taker.blueprint


def test_it_takes_what_validation_depends_on() -> None:
    blueprint = blueprint_in_fit(
        _Taker(), limit_val_batches=3, inference_mode=False, precision="bf16-mixed", accumulate_grad_batches=2
    )
    options = dict(blueprint.trainer_options)
    assert options["limit_val_batches"] == 3
    assert options["inference_mode"] is False
    assert options["precision"] == "bf16-mixed"
    assert options["accumulate_grad_batches"] == 2
    assert options["accelerator"] == "cpu"
    assert blueprint.num_threads == torch.get_num_threads()
    assert blueprint.loaders is None
    assert blueprint.datamodule is None
    trainer = blueprint.make_trainer(ChildLogger())
    assert trainer.limit_val_batches == 3
    assert trainer.validate_loop.inference_mode is False
    assert trainer.precision == "bf16-mixed"
    assert trainer.max_epochs == 1
    assert trainer.world_size == 1


def test_given_loaders_are_taken_and_those_of_a_module_are_not() -> None:
    loaders = [torch.utils.data.DataLoader(torch.randn(4, 32)) for _ in range(2)]
    train = torch.utils.data.DataLoader(torch.randn(4, 32))
    blueprint = blueprint_in_fit(_Taker(), train, loaders, limit_val_batches=0)
    assert blueprint.loaders is loaders


def test_a_factory_takes_the_place_of_the_datamodule() -> None:
    datamodule = BoringDataModule()
    assert blueprint_in_fit(_Taker(), datamodule=datamodule).datamodule is datamodule
    blueprint = blueprint_in_fit(_Taker(datamodule_factory=BoringDataModule), datamodule=datamodule)
    assert blueprint.datamodule is None
    assert blueprint.datamodule_factory is BoringDataModule


@pytest.mark.parametrize(("device", "devices"), [("cpu", 1), ("cuda", 1), ("cuda:1", [1])])
def test_a_device_is_said_as_a_trainer_wants_it(device: str, devices: Any) -> None:
    options = blueprint_in_fit(_Taker(device)).trainer_options
    assert options["accelerator"] == torch.device(device).type
    assert options["devices"] == devices


def test_a_process_is_set_up_as_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        torch.use_deterministic_algorithms(True, warn_only=True)
        blueprint = blueprint_in_fit(_Taker(num_threads=1))
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")
        torch.use_deterministic_algorithms(False)
        assert (blueprint.seed, blueprint.seed_workers) == (17, True)
        blueprint.configure_torch()
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
        blueprint.make_trainer(ChildLogger())
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision(before)
        torch.use_deterministic_algorithms(False)


def test_the_logger_keeps_what_a_module_says_and_not_what_the_trainer_does() -> None:
    logger = ChildLogger()
    logger.log_metrics({"a": torch.tensor(2.5)}, step=3)
    with logger.silent():
        logger.log_metrics({"b": 1.0})
    logger.log_metrics({"c": 1})
    logger.experiment.add_image("x", None)
    logger.log_image(key="x", images=[])
    assert logger.take() == [({"a": 2.5}, 3), ({"c": 1.0}, None)]
    assert logger.take() == []
