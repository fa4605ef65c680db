"""Peak memory of a stretch of a run, to the byte."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from types import TracebackType
from typing import Self

import torch

from lightning_gnnopt.memory.cpu_events import thread_log
from lightning_gnnopt.memory.peak_counters import (
    AllocatorCounts,
    PeakRegion,
    allocator_counts,
    allocator_of,
    allocator_peak,
    resident_peak,
)


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a region held at most.

    On an accelerator there are three numbers for the same tensors: what was asked for, the blocks that serve it, and
    what the allocator holds of the device to have such blocks. Predictions are of the first one.

    Attributes:
        allocated_bytes: The largest growth of the bytes of tensors over what was held when the region began, at least
            0. On CPU to the byte. On an accelerator in the blocks of its caching allocator: whole ones of 512 bytes,
            and as large as up to 1 MiB more than that where a cached block is not worth a split.
        requested_bytes: The same in bytes that were asked for, which follow from the batch alone. A block that another
            stream still uses counts until that has ended. None on CPU, where it is the same, and where the device does
            not count it.
        held_bytes: Bytes allocated when the region began. None on CPU, where nobody knows.
        held_requested_bytes: The same in bytes that were asked for. None where `requested_bytes` is.
        reserved_bytes: The most that the caching allocator held of the device, used or not, with what it held before
            the region. None on CPU.
        unreleasable_bytes: The largest sum of free bytes in segments that have a block in use, which cannot be given
            back when memory is short, with what there was before the region; not necessarily at the moment of the other
            peaks. 0 for segments that expand, as their pages can be given back. None where nobody counts it.
        resident_bytes: The largest resident set of the process, with everything in it. None unless asked for.
    """

    allocated_bytes: int
    requested_bytes: int | None = None
    held_bytes: int | None = None
    held_requested_bytes: int | None = None
    reserved_bytes: int | None = None
    unreleasable_bytes: int | None = None
    resident_bytes: int | None = None

    @property
    def growth_bytes(self) -> int:
        """What predictions are compared with: the growth in bytes that were asked for, as far as that is known."""
        return self.allocated_bytes if self.requested_bytes is None else self.requested_bytes

    @property
    def start_bytes(self) -> int | None:
        """What was held when the region began, in the same unit; None on CPU."""
        return self.held_bytes if self.held_requested_bytes is None else self.held_requested_bytes


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
        peak = region.close()
        if resident_region is not None:
            peak = replace(peak, resident_bytes=resident_region.peaks()[0])
        self._peak = peak
        return peak

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

    def close(self) -> Peak:
        thread_log.remove(self)
        return Peak(allocated_bytes=self._peak)


class _AcceleratorRegion:
    def __init__(self, device: torch.device) -> None:
        self._region = allocator_peak(device).open()
        self._held = allocator_counts(device, "current")

    def close(self) -> Peak:
        peaks, held = AllocatorCounts(*self._region.peaks()), self._held
        # cudaMallocAsync leaves most of its counters at 0.
        is_counted = peaks.requested_bytes > 0 or peaks.allocated_bytes == 0
        return Peak(
            allocated_bytes=max(peaks.allocated_bytes - held.allocated_bytes, 0),
            requested_bytes=max(peaks.requested_bytes - held.requested_bytes, 0) if is_counted else None,
            held_bytes=held.allocated_bytes,
            held_requested_bytes=held.requested_bytes if is_counted else None,
            reserved_bytes=peaks.reserved_bytes,
            unreleasable_bytes=peaks.unreleasable_bytes if is_counted else None,
        )
