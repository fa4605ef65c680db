"""Streams of a CUDA device: thin, as no test of ours can run it where there is no such device.

What relies on it is tested on the simulated device; ``tests/loading/test_cuda.py`` runs on a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


class _CudaEvent:
    def __init__(self, event: Any) -> None:
        self.event = event

    def query(self) -> bool:
        return bool(self.event.query())

    def synchronize(self) -> None:
        self.event.synchronize()

    def elapsed_s(self, since: _CudaEvent) -> float:
        return float(since.event.elapsed_time(self.event)) / 1000


class _CudaStream:
    def __init__(self, module: Any, stream: Any) -> None:
        self._module = module
        self._stream = stream

    def submit(self, work: Callable[[], object], *, nbytes: int = 0) -> None:
        with self._module.stream(self._stream):  # its device, too, which is a thread's own setting
            work()

    def record(self) -> _CudaEvent:
        event = self._module.Event(enable_timing=True)
        event.record(self._stream)
        return _CudaEvent(event)

    def wait(self, event: _CudaEvent) -> None:
        self._stream.wait_event(event.event)

    def reads(self, memory: Tensor) -> None:
        memory.record_stream(self._stream)


class CudaStreams:
    """A CUDA device: one side stream for all copies, and the stream that the training step runs on.

    The side stream is made once. A stream for each epoch would strand the blocks that the caching allocator keeps for
    the one before.

    Args:
        device: The device; without an index the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        index = self._module.current_device() if device.index is None else device.index
        self.device = torch.device(device.type, index)
        self._side = self._module.Stream(device=self.device)
        self.copies = _CudaStream(self._module, self._side)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device,)

    def current(self) -> _CudaStream:
        """The stream on which the calling thread computes."""
        return _CudaStream(self._module, self._module.current_stream(self.device))

    def active(self) -> AbstractContextManager[Any]:
        """Make the device the calling thread's current one: the driver would open a context on another."""
        context: AbstractContextManager[Any] = self._module.device(self.device)
        return context

    def host_memory(self, nbytes: int) -> Tensor:
        """Allocate pinned memory: from any other, a copy holds up the host."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def device_memory(self, nbytes: int) -> Tensor:
        """Allocate on the side stream, so that the caching allocator gives it to that stream only when it is freed."""
        with self._module.stream(self._side):
            return torch.empty(nbytes, dtype=torch.uint8, device=self.device)

    def free_bytes(self) -> int | None:
        """Bytes that the driver has free, and those that the caching allocator keeps without a use."""
        free, _ = self._module.mem_get_info(self.device)
        idle = self._module.memory_reserved(self.device) - self._module.memory_allocated(self.device)
        return int(free + idle)
