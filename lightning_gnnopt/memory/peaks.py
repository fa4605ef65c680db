"""Measure the peaks of steps, as often as is cheap."""

from __future__ import annotations

import torch

from lightning_gnnopt.memory.events import can_record
from lightning_gnnopt.memory.meter import Peak, PeakMeter

CPU_EVERY = 200
CPU_EVERY_FITTED = 50  # where predictions learn from what is measured
_FIRST = 3


class StepPeaks:
    """Measures the growth of memory over a step, of every so many steps.

    On CUDA the allocator counts anyway. On the CPU a recording is needed, which costs some tenths of a millisecond; and
    as a recording does not see the release of what was allocated before any, a training step, which releases the
    gradients of the one before, counts only if that was recorded too.

    Args:
        device: The device that computes.
        every: Measure every so many steps; by default each on an accelerator, and each 200th on the CPU.
    """

    def __init__(self, device: torch.device, *, every: int | None = None) -> None:
        self._on_cpu = device.type == "cpu"
        self.is_free = every is None
        self.every = (CPU_EVERY if self._on_cpu else 1) if every is None else every
        self._meter = PeakMeter(device)
        self._steps: dict[str, int] = {}
        self._follows: dict[str, bool] = {}
        self._is_open = False

    def learn(self) -> None:
        """Measure more often, if that is left to this object: predictions learn from it."""
        if self.is_free and self._on_cpu:
            self.every = min(self.every, CPU_EVERY_FITTED)

    def start(self, stage: str, *, wanted: bool = False) -> bool:
        """Begin a step; `wanted` measures it in any case. Return whether it is measured."""
        if self._is_open:  # a step that never came to its end: the module skipped the rest of the epoch
            self.close()
        step = self._steps.get(stage, 0)
        self._steps[stage] = step + 1
        # Of two steps that follow each other the second is measured: see above.
        is_due = wanted or step < _FIRST or step % self.every in (self.every - 2, self.every - 1) or self.every == 1
        if not is_due or (self._on_cpu and not can_record(self._meter.device)):
            self._follows[stage] = False
            return False
        self._meter.start()
        self._is_open = True
        return True

    def stop(self, stage: str) -> Peak | None:
        """End the step; return its peak, None if it was not measured."""
        if not self._is_open:
            return None
        self._is_open = False
        peak = self._meter.stop()
        counts = self._follows.get(stage, False) or not self._on_cpu or stage != "train"
        self._follows[stage] = True
        return peak if counts else None

    def close(self) -> None:
        """End a step that an error has ended."""
        if self._is_open:
            self._is_open = False
            self._meter.stop()
        self._follows.clear()
