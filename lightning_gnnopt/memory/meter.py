"""Peak memory of a stretch of a run, to the byte."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch

from lightning_gnnopt.memory.cpu_events import thread_log
from lightning_gnnopt.memory.peak_counters import PeakRegion, allocator_of, allocator_peak, resident_peak


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a region held at most.

    Attributes:
        allocated_bytes: The largest growth of the bytes of tensors over what was held when the region began, at least
            0. On CPU to the byte; on an accelerator in the blocks of its caching allocator.
        held_bytes: Bytes allocated when the region began. None on CPU, where nobody knows.
        reserved_bytes: The most that the caching allocator held of the device, used or not, with what it held before
            the region. None on CPU.
        resident_bytes: The largest resident set of the process, with everything in it. None unless asked for.
    """

    allocated_bytes: int
    held_bytes: int | None = None
    reserved_bytes: int | None = None
    resident_bytes: int | None = None


class PeakMeter:
    """Measures how much memory a region takes: the largest running sum of what it allocates and releases.

    On CPU: the events that torch's allocator reports to this thread, to the byte. A region sees its own thread, and
    what that hands to others; regions in several threads do not mix. What torch does not allocate is not counted, nor
    the release of a block from outside any recording (see :func:`~lightning_gnnopt.memory.events.record_events`, with
    which regions share a recording). No other profiler may run in the thread meanwhile.

    On an accelerator: the counters of its caching allocator, for all threads and streams.

    Regions nest, and may end in any order. A meter can be used again after it stopped.

    Args:
        device: The device that computes.
        resident: Whether to read the process's resident set as well, on Linux as the region's own high-water mark.

    Raises:
        ValueError: If nobody counts what is allocated on `device`.

    Examples:
        >>> with PeakMeter("cpu") as meter:
        ...     x = torch.ones(1000)
        ...     y = x.neg().sum()
        >>> meter.peak.allocated_bytes
        8004
    """

    def __init__(self, device: torch.device | str, *, resident: bool = False) -> None:
        self.device = torch.device(device)
        if self.device.type != "cpu" and allocator_of(self.device) is None:
            raise ValueError(
                f"`device` must be the CPU or have an allocator that keeps peaks, but is {str(self.device)!r}."
                " HINT: `Watermark` measures the whole process on any device."
            )
        self._resident = resident
        self._region: _CpuRegion | _AcceleratorRegion | None = None
        self._resident_region: PeakRegion | None = None
        self._peak: Peak | None = None

    @property
    def peak(self) -> Peak:
        """What the last region held at most.

        Raises:
            RuntimeError: If no region has ended.
        """
        if self._peak is None:
            raise RuntimeError("`peak` is known once a region has ended. HINT: read it after `stop()` or the block.")
        return self._peak

    def start(self) -> None:
        """Begin a region.

        Raises:
            RuntimeError: If one is open, or if nothing can be recorded in this thread now.
        """
        if self._region is not None:
            raise RuntimeError("`PeakMeter` is measuring already. HINT: call `stop()`, or use a second meter to nest.")
        self._peak = None
        if self._resident:
            self._resident_region = resident_peak.open()
        self._region = _CpuRegion() if self.device.type == "cpu" else _AcceleratorRegion(self.device)

    def stop(self) -> Peak:
        """End the region.

        Returns:
            What it held at most.

        Raises:
            RuntimeError: If none is open, or, on CPU, if it was begun in another thread.
        """
        region, self._region = self._region, None
        resident_region, self._resident_region = self._resident_region, None
        if region is None:
            raise RuntimeError("`PeakMeter` is not measuring. HINT: call `start()` before `stop()`.")
        allocated_bytes, held_bytes, reserved_bytes = region.close()
        self._peak = Peak(
            allocated_bytes=allocated_bytes,
            held_bytes=held_bytes,
            reserved_bytes=reserved_bytes,
            resident_bytes=None if resident_region is None else resident_region.peaks()[0],
        )
        return self._peak

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _CpuRegion:
    """Keeps the running sum of a thread's events and its maximum, not the events."""

    labelled = False

    def __init__(self) -> None:
        self._live = self._peak = 0
        obstacle = thread_log.obstacle()
        if obstacle is not None:
            raise RuntimeError(f"Peak memory cannot be measured now: {obstacle}")
        thread_log.add(self)

    def take(self, sizes: list[int], labels: list[str]) -> None:
        sums = list(accumulate(sizes, initial=self._live))
        self._live, self._peak = sums[-1], max(self._peak, *sums)

    def close(self) -> tuple[int, None, None]:
        thread_log.remove(self)
        return self._peak, None, None


class _AcceleratorRegion:
    def __init__(self, device: torch.device) -> None:
        self._region = allocator_peak(device).open()
        self._held_bytes = int(allocator_of(device).memory_allocated(device))

    def close(self) -> tuple[int, int, int]:
        allocated, reserved = self._region.peaks()
        return max(allocated - self._held_bytes, 0), self._held_bytes, reserved
