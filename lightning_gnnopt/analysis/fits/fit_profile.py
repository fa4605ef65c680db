"""The profile of a Lightning fit."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_gnnopt.analysis.fits.loader_stages import LoaderStages
from lightning_gnnopt.analysis.fits.profile_info import surroundings
from lightning_gnnopt.analysis.fits.trace import TraceSpan, spans_of_stages, spans_of_timeline, write_trace
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.profile_options import ProfileOptions
from lightning_gnnopt.analysis.recording.session import WAIT, ProfileSession
from lightning_gnnopt.analysis.recording.step_spans import spans_of_steps
from lightning_gnnopt.analysis.records import Records, ValidationRecord
from lightning_gnnopt.loading.stage_log import StageLog, record_stages
from lightning_gnnopt.memory.held import held_bytes

_NEXT = ".train_dataloader_next"
_PHASES = {
    ".batch_to_device": Label("transfer"),
    ".on_before_batch_transfer": Label("transfer"),
    ".training_step": Label("forward"),
    ".backward": Label("backward"),
    ".optimizer_step": Label("optimizer"),
    ".optimizer_zero_grad": Label("optimizer"),
    ".on_before_zero_grad": Label("optimizer"),
    ".on_before_optimizer_step": Label("optimizer"),
    ".configure_gradient_clipping": Label("optimizer"),
}
_CALLBACKS = Label("callbacks")
_VALIDATION = Label("validation")


class FitProfile:
    """Turns Lightning's actions into the steps and phases of a session.

    Args:
        options: What is recorded.
        limit_bytes: Bytes that model and step may take together.

    Attributes:
        on_start: Called when training begins.
        on_end: Called once when the fit has ended, or has not taken place.
    """

    def __init__(self, options: ProfileOptions, limit_bytes: int | None) -> None:
        self._options = options
        self._limit_bytes = limit_bytes
        self._session: ProfileSession | None = None
        self._records = Records()
        self._open: list[tuple[str, int | None, BaseException | None]] = []  # see `start`
        self._loader: LoaderStages | None = None
        self._loader_name = ""
        self._trainer: Any = None
        self._validation: tuple[int, float] | None = None  # how deep the marks were, and since when
        self._started_s = self._started_monotonic_s = self._asked_s = 0.0
        self._left_s: float | None = None  # when the last epoch ended, until the next one begins
        self._between_s = 0.0
        self._epochs = 0
        self._steps_per_epoch: int | None = None
        self._spans: list[TraceSpan] = []
        self._stage_log: StageLog | None = None
        self._stack = ExitStack()
        self._is_over = False
        self.on_start: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None

    @property
    def records(self) -> Records:
        """What has been recorded."""
        return self._records

    # What the Trainer's callback tells

    def fit_started(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training begins."""
        device = trainer.strategy.root_device
        self._session = ProfileSession(pl_module, device, self._options)
        self._records = self._session.records
        network = getattr(pl_module, "net", None)
        batches = trainer.num_training_batches
        self._steps_per_epoch = int(batches) if math.isfinite(batches) else None
        self._trainer = trainer
        self._loader_name = _sampler_name(trainer)
        loader = self._current_loader()
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            self._session.note("The training step takes its batches itself (`dataloader_iter`): they are not counted.")
        self._records.info |= surroundings(device) | {
            "model": type(pl_module if network is None else network).__name__,
            "num_workers": loader.num_workers,
        }
        if self._options.trace_batches:
            self._stage_log = self._stack.enter_context(record_stages())
        self.on_start()
        self._started_s = self._left_s = time.perf_counter()
        self._started_monotonic_s = time.monotonic()

    def batch_arrived(self, trainer: L.Trainer, batch: Any) -> None:
        """The batch of the next step is on its device."""
        if self._session is not None:
            size = getattr(trainer.train_dataloader, "batch_size", None)
            self._session.take_batch(batch, sampler=self._loader_name, batch_size=size)

    def fit_ended(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training has ended."""
        self._finish(trainer, pl_module)

    def fit_broke(self, trainer: L.Trainer, pl_module: L.LightningModule, error: BaseException) -> None:
        """Training was ended by an error."""
        if self._session is not None:
            what = f"{type(error).__name__}: {error}".rstrip(": ")
            self._session.note(f"The fit ended early, in step {self._session.number}: {what}")
            self._session.break_off()
        self._finish(trainer, pl_module)

    def fit_left(self) -> None:
        """The Trainer is done; where there was nothing to train, it has not told of an end."""
        self.abandon()

    # What the Trainer calls its profiler with

    def start(self, action: str) -> None:
        """An action begins."""
        session = self._session
        if session is None:
            return
        if action.endswith(_NEXT):
            self._validation = None
            self._enter_epoch()
            session.open_step()
            self._current_loader().begin()
            self._asked_s = time.perf_counter()
        began_s, before_s = time.perf_counter(), session.marks.spent_s
        depth: int | None = None
        if action.startswith("[Callback]") and action.endswith(_VALIDATION_END):
            self._end_validation(session)  # what callbacks do then, writing a checkpoint, say, is theirs
        if action.endswith(_VALIDATION_START) and self._validation is None:
            self._validation = (session.marks.depth, time.perf_counter())
            if session.is_open:
                session.marks.push(_VALIDATION)
        if session.is_open:
            if action == "run_training_batch":
                session.begin_compute()
            label = None if self._validation is not None else _label(action)
            if label is not None:
                depth = session.marks.depth
                session.marks.push(label)
        # with how deep the marks were before its label, and the error that is being handled around the fit, if any
        self._open.append((action, depth, sys.exception()))
        session.marks.spent_s = before_s + time.perf_counter() - began_s

    def stop(self, action: str) -> None:
        """An action ends."""
        session = self._session
        if session is None:
            return
        began_s, before_s = time.perf_counter(), session.marks.spent_s
        depth: int | None = None
        around: BaseException | None = None
        while self._open:
            name, depth, around = self._open.pop()
            if name == action:
                break
        if session.is_open:
            if depth is not None:
                session.marks.pop(depth)
            if action.endswith(_NEXT):
                session.add_load(self._current_loader().take(session.number, time.perf_counter() - self._asked_s))
            elif action == "run_training_batch":
                session.end_compute()
            elif action == "run_training_epoch" and sys.exception() is around:  # else `fit_broke` comes next
                session.close_step()
        if action == "run_training_epoch":
            self._left_s = time.perf_counter()
        if action.startswith("[Strategy]") and action.endswith(_VALIDATION_END):
            self._end_validation(session)
        session.marks.spent_s = before_s + time.perf_counter() - began_s

    def write_trace(self, path: Path) -> Path:
        """Write what was traced."""
        return write_trace(self._spans, path)

    def abandon(self) -> None:
        """Let go of everything, once."""
        if self._is_over:
            return
        self._is_over = True
        if self._session is not None:
            self._session.break_off()
        self._session = None
        if self._loader is not None:
            self._loader.restore()
        self._trainer = None
        self._stack.close()
        self.on_end()

    def _current_loader(self) -> LoaderStages:
        """What the loader tells; Lightning may make another one for each epoch."""
        found = self._trainer.train_dataloader
        if self._loader is None or self._loader.loader is not found:
            if self._loader is not None:
                self._loader.restore()
            self._loader = LoaderStages(found)
        return self._loader

    def _enter_epoch(self) -> None:
        """A batch is asked for: if it is the first of an epoch, what came before it lay between epochs."""
        if self._left_s is not None:
            self._between_s += time.perf_counter() - self._left_s
            self._left_s = None
            self._epochs += 1

    def _end_validation(self, session: ProfileSession) -> None:
        if self._validation is None:
            return
        depth, since_s = self._validation
        self._validation = None
        if session.is_open:
            session.marks.pop(depth)
        done = session.steps + session.is_open
        self._records.validations.append(ValidationRecord(done, time.perf_counter() - since_s, beside=False))

    def _finish(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        session = self._session
        if session is None:
            self.abandon()
            return
        now_s = time.perf_counter()
        fit_s = now_s - self._started_s
        if self._left_s is not None:
            self._between_s += now_s - self._left_s
        session.finish()
        callbacks: list[Any] = vars(trainer)["callbacks"]
        # by name, as this room does not know that one; of classes that are derived from it too
        names = {base.__name__: callback for callback in callbacks for base in type(callback).__mro__}
        timeline = getattr(names.get("AsyncValidation"), "timeline", None)
        spans = [] if timeline is None else [span for span in timeline.spans if span.end_s > self._started_monotonic_s]
        self._records.validations += [
            ValidationRecord(session.steps if span.step is None else span.step, span.end_s - span.start_s, True)
            for span in spans
            if span.side == "validation"
        ]
        static_bytes = held_bytes(pl_module, trainer.optimizers)
        self._records.info |= {
            "fit_s": fit_s,
            "between_s": self._between_s,
            "epochs": self._epochs,
            "steps_per_epoch": self._steps_per_epoch,
            "static_bytes": static_bytes,
            "beside_bytes": session.beside_bytes(static_bytes),
            "limit_bytes": self._limit_bytes,
            "async_validation": "AsyncValidation" in names,
            "memory_control": "MemoryControl" in names,
        }
        self._spans = spans_of_steps(session.spans)
        if self._stage_log is not None:
            self._spans += spans_of_stages(self._stage_log.spans)
        self._spans += spans_of_timeline(spans)
        self._session = None
        self.abandon()


_VALIDATION_START, _VALIDATION_END = ".on_validation_model_eval", ".on_validation_end"


def _label(action: str) -> Label | None:
    if action.startswith("[Callback]"):
        return _CALLBACKS
    if action.endswith(_NEXT):
        return WAIT
    if action == "optimizer_step":  # manual optimization
        return _PHASES[".optimizer_step"]
    _, dot, name = action.rpartition(".")
    return _PHASES.get(dot + name)


def _sampler_name(trainer: L.Trainer) -> str:
    """Name what draws the training batches."""
    sampler = getattr(getattr(trainer, "datamodule", None), "sampler", None)
    return type(trainer.train_dataloader if sampler is None else sampler).__name__
