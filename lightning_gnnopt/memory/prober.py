"""Run a LightningModule's steps on tiny batches and log every allocation."""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple, TypeVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer import call
from numpy.typing import NDArray
from torchmetrics import Metric

from lightning_gnnopt.memory.events import can_record, record_events
from lightning_gnnopt.memory.held import bucket_bytes, held_bytes
from lightning_gnnopt.memory.untouched import untouched

Stage = Literal["train", "val", "test", "predict"]
T = TypeVar("T")

_STEPS = {"val": "validation_step", "test": "test_step", "predict": "predict_step"}
_WARM_UP = 2
_LOGGED_BYTES = 64  # a value, its weight and what is made of them
STEP, FIRST, MIDDLE, LAST = "step", "first", "middle", "last"
"""What a training step does: everything; the start, the middle and the end of accumulating gradients."""
_WINDOW = (FIRST, MIDDLE, LAST)


class Recorded(NamedTuple):
    """What was recorded of a step.

    Attributes:
        streams: For each kind of step, the events of each batch. Evaluation has one kind, ``"step"``.
        labels: Where each event of a whole step happens: modules and operators.
        held_bytes: What is held between two steps: see :func:`held_bytes`.
        logged_bytes: At most so much is made room for when something is logged for the first time in an epoch.
    """

    streams: dict[str, list[NDArray[np.int64]]]
    labels: list[str]
    held_bytes: int
    logged_bytes: int


class StepProber:
    """Runs a stage's step as Lightning runs it, and records its allocations; leaves no trace.

    The whole of a training step is run: precision, hooks of the module, `backward`, clipping and the optimizer, whose
    state is there from the second step on. See :func:`untouched` for what is taken back afterwards.

    Args:
        trainer: The Trainer, at the start of the stage or between two of its steps.
        pl_module: Its module, in the mode of the stage.
        stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
        dataloader_idx: Which of several loaders the batches stand for; None if there is one.
        converted: Whether the batches have been through what comes before their transfer: the precision's
            `convert_input` and the module's `on_before_batch_transfer`.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        stage: Stage,
        *,
        dataloader_idx: int | None = None,
        converted: bool = False,
    ) -> None:
        self._trainer: Any = trainer
        self._module = pl_module
        self._stage = stage
        self._dataloader_idx = dataloader_idx
        self._converted = converted
        self._device = trainer.strategy.root_device

    @property
    def is_narrow(self) -> bool:
        """Whether the step may compute in fewer bits than 32 on the CPU, whose kernels have workspaces for that."""
        return self._device.type == "cpu" and self._trainer.precision not in ("32-true", "64-true")

    def record(self, batches: Sequence[Any], *, accumulate: bool = False) -> Recorded:
        """Record a step on each batch.

        Args:
            batches: PyG batches in host memory or on the device, as a loader yields them.
            accumulate: Whether training steps that gather gradients are recorded as well as whole ones.

        Returns:
            The events of all batches for each kind of step.

        Raises:
            Exception: What the step raises.
        """
        threads = torch.get_num_threads()

        def run() -> Recorded:
            # On one thread, as others would be waited for at each operator, longer than it takes; unless some kernel
            # takes a workspace for each.
            with _threads(1):
                recorded = self._record_all(batches, accumulate)
            if self._device.type != "cpu" or threads == 1:
                return recorded
            self._recorded(batches[0], STEP)
            if np.array_equal(self._recorded(batches[0], STEP), recorded.streams[STEP][0]):
                return recorded
            return self._record_all(batches, accumulate)

        return self._run(run)

    def measure(self, batch: Any) -> tuple[int, int]:
        """Run a step on one batch, of any size.

        The step runs twice, since an optimizer's state appears at the first one.

        Returns:
            Its peak growth in bytes, and what is held between two steps.
        """

        def run() -> tuple[int, int]:
            self._recorded(batch, STEP)  # so that the release of its gradients is seen in the second
            return int(np.cumsum(self._recorded(batch, STEP)).max(initial=0)), self._held_bytes()

        return self._run(run)

    def _run(self, function: Callable[[], T]) -> T:
        # Other processes must not be waited for: a probe may fail in one of them.
        unsynchronised = getattr(self._trainer.strategy, "block_backward_sync", nullcontext)
        with untouched(self._trainer, self._module, self._loop), _no_collector(), unsynchronised():
            return _where_no_profiler_runs(function, self._device)

    def _record_all(self, batches: Sequence[Any], accumulate: bool) -> Recorded:
        kinds: list[tuple[str, ...]] = [(STEP,)]
        if accumulate:
            kinds.append(_WINDOW)
        streams: dict[str, list[NDArray[np.int64]]] = {kind: [] for window in kinds for kind in window}
        for window in kinds:
            for _ in range(_WARM_UP):  # kernels, buffers and the optimizer's state come with the first steps
                for kind in window:
                    self._recorded(batches[0], kind)
            for batch in batches:
                for kind in window:
                    streams[kind].append(self._recorded(batch, kind))
            if window == (STEP,):
                labels = self._labels(batches[0])
                held = self._held_bytes()
        logged = _LOGGED_BYTES * (1 + len(getattr(self._loop, "_results", None) or ()))
        return Recorded(streams, labels, held, logged)

    def _held_bytes(self) -> int:
        training = self._stage == "train"
        held = held_bytes(self._module, self._trainer.optimizers, steady=training)
        return held + (bucket_bytes(self._trainer.strategy) if training else 0)

    def _labels(self, batch: Any) -> list[str]:
        batch = self._transferred(batch)
        with _named_modules(self._module), record_events(self._device, labelled=True) as recorder:
            outputs = self._step(batch, STEP)
        self._end_step()
        del outputs
        return recorder.labels

    def _recorded(self, batch: Any, kind: str) -> NDArray[np.int64]:
        batch = self._transferred(batch)
        with record_events(self._device) as recorder:
            outputs = self._step(batch, kind)
        self._end_step()
        del outputs  # Lightning keeps them to the end of the step
        return recorder.requested  # before the device rounds it to blocks: only that is affine

    def _transferred(self, batch: Any) -> Any:
        trainer, index = self._trainer, self._dataloader_idx or 0
        if not self._converted:
            batch = trainer.precision_plugin.convert_input(batch)
            batch = self._module._on_before_batch_transfer(batch, dataloader_idx=index)
        return call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=index)

    def _end_step(self) -> None:
        """Let what was logged be kept where Lightning keeps it until the next step."""
        connector = self._trainer._logger_connector
        connector.on_batch_end()
        if self._stage == "train":
            connector.update_train_step_metrics()

    def _step(self, batch: Any, kind: str) -> Any:
        trainer = self._trainer
        trainer._logger_connector.on_batch_start(batch)
        if self._stage != "train":
            arguments = [batch, 0] + ([] if self._dataloader_idx is None else [self._dataloader_idx])
            return call._call_strategy_hook(trainer, _STEPS[self._stage], *arguments)
        epoch_loop = trainer.fit_loop.epoch_loop
        place = 0 if kind == STEP else _WINDOW.index(kind)
        trainer.accumulate_grad_batches = 1 if kind == STEP else len(_WINDOW)
        trainer.fit_loop.max_batches = float("inf")  # the last batch of an epoch ends an accumulation early
        epoch_loop.batch_progress.current.ready = place + 1
        epoch_loop.batch_progress.is_last_batch = False
        kwargs = epoch_loop._build_kwargs(OrderedDict(), batch, place)
        if self._module.automatic_optimization:
            return epoch_loop.automatic_optimization.run(trainer.optimizers[0], place, kwargs)
        return epoch_loop.manual_optimization.run(kwargs)

    @property
    def _loop(self) -> Any:
        """The loop that holds what is logged in this stage."""
        trainer = self._trainer
        if self._stage == "train":
            return trainer.fit_loop.epoch_loop
        if self._stage == "val":
            fitting = trainer.state.fn == "fit"
            return trainer.fit_loop.epoch_loop.val_loop if fitting else trainer.validate_loop
        return trainer.test_loop if self._stage == "test" else trainer.predict_loop


@contextmanager
def _named_modules(module: torch.nn.Module) -> Iterator[None]:
    """Let recordings know which module's `forward` they are in."""
    handles = []
    scopes: list[Any] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            scopes.append(torch.profiler.record_function(name))
            scopes[-1].__enter__()

        return hook

    def leave(*_: Any) -> None:
        scopes.pop().__exit__(None, None, None)

    for name, submodule in module.named_modules():
        if name and not isinstance(submodule, Metric):
            handles.append(submodule.register_forward_pre_hook(enter(name)))
            handles.append(submodule.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the garbage collector from releasing what is not the step's in the middle of one."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect(0)  # what the probes leave: else it is released in the middle of a step
        if was_enabled:
            gc.enable()


def _where_no_profiler_runs(function: Callable[[], T], device: torch.device) -> T:
    """Call a function in this thread or, if a profiler has that, in one of its own."""
    if device.type != "cpu" or can_record(device):
        return function()
    results: list[T] = []
    errors: list[BaseException] = []
    modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def run() -> None:
        try:
            with torch.set_grad_enabled(modes[0]), torch.inference_mode(modes[1]):
                results.append(function())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="gnnopt-probe")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
