"""The little we need of a device's streams and events, and which devices have them.

A stream runs what is submitted to it in order, while the host goes on; an event marks a place in a stream. There are
two implementations: `CudaStreams`, and `SimulatedDevice`, whose streams are threads and whose memory is the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor


class Event(Protocol):
    """A place in a stream, reached when all that was submitted before it is done."""

    def query(self) -> bool:
        """Whether it is reached. Raises what went wrong in the stream before it, if that is known."""
        ...

    def synchronize(self) -> None:
        """Let the host wait until it is reached."""
        ...

    def elapsed_s(self, since: Any) -> float:
        """Seconds from an earlier event to this one; both must be reached."""
        ...


class Stream(Protocol):
    """Runs what is submitted to it in order, beside the host and beside other streams."""

    def submit(self, work: Callable[[], object], *, nbytes: int = 0) -> None:
        """Run `work` on the device once all that was submitted before is done.

        Args:
            work: Calls operators on the device's tensors.
            nbytes: Bytes that it moves between host and device.
        """
        ...

    def record(self) -> Event:
        """Mark the stream's present end."""
        ...

    def wait(self, event: Any) -> None:
        """Let what is submitted from now on wait for an event of any stream; the host does not wait."""
        ...

    def reads(self, memory: Tensor) -> None:
        """Be told that the stream reads memory which was allocated for another stream."""
        ...


class DeviceStreams(Protocol):
    """A device, seen by what brings batches to it."""

    device: torch.device
    copies: Any  # a Stream, the same one for the whole life of this object

    def current(self) -> Stream:
        """The stream on which the calling thread computes."""
        ...

    def active(self) -> AbstractContextManager[Any]:
        """Make the device the calling thread's current one, which is a thread's own setting."""
        ...

    def host_memory(self, nbytes: int) -> Tensor:
        """Allocate host memory that the device can copy from while the host goes on, uint8 of shape ``(nbytes,)``."""
        ...

    def device_memory(self, nbytes: int) -> Tensor:
        """Allocate memory on the device for the use of :attr:`copies`, uint8 of shape ``(nbytes,)``."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes of the device's memory that nobody uses, or None if it is not known."""
        ...


def streams_of(device: torch.device | str) -> DeviceStreams | None:
    """Open the streams of a device.

    Args:
        device: A torch device.

    Returns:
        Its streams; None for a device on which batches need no transfer of ours: the CPU, and accelerators without an
        implementation here, to which Lightning moves the batches.

    Raises:
        ValueError: If torch finds no such device.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    if not torch.cuda.is_available():
        raise ValueError(
            f"`device` must be one that torch finds, but got '{device}', and torch {torch.__version__} finds no CUDA"
            " device. HINT: install a CUDA build of torch, or leave `device` out."
        )
    from lightning_gnnopt.loading.cuda_streams import CudaStreams

    return CudaStreams(device)
