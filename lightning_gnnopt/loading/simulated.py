"""A device made of threads, to test and to measure what brings batches to a device where there is none."""

from __future__ import annotations

import atexit
import ctypes
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _SimulatedEvent:
    """Reached at `time_s` of the simulated clock, which runs with the real one."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self.time_s = 0.0
        self._error: BaseException | None = None

    def reach(self, time_s: float, error: BaseException | None) -> None:
        self.time_s, self._error = time_s, error
        self._reached.set()

    def query(self) -> bool:
        reached = self._reached.is_set()
        if reached and self._error is not None:
            raise self._error
        return reached

    def synchronize(self) -> None:
        self._reached.wait()
        self.query()

    def elapsed_s(self, since: _SimulatedEvent) -> float:
        return self.time_s - since.time_s


class _SimulatedStream:
    """A thread that does what is submitted, in order, each taking as long as the device would.

    An item starts when it was submitted or when the one before it ended, whichever is later, on a clock of its own:
    that a sleep is a little too long then does not add up.
    """

    def __init__(self, name: str, seconds: Callable[[int], float], *, works: bool = True) -> None:
        self._seconds = seconds
        self._works = works
        self._items: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._clock_s = 0.0
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"gnnopt-simulated-{name}", daemon=True)
        self.thread.start()

    def submit(self, work: Callable[[], object], *, nbytes: int = 0, seconds: float = 0.0) -> None:
        submitted_s = time.perf_counter()

        def run() -> None:
            start_s = max(self._clock_s, submitted_s)
            try:
                if self._works:
                    work()
            except BaseException as error:  # as a device's, it is seen at the next event
                self._error = self._error or error
            self._clock_s = start_s + seconds + (self._seconds(nbytes) if nbytes else 0.0)
            left_s = self._clock_s - time.perf_counter()
            if left_s > 0:
                time.sleep(left_s)

        self._items.put(run)

    def record(self) -> _SimulatedEvent:
        event, submitted_s = _SimulatedEvent(), time.perf_counter()
        self._items.put(lambda: event.reach(max(self._clock_s, submitted_s), self._error))
        return event

    def wait(self, event: _SimulatedEvent) -> None:
        def run() -> None:
            event._reached.wait()
            self._clock_s = max(self._clock_s, event.time_s)

        self._items.put(run)

    def reads(self, memory: Tensor) -> None:
        """Nothing to note: see `SimulatedDevice.device_memory`."""

    def close(self) -> None:
        self._items.put(None)
        self.thread.join()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            item()


class _HostStream:
    """The calling thread itself, which does everything at once."""

    def submit(self, work: Callable[[], object], *, nbytes: int = 0, seconds: float = 0.0) -> None:
        work()
        time.sleep(seconds)

    def record(self) -> _SimulatedEvent:
        event = _SimulatedEvent()
        event.reach(time.perf_counter(), None)
        return event

    def wait(self, event: _SimulatedEvent) -> None:
        event.synchronize()

    def reads(self, memory: Tensor) -> None:
        """Nothing to note."""

    def close(self) -> None:
        """Nothing to end."""


class SimulatedDevice:
    """A device whose memory is the host's and whose two streams are threads: one for copies, one for computing.

    Nothing waits for anything that streams and events do not order, so that a missing wait shows: a copy overwrites
    what is still read, a step reads what has not arrived.

    Args:
        bytes_per_s: How fast host and device exchange bytes.
        copy_delay_s: Called for each copy with its bytes; what it returns is added to the copy's time.
        carries: Whether copies are made at all, or only take their time: for measuring, as a device's copy engine takes
            no core of the host. What is brought is then not there.
        host_computes: Whether the threads that take batches compute on them, as in a training loop on the CPU: taking a
            batch then waits until it has arrived.

    Examples:
        >>> with SimulatedDevice() as device:
        ...     x = torch.ones(3)
        ...     device.compute(lambda x: x.mul_(2), x, seconds=0.001)
        ...     device.synchronize()
        >>> x
        tensor([2., 2., 2.])
    """

    device = torch.device("cpu")

    def __init__(
        self,
        *,
        bytes_per_s: float = float("inf"),
        copy_delay_s: Callable[[int], float] = lambda nbytes: 0.0,
        carries: bool = True,
        host_computes: bool = False,
    ) -> None:
        self.copied_bytes: list[int] = []
        self._carries = carries

        def seconds(nbytes: int) -> float:
            self.copied_bytes.append(nbytes)
            return nbytes / bytes_per_s + copy_delay_s(nbytes)

        self.copies = _SimulatedStream("copies", seconds, works=carries)
        _OPEN.add(self)
        self._compute = _HostStream() if host_computes else _SimulatedStream("compute", seconds)

    def current(self) -> _SimulatedStream | _HostStream:
        """The stream on which everything computes."""
        return self._compute

    def active(self) -> AbstractContextManager[Any]:
        """Nothing to set."""
        return nullcontext()

    def host_memory(self, nbytes: int) -> Tensor:
        """Allocate memory."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu")

    def device_memory(self, nbytes: int) -> Tensor:
        """Allocate memory, full of ones: what was not written is noticed.

        As by a real allocator, it is freed only when both streams have come to where it was dropped.
        """
        if not nbytes:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        memory = np.full(nbytes, 255, np.uint8) if self._carries else np.empty(nbytes, np.uint8)
        handed_out = memory[:]
        weakref.finalize(handed_out, self._hold, memory).atexit = False
        return torch.from_numpy(handed_out)

    def _hold(self, memory: NDArray[np.uint8]) -> None:
        for stream in (self.copies, self._compute):
            stream.submit(memory.view)

    def free_bytes(self) -> int | None:
        """Not known."""
        return None

    def compute(self, work: Callable[..., Any], *tensors: Tensor, seconds: float = 0.0) -> None:
        """Submit a kernel. As a real one it gets addresses and holds no reference: only a stream's order protects it.

        Args:
            work: Called with tensors over the same memory as `tensors`.
            *tensors: Contiguous tensors.
            seconds: How long the device takes for it.
        """
        bare = [_bare(tensor) for tensor in tensors]
        self._compute.submit(lambda: work(*bare), seconds=seconds)

    def synchronize(self) -> None:
        """Wait until all that was submitted to compute is done.

        Raises:
            BaseException: The first error of a kernel.
        """
        self._compute.record().synchronize()

    def close(self) -> None:
        """Finish what was submitted, and end the threads."""
        _OPEN.discard(self)
        self.copies.close()
        self._compute.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


_OPEN: weakref.WeakSet[SimulatedDevice] = weakref.WeakSet()


os.register_at_fork(after_in_child=_OPEN.clear)  # threads are not forked


@atexit.register
def _close_all() -> None:
    """End the threads: an interpreter that ends while they are inside of torch aborts."""
    for device in list(_OPEN):
        device.close()


def _bare(tensor: Tensor) -> Tensor:
    """Make a tensor over the same memory that keeps nothing alive."""
    nbytes = tensor.numel() * tensor.element_size()
    if nbytes == 0:
        return torch.empty_like(tensor)
    buffer = (ctypes.c_uint8 * nbytes).from_address(tensor.data_ptr())
    return torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape)
