"""One profile while it is taken: steps are opened and closed, and become records."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gnnopt.analysis.recording.alive import AliveTensors
from lightning_gnnopt.analysis.recording.clocks import Clock, clock_of
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.layer_hooks import LayerHooks
from lightning_gnnopt.analysis.recording.layers import find_layers
from lightning_gnnopt.analysis.recording.marks import Marks
from lightning_gnnopt.analysis.recording.profile_options import Mode, ProfileOptions
from lightning_gnnopt.analysis.recording.step_memory import StepMemory, step_memory
from lightning_gnnopt.analysis.recording.step_records import find_batch, memory_records, num_seeds, time_records
from lightning_gnnopt.analysis.records import BatchRecord, LayerRecord, LoadRecord, Records, TensorRecord
from lightning_gnnopt.memory.features import batch_bytes

WAIT = Label("wait")
_MOST_TENSORS = 50


@dataclass(frozen=True)
class HostSpan:
    """A labelled stretch of the training thread, by `time.perf_counter`."""

    label: Label
    batch: int
    start_s: float
    end_s: float


@dataclass
class _Step:
    """The step that is open."""

    number: int
    mode: Mode
    opened_s: float
    sampler: str = ""
    batch_size: int | None = None
    seeds: int | Tensor = 0  # counted on the device, and read when it has got there
    nodes: int = 0
    edges: int = 0
    loaded_bytes: int = 0
    has_batch: bool = False
    peak_bytes: int | None = None
    first_mark: int = 0  # where memory began to be recorded


@dataclass(frozen=True)
class _Ended:
    """A step whose stamps the device may not have reached."""

    step: _Step
    labels: list[Label]
    stamps: list[Any]
    spent_at_s: list[float]


class ProfileSession:
    """Takes a profile.

    A step is opened when its batch is asked for, told its batch, and closed when the next one is asked for. Its
    layers are hooked into, and its memory is recorded, between :meth:`begin_compute` and :meth:`end_compute`.

    Args:
        model: The model.
        device: The device that computes.
        options: What is recorded.
        clock: Takes the stamps; by default the device's.

    Attributes:
        records: What has been recorded.
        marks: When what began.
        spans: Stretches of the steps that are traced.
        steps: Steps so far, recorded or not.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, options: ProfileOptions, *, clock: Clock | None = None
    ) -> None:
        self.records = Records()
        self.marks = Marks(clock_of(device) if clock is None else clock)
        self.spans: list[HostSpan] = []
        self.steps = 0
        self._model = model
        self._device = device
        self._options = options
        self._layers, self._closed = find_layers(model)
        self._hooks = LayerHooks(model, self._layers, self.marks)
        self._step: _Step | None = None
        self._held: _Ended | None = None
        self._only_counts = False  # whether a step that is not recorded waits for its batch
        self._ended: deque[_Ended] = deque()
        self._memory: StepMemory | None = None
        self._alive: AliveTensors | None = None
        self._notes: dict[str, None] = {}  # in order, each once
        self._overhead_s = 0.0
        self._spent_before = 0.0
        self._traced = 0
        self._around_bytes = 0  # most that the device held when a measured step began, its batch left out
        self._stays_attached = False
        self._note_layers()

    def note(self, sentence: str) -> None:
        """Say what could not be recorded, and why."""
        self._notes.setdefault(sentence)

    def beside_bytes(self, static_bytes: int) -> int:
        """Count what the device held for others: batches that wait, features that are kept there; 0 where unknown.

        Args:
            static_bytes: What the model and its optimizer hold.
        """
        return max(self._around_bytes - static_bytes, 0)

    @property
    def is_open(self) -> bool:
        """Whether a step is open."""
        return self._step is not None

    @property
    def number(self) -> int:
        """Number of the step that is open, or of the next one."""
        return self.steps

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time in it as the profiler's own."""
        began_s, before_s = time.perf_counter(), self.marks.spent_s
        try:
            yield
        finally:
            self.marks.spent_s = before_s + time.perf_counter() - began_s

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook into the layers for as long as this context, not step by step."""
        self._hooks.attach()
        self._stays_attached = True
        try:
            yield
        finally:
            self._stays_attached = False
            self._hooks.detach()

    def detach(self) -> None:
        """Let go of the layers, where no further step is recorded; not to be called from within the model."""
        self._hooks.detach()

    def open_step(self) -> None:
        """A batch is asked for: the step before ends, the next begins."""
        self.close_step()
        self._only_counts = self.steps >= self._options.max_batches
        if self._only_counts:
            return
        self._step = _Step(self.steps, self._options.mode(self.steps), time.perf_counter())
        self._spent_before = self.marks.spent_s
        self.marks.keeps_host = self._step.mode == "timed" and self._traced < self._options.trace_batches
        self.marks.open()

    def take_batch(self, batch: Any, *, sampler: str = "", batch_size: int | None = None) -> None:
        """The batch has come."""
        step = self._step
        if step is None or step.has_batch:
            self.steps += self._only_counts
            self._only_counts = False
            return
        with self.spending():
            found = find_batch(batch)
            step.has_batch, step.sampler = True, sampler
            if found is not None:
                step.nodes, step.edges = int(found.num_nodes or 0), int(found.num_edges)
                step.seeds = num_seeds(found)
                step.loaded_bytes = batch_bytes(found)
            step.batch_size = batch_size

    def begin_compute(self) -> None:
        """The forward pass is near."""
        step = self._step
        if step is None or step.mode == "plain":
            return
        with self.spending():
            if not self._stays_attached:
                self._hooks.attach()
            if step.mode in ("memory", "detail") and self._memory is None:
                self._start_memory(step)

    def end_compute(self) -> None:
        """The backward pass is over."""
        if self._step is None:
            return
        with self.spending():
            self._stop_memory()
            if not self._stays_attached:
                self._hooks.detach()

    def close_step(self) -> None:
        """The step has ended."""
        self.hold_step()
        held, self._held = self._held, None
        if held is None:
            return
        step = held.step
        if not step.has_batch:  # the loader had no more
            self._forget(step.number)
            return
        self.steps += 1
        self._ended.append(held)
        if step.mode == "timed":
            self._overhead_s += self.marks.spent_s - self._spent_before
        if self.marks.keeps_host:
            self._traced += 1
            self.spans += [
                HostSpan(label, step.number, start_s, end_s)
                for label, (start_s, end_s) in zip(held.labels, pairwise(self.marks.host_s), strict=True)
            ]
        self._settle(wait=False)

    def hold_step(self) -> None:
        """The step has ended, but whether by an error is not known yet: it counts once :meth:`close_step` is called."""
        if self._step is not None:
            self.end_compute()
            step, self._step = self._step, None
            self._held = _Ended(step, *self.marks.close(), self.marks.spent_at_s)

    def finish(self) -> Records:
        """End the profile and the step that is open."""
        self.close_step()
        self._settle(wait=True)
        self._prefer_exact_peaks()
        self.records.layers = [
            LayerRecord(
                layer.name,
                type(layer.module).__name__,
                sum(parameter.numel() for parameter in layer.module.parameters()),
                self._hooks.calls[layer.name],
                self._hooks.fused[layer.name],
                "",
            )
            for layer in self._layers
        ]
        self.records.layers += [LayerRecord(name, "", 0, 0, 0, reason) for name, reason in self._closed.items()]
        self.records.info |= {
            "model": self.records.info.get("model") or type(self._model).__name__,
            "steps": self.steps,
            "overhead_s": self._overhead_s,
            "notes": list(self._notes),
        }
        return self.records

    def _prefer_exact_peaks(self) -> None:
        """Leave out the peaks of steps whose tensors were followed, if there are others.

        While operators are followed, autograd cannot add up gradients in place, which holds a little more.
        """
        batches = self.records.batches
        exact = [b for b in batches if b.peak_bytes is not None and self._options.mode(b.batch) == "memory"]
        if exact:
            self.records.batches = [
                replace(b, peak_bytes=None) if self._options.mode(b.batch) == "detail" else b for b in batches
            ]

    def break_off(self) -> None:
        """The step that is open or held raised: it is dropped, whatever it has recorded."""
        self.hold_step()
        held, self._held = self._held, None
        if held is not None:
            self._forget(held.step.number)

    def _forget(self, number: int) -> None:
        records = self.records
        records.loads = [record for record in records.loads if record.batch != number]
        records.memory = [record for record in records.memory if record.batch != number]
        records.tensors = [record for record in records.tensors if record.batch != number]

    def add_load(self, load: LoadRecord) -> None:
        """Keep what preparing the open step's batch took."""
        if self._step is not None:
            self.records.loads.append(load)

    def _start_memory(self, step: _Step) -> None:
        memory = step_memory(self._device)
        if isinstance(memory, str):
            self.note(f"Memory was not recorded: {memory}")
            return
        try:
            memory.start()
        except RuntimeError as error:
            self.note(f"Memory was not recorded: {error}")
            return
        self._memory = memory
        if memory.held_bytes is not None:
            self._around_bytes = max(self._around_bytes, memory.held_bytes - step.loaded_bytes)
        step.first_mark = len(self.marks.labels)
        self.marks.on_mark = memory.mark
        if step.mode == "detail" and not self._closed:
            self._alive = AliveTensors(lambda: self.marks.current)
            self._alive.begin()

    def _stop_memory(self) -> None:
        memory, self._memory = self._memory, None
        alive, self._alive = self._alive, None
        self.marks.on_mark = None
        if alive is not None:
            alive.end()
        if memory is None or self._step is None:
            return
        stretches = memory.stop()
        step = self._step
        labels = self.marks.labels[step.first_mark - 1 :]
        if len(stretches) != len(labels):
            self.note("The memory of some steps could not be told apart by layer, as events were lost.")
            return
        step.peak_bytes = max((stretch.peak_bytes for stretch in stretches), default=0)
        self.records.memory += memory_records(step.number, labels, stretches)
        if alive is not None:
            self.records.tensors += [
                TensorRecord(step.number, t.nbytes, t.shape, t.dtype, *t.label, t.op, t.line)
                for t in alive.at_peak[:_MOST_TENSORS]
            ]

    def _settle(self, *, wait: bool) -> None:
        clock = self.marks.clock
        while self._ended and (wait or clock.is_past(self._ended[0].stamps[-1])):
            ended = self._ended.popleft()
            step, stamps = ended.step, ended.stamps
            spans = [clock.seconds(start, end) for start, end in pairwise(stamps)]
            if clock.is_host:  # what the profiler itself took is no part of the step
                own = (after - before for before, after in pairwise(ended.spent_at_s))
                spans = [max(span - own_s, 0.0) for span, own_s in zip(spans, own, strict=True)]
            validation_s = sum(s for label, s in zip(ended.labels, spans, strict=True) if label.phase == "validation")
            is_timed = step.mode == "timed"
            seeds = int(step.seeds)
            self.records.batches.append(
                BatchRecord(
                    step.number,
                    step.sampler,
                    seeds if step.batch_size is None else step.batch_size,
                    seeds,
                    step.nodes,
                    step.edges,
                    step.loaded_bytes,
                    sum(spans) - validation_s,
                    step.peak_bytes,
                    is_timed,
                )
            )
            if is_timed:
                self.records.times += time_records(step.number, ended.labels, spans)
            clock.release(stamps)

    def _note_layers(self) -> None:
        for name, reason in self._closed.items():
            what = f"`{name}`" if name else "The model"
            self.note(f"{what} is {reason}: its layers cannot be looked into, only its time as a whole is known.")
        if not self._layers and not self._closed:
            self.note(
                "No layers of message passing (`torch_geometric.nn.MessagePassing`) were found in the model: phases are"
                " timed, layers are not."
            )
