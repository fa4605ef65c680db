"""The profile of a training loop outside of Lightning."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_gnnopt.analysis.fits.loader_stages import LoaderStages
from lightning_gnnopt.analysis.fits.profile_info import surroundings
from lightning_gnnopt.analysis.fits.trace import TraceSpan, spans_of_stages, write_trace
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.marks import BACKWARD, OTHER
from lightning_gnnopt.analysis.recording.profile_options import ProfileOptions
from lightning_gnnopt.analysis.recording.session import WAIT, ProfileSession
from lightning_gnnopt.analysis.recording.step_spans import spans_of_steps
from lightning_gnnopt.analysis.recording.uncopied_hook import UncopiedHook
from lightning_gnnopt.analysis.records import Records
from lightning_gnnopt.loading.stage_log import StageLog, record_stages
from lightning_gnnopt.memory.held import held_bytes

T = TypeVar("T")


class LoopProfile:
    """Finds steps and phases in a loop by what it calls: the model, autograd, an optimizer.

    Args:
        model: The model.
        device: The device that computes.
        options: What is recorded.
        limit_bytes: Bytes that model and step may take together.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, options: ProfileOptions, limit_bytes: int | None
    ) -> None:
        self._model = model
        self._session = ProfileSession(model, device, options)
        self._options = options
        self._optimizers: dict[int, Any] = {}
        self._in_steps = False
        self._begun = False
        self._stepped = False  # whether the open step has had a backward pass or an optimizer's step
        self._depth = 0
        self._spans: list[TraceSpan] = []
        self._stage_log: StageLog | None = None
        self.records: Records = self._session.records
        self.records.info |= surroundings(device) | {
            "num_workers": None,
            "steps_per_epoch": None,
            "limit_bytes": limit_bytes,
            "async_validation": False,
            "memory_control": False,
        }

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record within this context."""
        session = self._session
        began_s = time.perf_counter()
        with ExitStack() as stack:
            if self._options.trace_batches:
                self._stage_log = stack.enter_context(record_stages())
            # The model may be a layer itself: what is said of the whole comes before and after what is said of the
            # layer.
            before = self._model.register_forward_pre_hook(
                UncopiedHook(self._forward_begins), with_kwargs=True, prepend=True
            )
            stack.enter_context(session.attached())
            for handle in (
                before,
                self._model.register_forward_hook(UncopiedHook(self._forward_ends), always_call=True),
                register_optimizer_step_pre_hook(self._optimizer_begins),
                register_optimizer_step_post_hook(self._optimizer_ends),
            ):
                stack.callback(handle.remove)
            try:
                yield
            except BaseException as error:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
                session.note(f"The loop ended early, in step {session.number}: {what}")
                session.break_off()
                raise
            finally:
                session.finish()
                self.records.info["fit_s"] = time.perf_counter() - began_s
                static_bytes = held_bytes(self._model, self._optimizers.values())
                self.records.info |= {"static_bytes": static_bytes, "beside_bytes": session.beside_bytes(static_bytes)}
                self._spans = spans_of_steps(session.spans)
                if self._stage_log is not None:
                    self._spans += spans_of_stages(self._stage_log.spans)

    def steps(self, loader: Iterable[T]) -> Iterator[T]:
        """Iterate over a loader, a step for each batch."""
        session = self._session
        stages = LoaderStages(loader)
        self.records.info["num_workers"] = stages.num_workers
        size = getattr(loader, "batch_size", None)
        iterator = iter(loader)
        self._in_steps = True
        try:
            while True:
                session.open_step()
                self._stepped = False
                asked_s = time.perf_counter()
                if session.is_open:
                    session.marks.push(WAIT)
                else:
                    session.detach()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                if session.is_open:
                    session.marks.pop()
                    session.add_load(stages.take(session.number, time.perf_counter() - asked_s))
                session.take_batch(batch, sampler=type(loader).__name__, batch_size=size)
                session.begin_compute()
                yield batch
        finally:
            self._in_steps = False
            session.hold_step()  # left early: by `break`, or by an error, which only `running` is told
            stages.restore()

    def write_trace(self, path: Path) -> Path:
        """Write what was traced."""
        return write_trace(self._spans, path)

    def _forward_begins(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        session = self._session
        if not torch.is_grad_enabled():
            self._enter(Label("validation"))
            return
        stepped = self._stepped or session.marks.had_backward
        if not self._in_steps and (stepped or not self._begun):
            session.open_step()
            self._begun, self._stepped = True, False
            session.take_batch([args, kwargs], sampler="none")
            session.begin_compute()
        self._enter(Label("forward"))

    def _enter(self, label: Label) -> None:
        marks = self._session.marks
        if self._session.is_open:
            self._depth = marks.depth
            marks.push(label)

    def _forward_ends(self, module: nn.Module, args: Any, out: Any) -> None:
        marks = self._session.marks
        if self._session.is_open and marks.depth > self._depth:
            marks.cover(out, BACKWARD)  # so that the backward pass is seen where there are no layers
            marks.pop(self._depth)

    def _optimizer_begins(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._optimizers[id(optimizer)] = optimizer
        self._stepped = True
        session = self._session
        if session.is_open:
            session.marks.switch(Label("optimizer"))

    def _optimizer_ends(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._session.is_open:
            self._session.marks.switch(OTHER)
