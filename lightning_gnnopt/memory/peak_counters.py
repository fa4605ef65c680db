"""Peak counters of the process, of which there is one each, for regions that nest."""

from __future__ import annotations

import resource
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_allocators: dict[torch.device, tuple[Any, SharedPeak]] = {}


class SharedPeak:
    """A counter of peaks that can be read and reset, shared by regions that overlap.

    A region begins with a reset. What the counter had reached until then is first noted for the regions that are open,
    so an inner region does not take the peak from an outer one, nor one thread's from another's.

    Args:
        read: Returns the peaks since the last reset.
        reset: Forgets them.
    """

    def __init__(self, read: Callable[[], tuple[int, ...]], reset: Callable[[], None]) -> None:
        self.read = read
        self._reset = reset
        self._regions: weakref.WeakSet[PeakRegion] = weakref.WeakSet()
        self._lock = threading.RLock()

    def open(self) -> PeakRegion:
        """Begin a region; it lasts until nobody holds it."""
        with self._lock:
            self._note()
            self._reset()
            region = PeakRegion(self)
            self._regions.add(region)
            return region

    def peaks(self, region: PeakRegion) -> tuple[int, ...]:
        """Peaks since `region` began."""
        with self._lock:
            self._note()
            return region.noted

    def _note(self) -> None:
        if len(self._regions):
            peaks = self.read()
            for region in self._regions:
                region.noted = tuple(map(max, peaks, region.noted)) if region.noted else peaks


class PeakRegion:
    """From :meth:`SharedPeak.open` until it is dropped."""

    def __init__(self, counter: SharedPeak) -> None:
        self._counter = counter
        self.noted: tuple[int, ...] = ()

    def peaks(self) -> tuple[int, ...]:
        """Peaks since the region began."""
        return self._counter.peaks(self)


def allocator_of(device: torch.device) -> Any:
    """Find the module that keeps peaks of `device`'s allocator; None if there is none (CPU, MPS)."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "max_memory_allocated") else None


class AllocatorCounts(NamedTuple):
    """What a caching allocator counts.

    Attributes:
        allocated_bytes: Bytes of the blocks in use.
        reserved_bytes: Bytes taken from the device.
        requested_bytes: Bytes asked for as the blocks in use; 0 where that is not counted.
        unreleasable_bytes: Bytes that are free, but in a segment that has a block in use; 0 where they are not counted.
    """

    allocated_bytes: int
    reserved_bytes: int
    requested_bytes: int = 0
    unreleasable_bytes: int = 0


_COUNTERS = ("allocated_bytes", "reserved_bytes", "requested_bytes", "inactive_split_bytes")


def allocator_counts(device: torch.device, which: Literal["current", "peak"]) -> AllocatorCounts:
    """Read an accelerator's caching allocator: what it holds now, or the peaks since the last reset."""
    module = allocator_of(device)
    if hasattr(module, "memory_stats_as_nested_dict"):  # all at once; `memory_stats` would sort a hundred of them
        stats = module.memory_stats_as_nested_dict(device)  # empty before the device's first use
        return AllocatorCounts(*(int(stats.get(name, {}).get("all", {}).get(which, 0)) for name in _COUNTERS))
    prefix = "max_memory" if which == "peak" else "memory"
    reserved = getattr(module, f"{prefix}_reserved", lambda device: 0)
    return AllocatorCounts(int(getattr(module, f"{prefix}_allocated")(device)), int(reserved(device)))


def allocator_peak(device: torch.device) -> SharedPeak:
    """Peaks of an accelerator's caching allocator, as :class:`AllocatorCounts` lists them."""
    module = allocator_of(device)
    if device.index is None:
        device = torch.device(device.type, module.current_device())
    known = _allocators.get(device)
    if known is None or known[0] is not module:
        shared = SharedPeak(
            lambda: allocator_counts(device, "peak"),
            lambda: module.reset_peak_memory_stats(device),
        )
        _allocators[device] = known = (module, shared)
    return known[1]


def _reset_resident() -> None:
    if _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:  # a locked-down container: the mark is then that since the process began
            return


def _read_resident() -> tuple[int]:
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return (int(line.split()[1]) * 1024,)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (max(peak, int(psutil.Process().memory_info().rss)),)


resident_peak = SharedPeak(_read_resident, _reset_resident)
"""The largest resident set, as the operating system counts it. Where it cannot be reset (anywhere but Linux), the
largest since the process began."""
