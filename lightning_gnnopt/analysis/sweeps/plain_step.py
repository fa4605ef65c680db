"""A training step outside of a Trainer."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch.optim import Optimizer


class PlainStep:
    """Runs training steps as Lightning does, with nothing around them: forward, gradients cleared, backward, optimizer.

    Args:
        model: A LightningModule that is this object's own; nothing of what it logs is kept.
        device: Where it is trained.

    Raises:
        ValueError: If it optimizes by itself, or has not exactly one optimizer.
    """

    def __init__(self, model: L.LightningModule, device: torch.device) -> None:
        if not model.automatic_optimization:
            raise ValueError(
                f"`model` must leave optimization to Lightning, but {type(model).__name__} sets"
                " `automatic_optimization = False`, and its steps need a Trainer. HINT: profile a fit with"
                " `GNNProfiler` instead."
            )
        for name in ("log", "log_dict"):  # they belong to a Trainer, and warn without one
            setattr(model, name, _log_nothing)
        self._model = model.to(device).train()
        self._optimizer = _optimizer_of(self._model)
        self._steps = 0

    def __call__(self, batch: Any) -> None:
        """Run one step.

        Args:
            batch: A batch on the device.
        """
        output: Any = self._model.training_step(batch, self._steps)
        loss = output["loss"] if isinstance(output, dict) else output
        self._steps += 1
        if loss is None:  # as Lightning has it: no step
            return
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()


def _optimizer_of(model: L.LightningModule) -> Optimizer:
    """The optimizer that a module configures, in whichever of Lightning's forms."""
    configured: Any = model.configure_optimizers()
    if isinstance(configured, tuple) and len(configured) == 2 and isinstance(configured[0], list):
        configured = configured[0]  # and its schedulers
    found = list(configured) if isinstance(configured, list | tuple) else [configured]
    optimizers = [one["optimizer"] if isinstance(one, dict) else one for one in found]
    if len(optimizers) != 1 or not isinstance(optimizers[0], Optimizer):
        raise ValueError(
            f"`configure_optimizers` of {type(model).__name__} must make one optimizer, but made {configured!r}."
            " HINT: profile a fit with `GNNProfiler` instead."
        )
    return optimizers[0]


def _log_nothing(*_: Any, **__: Any) -> None:
    """Stand in for `LightningModule.log`."""
