"""What a Lightning profiler is not told: the batches, and where the fit begins and ends."""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override


class FitListener(Protocol):
    """Is told of a fit."""

    def fit_started(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training begins."""

    def batch_arrived(self, trainer: L.Trainer, batch: Any) -> None:
        """The batch of the next step is on its device."""

    def fit_ended(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training has ended."""

    def fit_broke(self, trainer: L.Trainer, pl_module: L.LightningModule, error: BaseException) -> None:
        """Training was ended by an error."""

    def fit_left(self) -> None:
        """The Trainer is done, whether training took place or not."""


class FitWatch(Callback):
    """Stands in the Trainer's list of callbacks during a fit, and tells a profiler what it sees."""

    def __init__(self, listener: FitListener) -> None:
        self._listener = listener

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listener.fit_started(trainer, pl_module)

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._listener.batch_arrived(trainer, batch)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listener.fit_ended(trainer, pl_module)

    @override
    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._listener.fit_broke(trainer, pl_module, exception)

    @override
    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._listener.fit_left()
