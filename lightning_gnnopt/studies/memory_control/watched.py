"""Short training runs under `MemoryControl`, each step measured twice: by control, and by sums of this file's own."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from lightning_gnnopt.loading import GraphDataModule
from lightning_gnnopt.memory import MemoryControl, PeakMeter
from lightning_gnnopt.studies.quiet import quiet

PLENTY = 0.95
"""Of the machine: more than any step takes."""


def make_trainer(*callbacks: Callback, **kwargs: Any) -> L.Trainer:
    """Make a Trainer that trains on the CPU, does not validate and writes nothing."""
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options: dict[str, Any] = {"num_sanity_val_steps": 0, "limit_val_batches": 0, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **{**options, **silent, **kwargs})


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A step that was watched.

    Attributes:
        stage: ``"train"`` or ``"val"``.
        bytes: Bytes at its peak: what was held when it began, the batches, and what it added.
        growth_bytes: What it added.
        features: The features of its batch, shape ``(P,)``; None for a step that control knows nothing of.
        predicted: The bytes that control had predicted for its peak; None for a step that control did not judge, such
            as the first one, which makes the optimizer's state.
        touched: Whether control had changed its batch, or run it in parts.
    """

    stage: str
    bytes: float
    growth_bytes: float
    features: NDArray[np.float64] | None
    predicted: float | None
    touched: bool


class StepWatch(Callback):
    """Sums up the bytes at each step's peak.

    Nothing of it comes from control but its predictions. Stands behind `MemoryControl` in the list of callbacks.

    Args:
        control: What to compare with.

    Attributes:
        steps: The steps watched, in order.
    """

    def __init__(self, control: MemoryControl) -> None:
        self.steps: list[Step] = []
        self._control = control
        self._meter = PeakMeter("cpu")
        self._held = 0
        self._before = control.tally.copy()

    def _start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any) -> None:
        held = [*module.parameters(), *module.buffers()]
        held += [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        for optimizer in trainer.optimizers:
            held += [value for state in optimizer.state.values() for value in state.values()]
        batches = sum_bytes(batch.to_dict().values())
        learned = self._learned("train" if trainer.training else "val")
        if learned is not None:  # batches that wait behind it: taken to be as large
            batches += int(learned.footprint.ahead.nbytes(batches))
        self._held = sum_bytes(held) + batches
        self._meter.start()

    def _end(self, stage: str, batch: Any) -> None:
        growth = self._meter.stop().allocated_bytes
        tally, learned = self._control.tally.copy(), self._learned(stage)
        new, self._before = tally - self._before, tally
        last = None if self._control.controller is None else self._control.controller.last
        self.steps.append(
            Step(
                stage=stage,
                bytes=float(self._held + growth),
                growth_bytes=float(growth),
                features=None if learned is None else learned.footprint.features(batch),
                predicted=last[0] if new.measured and last is not None else None,
                touched=bool(new.touched),
            )
        )

    def _learned(self, stage: str) -> Any:
        controller: Any = self._control.controller
        return None if controller is None else controller.learned.get((stage, 0))

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self._start(trainer, pl_module, batch)

    @override
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end("train", batch)

    @override
    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start(trainer, pl_module, batch)

    @override
    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._end("val", batch)


def sum_bytes(values: Any) -> int:
    """Sum up the bytes of those values that are tensors, each storage once."""
    tensors = [value for value in values if isinstance(value, Tensor) and value.nbytes]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that was watched.

    Attributes:
        steps: Its steps.
        control: The control.
        module: The module as it was in the end.
    """

    steps: Sequence[Step]
    control: MemoryControl
    module: L.LightningModule


def watched_fit(
    module: L.LightningModule,
    datamodule: GraphDataModule,
    *,
    budget: float = PLENTY,
    callbacks: Sequence[Callback] = (),
    trainer: dict[str, Any] | None = None,
    **control_options: Any,
) -> Run:
    """Fit under control, each step measured.

    Args:
        module: The module.
        datamodule: Its batches.
        budget: Bytes, or a share of the machine.
        callbacks: Further callbacks.
        trainer: Arguments of the Trainer.
        **control_options: Arguments of `MemoryControl`.

    Raises:
        MemoryBudgetError: If nothing that may be tried makes a batch fit.
    """
    gc.collect()  # or an earlier run's tensors are released in the middle of a step, which then seems to take less
    control = MemoryControl(budget, measure_every=1, verbose=False, **control_options)
    watch = StepWatch(control)
    with quiet():
        make_trainer(control, watch, *callbacks, **(trainer or {})).fit(module, datamodule=datamodule)
    return Run(steps=watch.steps, control=control, module=module)
