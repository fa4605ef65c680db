"""What a step holds, stretch by stretch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch

from lightning_gnnopt.memory.cpu_events import thread_log
from lightning_gnnopt.memory.peak_counters import allocator_counts, allocator_of, allocator_peak


@dataclass(frozen=True)
class Stretch:
    """Memory between two marks.

    Attributes:
        peak_bytes: Most that was held, beyond what was held when the recording began.
        live_bytes: Growth of what is held.
        allocated_bytes: Sum of what was allocated.
    """

    peak_bytes: int
    live_bytes: int
    allocated_bytes: int


class StepMemory(Protocol):
    """Records a step's memory.

    Attributes:
        held_bytes: What was held when the recording began, by anyone; None where that is not known.
    """

    held_bytes: int | None

    def start(self) -> None:
        """Begin."""

    def mark(self) -> None:
        """Note that another stretch begins."""

    def stop(self) -> list[Stretch]:
        """End; the stretch before the first mark, and one for each mark. Empty if they cannot be told apart."""


class CpuStepMemory:
    """The allocations that torch reports to this thread, to the byte."""

    labelled = False

    def __init__(self) -> None:
        self.held_bytes: int | None = None
        self._stretches: list[Stretch] = []
        self._sizes: list[int] = []
        self._held = 0
        self._marks = 0

    def take(self, sizes: list[int], labels: list[str]) -> None:
        """Take what the thread's recording tells."""
        self._sizes += sizes

    def take_mark(self) -> None:
        """The stretch has ended."""
        sums = list(accumulate(self._sizes, initial=self._held))
        allocated = sum(size for size in self._sizes if size > 0)
        self._stretches.append(Stretch(max(sums), sums[-1] - self._held, allocated))
        self._sizes, self._held = [], sums[-1]

    def start(self) -> None:
        """Begin."""
        self._stretches, self._sizes, self._held, self._marks = [], [], 0, 0
        thread_log.add(self)

    def mark(self) -> None:
        """Note that another stretch begins."""
        self._marks += 1
        thread_log.mark()

    def stop(self) -> list[Stretch]:
        """End."""
        thread_log.remove(self)
        self.take_mark()
        return self._stretches if len(self._stretches) == self._marks + 1 else []


class DeviceStepMemory:
    """The counters of an accelerator's caching allocator, read on the host, where memory is asked for in order.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self.held_bytes: int | None = None
        self._device = device
        self._peaks: list[int] = []
        self._held: list[int] = []
        self._allocated: list[int] = []
        self._region: Any = None

    def start(self) -> None:
        """Begin."""
        self.held_bytes = self._now()
        self._peaks, self._held, self._allocated = [], [self.held_bytes], [_allocated_so_far(self._device)]
        self._region = allocator_peak(self._device).open()

    def mark(self) -> None:
        """Note that another stretch begins."""
        self._end_stretch()
        self._region = allocator_peak(self._device).open()

    def stop(self) -> list[Stretch]:
        """End."""
        self._end_stretch()
        self._region = None
        first = self._held[0]
        return [
            # where the sum is not counted, at least what was left of it
            Stretch(max(peak - first, 0), after - before, max(allocated, after - before, 0))
            for peak, (before, after), allocated in zip(
                self._peaks, pairwise(self._held), (b - a for a, b in pairwise(self._allocated)), strict=True
            )
        ]

    def _end_stretch(self) -> None:
        self._peaks.append(self._region.peaks()[0])
        self._held.append(self._now())
        self._allocated.append(_allocated_so_far(self._device))

    def _now(self) -> int:
        return allocator_counts(self._device, "current").allocated_bytes


def _allocated_so_far(device: torch.device) -> int:
    """Bytes that were ever allocated; 0 where that is not counted."""
    module = allocator_of(device)
    if not hasattr(module, "memory_stats_as_nested_dict"):
        return 0
    stats = module.memory_stats_as_nested_dict(device)  # empty before the device's first use
    return int(stats.get("allocated_bytes", {}).get("all", {}).get("allocated", 0))


def step_memory(device: torch.device) -> StepMemory | str:
    """Choose how a device's memory is recorded; a sentence if it cannot be."""
    if device.type != "cpu":
        return DeviceStepMemory(device) if allocator_of(device) is not None else f"{device.type} reports no allocations"
    obstacle = thread_log.obstacle()
    return CpuStepMemory() if obstacle is None else obstacle
