"""Peak memory of a stretch of a run."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class PeakMeter:
    """Measures the largest number of bytes held between :meth:`start` and :meth:`stop`.

    On an accelerator: bytes allocated by torch's caching allocator. On CPU (and on MPS, whose allocator keeps no
    peak): the process's resident set, as the operating system counts it, with the interpreter, the graph and
    everything else in it. Where its high-water mark cannot be reset (anywhere but Linux), it is the mark since the
    process began.

    Args:
        device: The device that trains.

    Examples:
        >>> meter = PeakMeter("cpu")
        >>> meter.start()
        >>> ballast = torch.ones(1_000_000)
        >>> meter.stop() > ballast.nbytes
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        module = None if self.device.type == "cpu" else torch.get_device_module(self.device)
        self._allocator = module if hasattr(module, "max_memory_allocated") else None

    @property
    def source(self) -> str:
        """What the number counts, in words."""
        return "resident set of the process" if self._allocator is None else f"allocated on {self.device}"

    def start(self) -> None:
        """Forget earlier peaks."""
        if self._allocator is not None:
            self._allocator.reset_peak_memory_stats(self.device)
        elif _CLEAR_REFS.exists():
            try:
                _CLEAR_REFS.write_text("5")
            except OSError:  # a locked-down container: `stop` then reports the mark since the process began
                return

    def stop(self) -> int:
        """Bytes at the peak since :meth:`start`."""
        if self._allocator is not None:
            return int(self._allocator.max_memory_allocated(self.device))
        if _STATUS.exists():
            for line in _STATUS.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return max(peak, int(psutil.Process().memory_info().rss))
