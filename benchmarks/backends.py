"""The device to which the benchmarks of loading bring batches: a simulated one, or a CUDA device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from lightning_gnnopt.loading import SimulatedDevice
from lightning_gnnopt.loading.streams import DeviceStreams, streams_of

_CALIBRATION_BYTES = 256 << 20
_MATRIX = 2048  # rows and columns of what is multiplied, in some tenths of a millisecond
_CALIBRATION_KERNELS = 100


class Backend(Protocol):
    """A device, and how to keep it busy for a given time.

    Attributes:
        name: What it is called in a row.
        accelerator: What Lightning's `Trainer` calls the device that it trains on.
        streams: Its streams.
        exact: Whether transfers and kernels take exactly the seconds that were asked for.
    """

    name: str
    accelerator: str
    streams: DeviceStreams
    exact: bool

    def transfer_bytes(self, seconds: float) -> int:
        """How many bytes take so many seconds to copy to the device, at least 1."""
        ...

    def kernel(self, seconds: float) -> Callable[[], None]:
        """Make a function that submits a kernel, or several, of so many seconds to the calling thread's stream."""
        ...

    def move(self, batch: Any) -> Any:
        """Bring another loader's batch to the device, as its users do."""
        ...

    def synchronize(self) -> None:
        """Wait until all that was submitted to the calling thread's stream is done."""
        ...

    def close(self) -> None:
        """Give back what the device holds."""
        ...


class SimulatedBackend:
    """A device made of threads, whose copies and kernels take the time they are given to the microsecond.

    Args:
        bytes_per_s: How fast host and device exchange bytes; by default what a PCIe 3.0 x16 slot does.
        carries: Whether copies are made, or only take their time, as a device's copy engine takes no core of the host.
    """

    name = "simulated"
    accelerator = "cpu"  # Lightning cannot train on the simulated one
    exact = True

    def __init__(self, *, bytes_per_s: float = 12e9, carries: bool = True) -> None:
        self._bytes_per_s = bytes_per_s
        self._device = SimulatedDevice(bytes_per_s=bytes_per_s, carries=carries)
        self.streams: DeviceStreams = self._device

    def transfer_bytes(self, seconds: float) -> int:
        """See `Backend`."""
        return max(1, round(seconds * self._bytes_per_s))

    def kernel(self, seconds: float) -> Callable[[], None]:
        """See `Backend`."""
        return lambda: self._device.compute(_nothing, seconds=seconds)

    def move(self, batch: Any) -> Any:
        """Leave the batch where it is: other loaders do not know this device."""
        return batch

    def synchronize(self) -> None:
        """See `Backend`."""
        self._device.synchronize()

    def close(self) -> None:
        """End the threads."""
        self._device.close()


class CudaBackend:
    """The current CUDA device. How fast it copies and multiplies matrices is measured first."""

    accelerator = "gpu"
    exact = False

    def __init__(self) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        streams = streams_of(device)
        assert streams is not None
        self.name = torch.cuda.get_device_name(device)
        self.streams: DeviceStreams = streams
        self._a, self._b = (torch.randn(_MATRIX, _MATRIX, device=device) for _ in range(2))
        self._out = torch.empty_like(self._a)
        source = streams.host_memory(_CALIBRATION_BYTES)
        target = streams.device_memory(_CALIBRATION_BYTES)
        copy_s = self._seconds(lambda: target.copy_(source, non_blocking=True))
        self._bytes_per_s = _CALIBRATION_BYTES / copy_s
        self._kernel_s = self._seconds(lambda: self._multiply(_CALIBRATION_KERNELS)) / _CALIBRATION_KERNELS

    def transfer_bytes(self, seconds: float) -> int:
        """See `Backend`."""
        return max(1, round(seconds * self._bytes_per_s))

    def kernel(self, seconds: float) -> Callable[[], None]:
        """See `Backend`."""
        times = max(1, round(seconds / self._kernel_s))
        return lambda: self._multiply(times)

    def move(self, batch: Any) -> Any:
        """See `Backend`."""
        return batch.to(self.streams.device, non_blocking=True)

    def synchronize(self) -> None:
        """See `Backend`."""
        torch.cuda.current_stream(self.streams.device).synchronize()

    def close(self) -> None:
        """Free the matrices."""
        del self._a, self._b, self._out

    def _multiply(self, times: int) -> None:
        for _ in range(times):
            torch.mm(self._a, self._b, out=self._out)

    def _seconds(self, work: Callable[[], object], *, runs: int = 3) -> float:
        """Time some work: the fastest of a few runs, after one that warms up."""
        taken = []
        for _ in range(runs + 1):
            torch.cuda.synchronize(self.streams.device)
            start = time.perf_counter()
            work()
            torch.cuda.synchronize(self.streams.device)
            taken.append(time.perf_counter() - start)
        return min(taken[1:])


def _nothing() -> None:
    """Compute nothing: only the time that it takes counts."""
