"""Where Lightning takes loaders and batches over: each can be looked at there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from lightning_gnnopt.memory.prober import Stage

_STAGES: dict[str, Stage] = {
    "train": "train",
    "sanity_check": "val",
    "validate": "val",
    "test": "test",
    "predict": "predict",
}


class Transfer:
    """Takes the place of a strategy's transfer of batches, and of its look at loaders.

    Args:
        trainer: The Trainer.
        on_batch: Called with each batch, its stage and the number of its loader; gives the batch to use instead.
        on_loader: Called with each loader before anything is asked of it.

    Attributes:
        enabled: Whether batches are shown to `on_batch`.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        *,
        on_batch: Callable[[Any, Stage, int], Any],
        on_loader: Callable[[Any], None],
    ) -> None:
        self.enabled = True
        self._trainer: Any = trainer
        self._strategy: Any = trainer.strategy
        self._on_batch, self._on_loader = on_batch, on_loader
        self._originals = {name: getattr(self._strategy, name) for name in ("batch_to_device", "process_dataloader")}
        vars(self._strategy).update(batch_to_device=self._batch_to_device, process_dataloader=self._process_dataloader)

    def remove(self) -> None:
        """Give the strategy its own back."""
        for name in self._originals:
            vars(self._strategy).pop(name, None)

    def _process_dataloader(self, loader: Any) -> Any:
        loader = self._originals["process_dataloader"](loader)
        self._on_loader(loader)
        return loader

    def _batch_to_device(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        stage = _STAGES.get(str(self._trainer.state.stage and self._trainer.state.stage.value))
        if self.enabled and stage is not None and batch is not None:
            batch = self._on_batch(batch, stage, int(kwargs.get("dataloader_idx", 0)))
        return self._originals["batch_to_device"](batch, *args, **kwargs)
