"""The most memory that a whole run held."""

from __future__ import annotations

import torch

from lightning_gnnopt.memory.peak_counters import PeakRegion, allocator_of, allocator_peak, resident_peak


class Watermark:
    """Measures the largest number of bytes held between :meth:`start` and :meth:`stop`.

    On an accelerator: bytes allocated by torch's caching allocator. On CPU (and on MPS, whose allocator keeps no
    peak): the process's resident set, as the operating system counts it, with the interpreter, the graph and
    everything else in it. Where its high-water mark cannot be reset (anywhere but Linux), it is the mark since the
    process began. For the bytes of tensors in one step, see `PeakMeter`; the two may overlap.

    Args:
        device: The device that trains.

    Examples:
        >>> watermark = Watermark("cpu")
        >>> watermark.start()
        >>> ballast = torch.ones(1_000_000)
        >>> watermark.stop() > ballast.nbytes
        True
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._counts_allocated = allocator_of(self.device) is not None
        self._region: PeakRegion | None = None

    @property
    def source(self) -> str:
        """What the number counts, in words."""
        return f"allocated on {self.device}" if self._counts_allocated else "resident set of the process"

    def start(self) -> None:
        """Forget earlier peaks."""
        counter = allocator_peak(self.device) if self._counts_allocated else resident_peak
        self._region = None
        self._region = counter.open()

    def stop(self) -> int:
        """Bytes at the peak since :meth:`start`, or since the process began if there was none; may be asked again."""
        if self._region is not None:
            return self._region.peaks()[0]
        return (allocator_peak(self.device) if self._counts_allocated else resident_peak).read()[0]
