"""Clocks: of a run, of its steps and validations, and of what `AsyncValidation` does on the training thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import psutil
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from benchmarks.async_cores import pin
from lightning_gnnopt import AsyncValidation

_LOOK_S = 0.002
_START_TIMEOUT_S = 300.0


class TimedValidation(AsyncValidation):
    """`AsyncValidation` that notes the seconds in its hooks.

    Attributes:
        start_s: Those at the first epoch's start: packing module and data, and starting the process.
        when_started: Called after that.
        hook_s: Those of each epoch, from its first hook to the last, which takes the snapshot.
        drain_s: Those when training ends: waiting for the last verdicts.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.start_s = self.drain_s = 0.0
        self.hook_s: list[float] = []
        self.when_started: Callable[[], None] = _nothing
        self._this_epoch_s = 0.0

    @property
    def child(self) -> Any:
        """The validation process."""
        session: Any = self._session
        return None if session is None or session._supervisor is None else session._supervisor._child

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._this_epoch_s = _seconds(super().on_train_epoch_start, trainer, pl_module)
        if not self.start_s:
            self.start_s, self._this_epoch_s = self._this_epoch_s, 0.0
            self.when_started()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        self._this_epoch_s += _seconds(super().on_train_batch_end, trainer, pl_module, *args, **kwargs)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._this_epoch_s += _seconds(super().on_train_epoch_end, trainer, pl_module)
        self.hook_s.append(self._this_epoch_s)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.drain_s = _seconds(super().on_train_end, trainer, pl_module)


class RunClock(Callback):
    """Times a run from its first epoch's start to its last verdict; all times are of `time.monotonic`.

    Lightning calls it before `AsyncValidation`, as that is a `Checkpoint`, so none of its times has those hooks in it
    but the run's, and the steps' (`steps`), which begin where the one before ended.

    Args:
        validation: What validates beside training; None where Lightning validates.
        core: Where it must run; None leaves it to the system.
        waits: Whether training waits until that process is up.

    Attributes:
        total_s: Seconds of the run.
        cpu_s: Processor seconds of this process meanwhile.
        child_cpu_s: Those of the validation process.
        startup_s: Seconds until the process was up, if that was waited for.
        train_s: Seconds of each epoch's training.
        val_s: Seconds of each of Lightning's validations, the checkpoint included.
        val_cpu_s: Processor seconds of this process in them.
        steps: Of each step but an epoch's first, by epoch: start, end, processor seconds of the training thread.
        memory: What the system says of the process's memory, by name, in bytes.
    """

    def __init__(
        self, validation: TimedValidation | None = None, *, core: int | None = None, waits: bool = True
    ) -> None:
        self.total_s = self.startup_s = self.cpu_s = self.child_cpu_s = self.val_cpu_s = 0.0
        self.train_s: list[float] = []
        self.val_s: list[float] = []
        self.steps: list[list[tuple[float, float, float]]] = []
        self.memory: dict[str, int] = {}
        self._validation, self._core, self._waits = validation, core, waits
        self._start_s = self._epoch_s = self._mark_s = self._mark_cpu_s = 0.0
        self._val_before_s = 0.0
        if validation is not None:
            validation.when_started = self._begin

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop: Any = trainer.fit_loop.epoch_loop.val_loop
        run = loop.run

        def timed_run() -> Any:
            start_s, start_cpu_s = time.monotonic(), time.process_time()
            try:
                return run()
            finally:
                self.val_s.append(time.monotonic() - start_s)
                self.val_cpu_s += time.process_time() - start_cpu_s

        loop.run = timed_run

    @override
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.steps and self._validation is None:
            self._begin()
        self.steps.append([])
        self._val_before_s = sum(self.val_s)
        self._epoch_s = self._mark_s = time.monotonic()
        self._mark_cpu_s = time.thread_time()

    def _begin(self) -> None:
        if self._validation is not None:
            self._await_process()
        self.child_cpu_s, self.cpu_s = -self._read_child_cpu_s(), -time.process_time()
        self._start_s = self._epoch_s = self._mark_s = time.monotonic()
        self._mark_cpu_s = time.thread_time()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        now_s, now_cpu_s = time.monotonic(), time.thread_time()
        if trainer.fit_loop.epoch_loop.batch_idx > 0:
            self.steps[-1].append((self._mark_s, now_s, now_cpu_s - self._mark_cpu_s))
        self._mark_s, self._mark_cpu_s = now_s, now_cpu_s

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.train_s.append(time.monotonic() - self._epoch_s - (sum(self.val_s) - self._val_before_s))

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.total_s = time.monotonic() - self._start_s
        self.cpu_s += time.process_time()
        self.child_cpu_s += self._read_child_cpu_s()
        if self._validation is not None and self._validation.child is not None:
            self.memory = read_memory(self._validation.child.pid)

    def _read_child_cpu_s(self) -> float:
        child = None if self._validation is None else self._validation.child
        if child is None or not child.is_alive:
            return 0.0
        times = psutil.Process(child.pid).cpu_times()
        return float(times.user + times.system)

    def _await_process(self) -> None:
        assert self._validation is not None
        child = self._validation.child
        if child is None:
            return  # it could not be started, which a warning has told
        if self._core is not None:
            pin(child.pid, self._core)
        while self._waits and child.is_alive and not child._frames.qsize():  # its first word is that it is ready
            self.startup_s = time.monotonic() - child._started_s
            if self.startup_s > _START_TIMEOUT_S:
                return
            time.sleep(_LOOK_S)


def read_memory(pid: int) -> dict[str, int]:
    """Read a process's memory in bytes: ``private``, ``shared`` and ``pss``; nothing where the system does not say."""
    path = Path(f"/proc/{pid}/smaps_rollup")
    if not path.exists():
        return {}
    sums = {"private": 0, "shared": 0, "pss": 0}
    for line in path.read_text().splitlines()[1:]:
        name, amount, *_ = line.split()
        for key in sums:
            if name == "Pss:" if key == "pss" else name.startswith((f"{key.title()}_Clean", f"{key.title()}_Dirty")):
                sums[key] += 1024 * int(amount)
    return sums


def _nothing() -> None:
    """Do nothing."""


def _seconds(method: Callable[..., None], *args: Any, **kwargs: Any) -> float:
    start_s = time.perf_counter()
    method(*args, **kwargs)
    return time.perf_counter() - start_s
