"""Random numbers that are not keyed by the batch: the state of torch's in checkpoints, and a run's seed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from torch import Tensor
from typing_extensions import override

_NAME = "random_state"


def default_seed() -> int:
    """The number that was given to `lightning.seed_everything`, or else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def save_random_state(trainer: Any) -> dict[str, Any]:
    """Take the states of torch's generators: the CPU's, and that of the device that trains.

    Under DDP all processes call it together, each giving its own states; in one that an exception ends the others may
    not come, so it saves its own only.

    Args:
        trainer: The Trainer, or None.

    Returns:
        The states of each rank as byte tensors, which load with ``weights_only=True``; nothing without a Trainer.
    """
    if trainer is None:
        return {}
    own = {"cpu": torch.get_rng_state()}
    device = trainer.strategy.root_device
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    ranks = {trainer.global_rank: own}
    if trainer.world_size > 1 and dist.is_initialized() and trainer.state.status != TrainerStatus.INTERRUPTED:
        gathered: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(gathered, own)
        ranks = dict(enumerate(gathered))
    return {_NAME: ranks}


def restore_random_state(trainer: Any, state: Mapping[str, Any]) -> None:
    """Have the states of a checkpoint taken up when training goes on.

    Not at once: until then weights may be drawn, and other processes started. Nothing is done in other stages than
    training, for a rank whose states were not saved, and for a checkpoint without them.

    Args:
        trainer: The Trainer, or None.
        state: What :func:`save_random_state` returned.
    """
    own = state.get(_NAME, {}).get(None if trainer is None else trainer.global_rank)
    if own is not None and trainer.state.fn == TrainerFn.FITTING:
        # Before the others: what they draw for the next batch comes after it.
        trainer.callbacks = [_Restores(own), *trainer.callbacks]


class _Restores(Callback):
    """Sets the generators before whatever comes first of what came after the checkpoint was saved."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restore(trainer)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._restore(trainer)

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self._restore(trainer)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._leave(trainer)

    def _restore(self, trainer: L.Trainer) -> None:
        torch.set_rng_state(self._state["cpu"].cpu())
        device = trainer.strategy.root_device
        if "cuda" in self._state and device.type == "cuda":
            torch.cuda.set_rng_state(self._state["cuda"].cpu(), device)
        self._leave(trainer)

    def _leave(self, trainer: Any) -> None:
        # A new list: Lightning may be going through the one that is there.
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]
