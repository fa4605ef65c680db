"""What a Trainer must be like for validation beside it, and where that finds room."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden


def check(trainer: L.Trainer, pl_module: L.LightningModule, *, monitor: str | None) -> None:
    """Refuse what cannot work, before a run starts.

    Raises:
        ValueError: If it cannot; the message says why.
    """
    anything: Any = trainer
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        raise ValueError(
            "`AsyncValidation` needs the whole model in each process, so a strategy of one device or DDP, but got"
            f" {type(trainer.strategy).__name__}. HINT: `strategy='ddp'`, or Lightning's own validation."
        )
    if not is_overridden("validation_step", pl_module):
        raise ValueError(
            f"`AsyncValidation` runs `validation_step`, but {type(pl_module).__name__} has none."
            " HINT: write one that logs what `monitor` names."
        )
    if not anything.fit_loop.epoch_loop.val_loop._data_source.is_defined():
        raise ValueError(
            "`AsyncValidation` needs batches to validate on, but there is no `val_dataloader`."
            " HINT: give the DataModule one, or pass `val_dataloaders` to `fit`."
        )
    check_checkpoints(trainer, () if monitor is None else (monitor,))
    if anything.val_check_interval != 1.0 or anything.check_val_every_n_epoch != 1:
        rank_zero_warn(
            "`AsyncValidation` validates when its own `every_n_epochs` or `every_n_steps` says so: the Trainer's"
            f" `val_check_interval={anything.val_check_interval}` and"
            f" `check_val_every_n_epoch={anything.check_val_every_n_epoch}` are not looked at."
        )


def check_checkpoints(trainer: Any, metrics: Collection[str]) -> None:
    """Refuse callbacks that would save the weights of today under the score of earlier ones.

    Raises:
        ValueError: If a `ModelCheckpoint` monitors one of these metrics.
    """
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None and callback.monitor in metrics:
            raise ValueError(
                f"`ModelCheckpoint(monitor={callback.monitor!r})` would save today's weights under the score of earlier"
                " ones. HINT: leave it out: `AsyncValidation` keeps the best weights itself (`monitor`, `save_top_k`)."
            )


def averages_weights(trainer: Any) -> bool:
    """Whether a callback keeps averages of the weights, which are to be judged in their place."""
    return any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)


def checkpoint_folder(trainer: L.Trainer, dirpath: Path | None) -> Path:
    """Choose where checkpoints go, as `ModelCheckpoint` does: given, or beside the first logger's files.

    Raises:
        ValueError: If that is not on this machine.
    """
    anything: Any = trainer
    if dirpath is None:
        dirpath = anything.default_root_dir
        if anything.loggers:
            logger = anything.loggers[0]
            version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
            dirpath = Path(logger.save_dir or anything.default_root_dir, str(logger.name), version)
        dirpath = Path(dirpath, "checkpoints")
    if "://" in str(dirpath) or ":/" in str(dirpath)[2:]:
        raise ValueError(
            f"`dirpath` must be a folder of this machine, which weights pass through, but is '{dirpath}'."
            " HINT: `dirpath='checkpoints'`."
        )
    return Path(dirpath).absolute()


def spare_device(trainer: L.Trainer, device: str) -> torch.device:
    """Choose where to validate: as asked, or on an accelerator that no process trains on, or else on the CPU.

    Raises:
        ValueError: If there is no such device.
    """
    root: torch.device = trainer.strategy.root_device
    chosen = _spare(trainer, root) if device == "auto" else torch.device(device)
    if device != "auto" and chosen.type != "cpu":
        module = torch.get_device_module(chosen)
        found = module.device_count() if module.is_available() else 0
        if (chosen.index or 0) >= found:
            raise ValueError(
                f"`device` must be one of this machine's, but is {device!r}, and torch finds {found} of type"
                f" {chosen.type!r}. HINT: 'auto', or 'cpu'."
            )
    if chosen.type != root.type and trainer.precision not in ("32-true", "64-true"):
        rank_zero_warn(
            f"With `precision={trainer.precision!r}`, validation on {chosen.type!r} may not compute as {root.type!r}"
            " does: its metrics may differ from those of a blocking one. HINT: `device` chooses where to validate."
        )
    return chosen


def _spare(trainer: L.Trainer, root: torch.device) -> torch.device:
    if root.type in ("cpu", "mps"):
        return torch.device("cpu")
    used = {root.index or 0, *_device_ids(trainer)}
    spare = [index for index in range(torch.get_device_module(root).device_count()) if index not in used]
    return torch.device(root.type, spare[0]) if spare else torch.device("cpu")


def _device_ids(trainer: L.Trainer) -> list[int]:
    return [int(index) for index in trainer.device_ids] if trainer.num_devices > 1 else []
