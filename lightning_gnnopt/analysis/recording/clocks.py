"""The time of the device that computes."""

from __future__ import annotations

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """Takes stamps cheaply, and says later how far they lie apart.

    Attributes:
        is_host: Whether it goes on while the host does, so that what the profiler does lies between its stamps.
    """

    is_host: bool

    def stamp(self) -> Any:
        """Take a stamp now."""

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two stamps; may wait until the second has come."""

    def is_past(self, stamp: Any) -> bool:
        """Whether the device has come to a stamp, so that :meth:`seconds` does not wait."""

    def release(self, stamps: list[Any]) -> None:
        """Take back stamps that nobody will ask about any more."""


class HostClock:
    """The processor's clock: right where an operator has ended when its call returns."""

    is_host = True

    def stamp(self) -> float:
        """Take a stamp now."""
        return time.perf_counter()

    def seconds(self, start: float, end: float) -> float:
        """Seconds between two stamps."""
        return end - start

    def is_past(self, stamp: float) -> bool:
        """Always."""
        return True

    def release(self, stamps: list[float]) -> None:
        """Nothing to take back."""


class EventClock:
    """Events on the stream that an accelerator computes on: the host does not wait for them.

    The time between two events is the device's: it includes the device's idle time where the host is late with work.
    Events are used again, since making one takes longer than recording it.

    Args:
        device: The device.
        module: What has its `Event`; by default what torch has for the device.
    """

    is_host = False

    def __init__(self, device: torch.device, module: Any = None) -> None:
        self._device = device
        self._module = torch.get_device_module(device) if module is None else module
        self._free: list[Any] = []

    def stamp(self) -> Any:
        """Record an event on the stream that is current in this thread."""
        event = self._free.pop() if self._free else self._module.Event(enable_timing=True)
        event.record(self._module.current_stream(self._device))
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two events; waits for the second."""
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def is_past(self, stamp: Any) -> bool:
        """Whether the device has come to an event."""
        return bool(stamp.query())

    def release(self, stamps: list[Any]) -> None:
        """Use these events again."""
        self._free += stamps


def clock_of(device: torch.device) -> Clock:
    """Choose the clock for a device: events where it has a stream of its own, else the processor's."""
    if device.type != "cpu" and hasattr(torch.get_device_module(device), "Event"):
        return EventClock(device)
    return HostClock()
