"""What a step holds, stretch by stretch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import torch

from lightning_gnnopt.memory.cpu_events import thread_log
from lightning_gnnopt.memory.peak_counters import allocator_counts, allocator_of, allocator_peak

_SIZES = (1_000_003, 1_000_033)
"""Bytes of the two allocations that stand for a mark: odd, so that no tensor of numbers has them."""


@dataclass(frozen=True)
class Stretch:
    """Memory between two marks.

    Attributes:
        peak_bytes: Most that was held, beyond what was held when the recording began.
        live_bytes: Growth of what is held.
        allocated_bytes: Sum of what was allocated; None where that is not counted.
    """

    peak_bytes: int
    live_bytes: int
    allocated_bytes: int


class StepMemory(Protocol):
    """Records a step's memory."""

    def start(self) -> None:
        """Begin."""

    def mark(self) -> None:
        """Note that another stretch begins."""

    def stop(self) -> list[Stretch]:
        """End; the stretch before the first mark, and one for each mark. Empty if they cannot be told apart."""


class CpuStepMemory:
    """The allocations that torch reports to this thread, to the byte.

    A mark is an allocation too, of two odd sizes in turn, and is released at once: it stands in the list of the
    events where it happened, in the backward pass too, where a recording can be neither ended nor begun.
    """

    labelled = False

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._marks = 0

    def take(self, sizes: list[int], labels: list[str]) -> None:
        """Take what the thread's recording tells."""
        self._sizes += sizes

    def start(self) -> None:
        """Begin."""
        self._sizes, self._marks = [], 0
        thread_log.add(self)

    def mark(self) -> None:
        """Note that another stretch begins."""
        self._marks += 1
        for size in _SIZES:
            # no operator, so that who follows those does not see it
            torch.UntypedStorage(size)  # type: ignore[no-untyped-call]

    def stop(self) -> list[Stretch]:
        """End."""
        thread_log.remove(self)
        stretches = _cut(self._sizes)
        return stretches if len(stretches) == self._marks + 1 else []


def _cut(sizes: Sequence[int]) -> list[Stretch]:
    mark = [signed for size in _SIZES for signed in (size, -size)]
    stretches: list[Stretch] = []
    held, begin, place = 0, 0, 0
    while place <= len(sizes):
        at_mark = list(sizes[place : place + len(mark)]) == mark
        if at_mark or place == len(sizes):
            inner = sizes[begin:place]
            sums = list(accumulate(inner, initial=held))
            stretches.append(Stretch(max(sums), sums[-1] - held, sum(size for size in inner if size > 0)))
            held = sums[-1]
            place += len(mark) if at_mark else 1
            begin = place
        else:
            place += 1
    return stretches


class DeviceStepMemory:
    """The counters of an accelerator's caching allocator, read on the host, where memory is asked for in order.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peaks: list[int] = []
        self._held: list[int] = []
        self._region: Any = None

    def start(self) -> None:
        """Begin."""
        self._peaks, self._held = [], [self._now()]
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
            Stretch(max(peak - first, 0), after - before, max(after - before, 0))
            for peak, (before, after) in zip(self._peaks, pairwise(self._held), strict=True)
        ]

    def _end_stretch(self) -> None:
        self._peaks.append(self._region.peaks()[0])
        self._held.append(self._now())

    def _now(self) -> int:
        return allocator_counts(self._device, "current").allocated_bytes


def step_memory(device: torch.device) -> StepMemory | str:
    """Choose how a device's memory is recorded; a sentence if it cannot be."""
    if device.type != "cpu":
        return DeviceStepMemory(device) if allocator_of(device) is not None else f"{device.type} reports no allocations"
    obstacle = thread_log.obstacle()
    return CpuStepMemory() if obstacle is None else obstacle
