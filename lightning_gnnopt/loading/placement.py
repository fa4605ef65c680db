"""Where the batches of a loader are: in host memory, or on a device to which they are copied while it computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gnnopt.loading.plan import ALIGNMENT, BatchPlan, Layout, Part, host_tensor, write_parts
from lightning_gnnopt.loading.slabs import Slab, SlabPool
from lightning_gnnopt.loading.streams import DeviceStreams, Event

# A tensor below this share of its batch has memory of its own: metrics and predictions keep small ones for long.
_SMALL_SHARE = 1 / 8
# Below this a batch is allocated as any other tensors are: what a slab saves are the page faults of large allocations.
_SMALL_BYTES = 1 << 20

NOTE = "This happened while"
"""How the note begins that says which batch an error belongs to."""


@dataclass(eq=False)
class Placed:
    """A batch at its place.

    Attributes:
        moved_bytes: Bytes copied to the device for it.
        copies: Copies to the device that it took.
        span: Where its transfer starts and where it ends, on a device.
        waited_s: Seconds that its worker waited for host memory which was still being copied.
    """

    batch: Any
    moved_bytes: int = 0
    copies: int = 0
    span: tuple[Event, Event] | None = None
    streams: DeviceStreams | None = None
    slab: Slab | None = None
    own: Tensor | None = None
    waited_s: float = 0.0

    def take(self) -> Any:
        """Hand the batch over: the calling thread's stream waits for it, the host does not."""
        if self.span is not None and self.streams is not None and self.slab is not None:
            ready = self.span[1]
            ready.query()  # raises what went wrong, if it is known by now
            stream = self.streams.current()
            stream.wait(ready)
            # From here on the slab is free again when this stream has come to where the batch is dropped; and should it
            # be freed for good, the allocator waits for this stream, too.
            self.slab.reader = stream
            stream.reads(self.slab.memory)
            if self.own is not None:
                stream.reads(self.own)
        batch, self.batch, self.slab, self.own = self.batch, None, None, None
        return batch


class Placement(Protocol):
    """Brings planned batches to their place; safe to be called from many threads at once.

    Slabs outlive the loop that they were made in: they must not be inference tensors, as what Lightning's evaluation
    makes is.
    """

    def place(self, plan: BatchPlan, name: str = "a batch") -> Placed:
        """Write a batch and, for a device, start its transfer; `name` is what an error on the device calls it."""
        ...

    def expect(self, in_flight: int, max_bytes: int | None = None) -> None:
        """Be told how many batches a loader prepares ahead, and of how many bytes at most."""
        ...

    def trim(self) -> None:
        """Free the memory that waits for a use."""
        ...


class HostPlacement:
    """Leaves batches in host memory: large tensors in a reused slab, small ones in memory of their own.

    Reuse saves the page faults of fresh memory. A slab is written again only when no tensor uses it any more.
    """

    def __init__(self) -> None:
        self._pool = SlabPool(_host_memory, target=2)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # without its slabs

    def expect(self, in_flight: int, max_bytes: int | None = None) -> None:
        """Keep as many slabs as can be in use at once: those ahead, and those of this step and of the next."""
        self._pool.target = max(self._pool.target, in_flight + 2)

    def trim(self) -> None:
        """Free the slabs that wait for a use."""
        self._pool.trim()

    @torch.inference_mode(False)
    def place(self, plan: BatchPlan, name: str = "a batch") -> Placed:
        """Write a batch."""
        parts = [field.part for field in plan.fields]
        large = [False] * len(parts) if plan.nbytes < _SMALL_BYTES else _large(plan)
        layout = Layout()
        for part, is_large in zip(parts, large, strict=True):
            if is_large:
                layout.add(part.dtype, part.shape)
        in_slab: Iterator[Tensor] = iter(())
        if layout.nbytes:
            slab = self._pool.acquire(layout.nbytes)
            in_slab = iter(layout.host_tensors(slab.lend(self._pool)))
        tensors = [
            next(in_slab) if is_large else host_tensor(part.dtype, part.shape)
            for part, is_large in zip(parts, large, strict=True)
        ]
        write_parts(parts, tensors)
        return Placed(plan.assemble(tensors))


def _host_memory(nbytes: int) -> Tensor:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)  # numpy asks Linux for huge pages, torch does not
    return torch.from_numpy(memory[-memory.ctypes.data % ALIGNMENT :][:nbytes])


class DevicePlacement:
    """Brings batches to a device: one packed copy each, on one side stream, while the device computes.

    A batch is written into a slab of host memory (pinned, on CUDA) and copied as a whole into a slab on the device, of
    which its large tensors are parts; what travels in another form is unpacked there. The copy waits for the consumer
    of what the device's slab held before; the consumer's stream waits for the copy; the host waits for neither, unless
    all of its own slabs are still being copied.

    Args:
        streams: The device.
    """

    def __init__(self, streams: DeviceStreams) -> None:
        self.streams = streams
        self._staging = SlabPool(streams.host_memory, target=2)
        self._slabs = SlabPool(streams.device_memory, target=3)
        self._submitting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.streams,)  # without its slabs

    def expect(self, in_flight: int, max_bytes: int | None = None) -> None:
        """Keep as many slabs as can be in use at once."""
        self._staging.target = max(self._staging.target, in_flight + 1)
        self._slabs.target = max(self._slabs.target, in_flight + 2)
        self._staging.max_bytes = self._slabs.max_bytes = max_bytes

    @torch.inference_mode(False)
    def place(self, plan: BatchPlan, name: str = "a batch") -> Placed:
        """Write a batch and start its transfer."""
        with self.streams.active():
            return self._place(plan, name)

    def _place(self, plan: BatchPlan, name: str) -> Placed:
        arrival = _Arrival(plan)
        copies, moved_bytes = self.streams.copies, arrival.moved_bytes
        host = self._staging.acquire(moved_bytes)
        done = host.busy
        asked_s = time.perf_counter()
        try:
            if host.busy is not None:
                host.busy.synchronize()
            done = None
            waited_s = time.perf_counter() - asked_s
            arrival.write(host.memory)
            own = self.streams.device_memory(arrival.own.nbytes)
            slab = self._slabs.acquire(arrival.slab.nbytes)
            before = slab.busy
            try:
                memory = slab.lend(self._slabs)  # from here on it returns when its tensors go
            except BaseException:
                self._slabs.give_back(slab, busy=before)
                raise
            tensors, unpacking = arrival.tensors(memory, own)
            with self._submitting:
                if before is not None:
                    copies.wait(before)
                start = copies.record()
                try:
                    source, target = host.memory[:moved_bytes], slab.memory[:moved_bytes]
                    copies.submit(lambda: target.copy_(source, non_blocking=True), nbytes=moved_bytes)
                finally:
                    done = copies.record()
                copies.submit(lambda: _unpack(unpacking, name))
                ready = copies.record()
        finally:
            self._staging.give_back(host, busy=done)
        return Placed(plan.assemble(tensors), moved_bytes, 1, (start, ready), self.streams, slab, own, waited_s)

    def trim(self) -> None:
        """Free the slabs that wait for a use."""
        self._staging.trim()
        self._slabs.trim()


_Unpacking = tuple[Callable[[Sequence[Tensor], Tensor], None], list[Tensor], Tensor]


class _Arrival:
    """Where the tensors of a batch are when it has arrived on a device.

    What travels lies at the slab's start. Behind it is the room for large tensors that are unpacked there; small
    tensors have memory of their own, so that who keeps one does not keep the slab.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self._fields = plan.fields
        self._large = _large(plan)
        self._travelling: list[Part] = []
        for field in plan.fields:
            self._travelling += (field.part,) if field.packed is None else field.packed.parts
        self.slab, self.own = Layout(), Layout()
        for part in self._travelling:
            self.slab.add(part.dtype, part.shape)
        self.moved_bytes = self.slab.nbytes
        for field, large in zip(plan.fields, self._large, strict=True):
            if not large:
                self.own.add(field.part.dtype, field.part.shape)
            elif field.packed is not None:
                self.slab.add(field.part.dtype, field.part.shape)

    def write(self, memory: Tensor) -> None:
        """Write what travels into host memory."""
        write_parts(self._travelling, self.slab.host_tensors(memory, len(self._travelling)))

    def tensors(self, slab: Tensor, own: Tensor) -> tuple[list[Tensor], list[_Unpacking]]:
        """Make the batch's tensors, and say which of them is unpacked from what."""
        in_slab, of_own = iter(self.slab.tensors(slab)), iter(self.own.tensors(own))
        travelled = [
            [next(in_slab) for _ in range(1 if field.packed is None else len(field.packed.parts))]
            for field in self._fields
        ]
        tensors: list[Tensor] = []
        unpacking: list[_Unpacking] = []
        for field, large, parts in zip(self._fields, self._large, travelled, strict=True):
            if large and field.packed is None:
                tensors += parts
                continue
            tensors.append(next(in_slab) if large else next(of_own))
            unpacking.append((_as_it_is if field.packed is None else field.packed.unpack, parts, tensors[-1]))
        return tensors, unpacking


def _large(plan: BatchPlan) -> list[bool]:
    """Tell which tensors lie in a slab; who keeps one of the others does not keep the whole batch."""
    least = _SMALL_SHARE * plan.nbytes
    return [field.part.nbytes >= least for field in plan.fields]


def _as_it_is(parts: Sequence[Tensor], out: Tensor) -> None:
    out.copy_(parts[0])


def _unpack(unpacking: Sequence[_Unpacking], name: str) -> None:
    try:
        for unpack, parts, out in unpacking:
            unpack(parts, out)
    except Exception as error:
        error.add_note(f"{NOTE} {name} was unpacked on the device.")
        raise
