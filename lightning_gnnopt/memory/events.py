"""Every allocation and release of a stretch of a run, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_gnnopt.memory import cuda_events
from lightning_gnnopt.memory.cpu_events import thread_log


class EventRecorder:
    """What :func:`record_events` recorded; complete once its context has ended.

    Args:
        device: Whose allocations.
        labelled: Whether it is known where each event happened.
    """

    def __init__(self, device: torch.device, *, labelled: bool) -> None:
        self.device = device
        self.labelled = labelled
        self._requested: list[int] = []
        self._events: list[int] | None = None
        self._labels: list[str] = []

    @property
    def events(self) -> NDArray[np.int64]:
        """Signed bytes, shape ``(T,)``: positive an allocation, negative a release; on CUDA in blocks of 512 bytes.

        Raises:
            RuntimeError: If the context has not ended.
        """
        return np.array(self._done(), np.int64)

    @property
    def requested(self) -> NDArray[np.int64]:
        """As :attr:`events`, but as many bytes as were asked for, on CUDA too; shape ``(T,)``."""
        self._done()
        return np.array(self._requested, np.int64)

    @property
    def labels(self) -> list[str]:
        """Where each event happened, ``T`` strings such as ``"net.convs.0 > aten::index_select"``.

        On CPU: the scopes of `torch.profiler.record_function` around it, outermost first, nodes of autograd among them,
        and the innermost operator; ``"python"`` outside all. On CUDA: the line of Python that allocated the block.
        """
        self._done()
        return list(self._labels)

    @property
    def peak_bytes(self) -> int:
        """The largest running sum of the events, at least 0."""
        return int(np.cumsum(self.events).max(initial=0))

    def take(self, sizes: list[int], labels: list[str]) -> None:
        """Add what the thread's recording tells; for `ThreadLog`."""
        self._requested += sizes
        self._labels += labels

    def end(self, events: list[int] | None = None) -> None:
        """Close it; `events` are the sizes where they differ from what was asked for."""
        self._events = self._requested if events is None else events

    def _done(self) -> list[int]:
        if self._events is None:
            raise RuntimeError(
                "Events can be read once the recording has ended, but it still runs."
                " HINT: read them after the `with record_events(...)` block."
            )
        return self._events


def can_record(device: torch.device | str) -> bool:
    """Whether :func:`record_events` works for `device` in this thread now."""
    return _obstacle(torch.device(device)) is None


@contextmanager
def record_events(device: torch.device | str, *, labelled: bool = False) -> Iterator[EventRecorder]:
    """Record each allocation and release within this context.

    On CPU: what this thread allocates through torch, and the threads that it hands work to; other threads do not
    appear, and may record at the same time. Recordings and `PeakMeter` nest; torch's other profilers cannot run in the
    same thread meanwhile. A release is known for blocks that some recording saw allocated. For others nothing is
    reported, or, where an earlier recording's block lay at the same address and was released unrecorded, that block's
    size. Memory that torch does not allocate (NumPy's, other processes', kernels' scratch space) does not appear.

    On CUDA: what the caching allocator did on `device` for the stream that this thread computes on, from its history. A
    release counts when it is asked for, as in `torch.cuda.memory_allocated`. One recording at a time.

    The events are there after an exception within the context too.

    Args:
        device: Whose allocations.
        labelled: Whether to record where each event happened, which makes operators slower.

    Yields:
        The recorder, to be read after the context.

    Raises:
        RuntimeError: If nothing can be recorded now; :func:`can_record` tells beforehand.

    Examples:
        >>> with record_events("cpu") as recorder:
        ...     x = torch.ones(10)
        ...     y = x[2:].neg()
        ...     del x
        >>> recorder.events.tolist(), recorder.peak_bytes
        ([40, 32, -40], 72)
    """
    device = torch.device(device)
    obstacle = _obstacle(device)
    if obstacle is not None:
        raise RuntimeError(f"Allocations on {device} cannot be recorded now: {obstacle}")
    recorder = EventRecorder(device, labelled=labelled)
    if device.type == "cpu":
        thread_log.add(recorder)
        try:
            yield recorder
        finally:
            thread_log.remove(recorder)
            recorder.end()
        return
    cuda_events.start(labelled=labelled)
    try:
        yield recorder
    finally:
        read = cuda_events.stop(device, labelled=labelled)
        recorder.take(read.requested, read.labels)
        recorder.end(read.rounded)


def _obstacle(device: torch.device) -> str | None:
    if device.type == "cpu":
        return thread_log.obstacle()
    if device.type == "cuda":
        return cuda_events.obstacle()
    return f"torch reports no allocations on {device.type}. HINT: record on CPU or CUDA."
