"""Where the batches of a loader are: in host memory, or on a device to which they are copied while it computes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lightning_gnnopt.loading.plan import BatchPlan, Layout, Part
from lightning_gnnopt.loading.slabs import Slab, SlabPool
from lightning_gnnopt.loading.streams import DeviceStreams, Event

# A tensor below this share of its batch has memory of its own: who keeps it then does not keep the whole batch.
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
    """

    batch: Any
    moved_bytes: int = 0
    copies: int = 0
    span: tuple[Event, Event] | None = None
    streams: DeviceStreams | None = None
    slab: Slab | None = None

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
        batch, self.batch, self.slab = self.batch, None, None
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
        total = plan.nbytes
        large = [total >= _SMALL_BYTES and part.nbytes >= _SMALL_SHARE * total for part in parts]
        layout = Layout()
        for part, is_large in zip(parts, large, strict=True):
            if is_large:
                layout.add(part.dtype, part.shape)
        in_slab: Iterator[Tensor] = iter(())
        if layout.nbytes:
            slab = self._pool.acquire(layout.nbytes)
            in_slab = iter(layout.tensors(slab.lend(self._pool)))
        tensors = [
            next(in_slab) if is_large else torch.empty(part.shape, dtype=part.dtype)
            for part, is_large in zip(parts, large, strict=True)
        ]
        for part, tensor in zip(parts, tensors, strict=True):
            part.write(tensor)
        return Placed(plan.assemble(tensors))


def _host_memory(nbytes: int) -> Tensor:
    return torch.from_numpy(np.empty(nbytes, np.uint8))  # numpy asks Linux for huge pages, torch does not


class DevicePlacement:
    """Brings batches to a device: one packed copy each, on one side stream, while the device computes.

    A batch is written into a slab of host memory (pinned, on CUDA) and copied as a whole into a slab on the device, of
    which its tensors are parts; what travels in another form is unpacked there. The copy waits for the consumer of what
    the device's slab held before; the consumer's stream waits for the copy; the host waits for neither, unless all of
    its own slabs are still being copied.

    Args:
        streams: The device.
    """

    def __init__(self, streams: DeviceStreams) -> None:
        self.streams = streams
        self._staging = SlabPool(streams.host_memory, target=2)
        self._slabs = SlabPool(streams.device_memory, target=3)
        self._submitting = threading.Lock()

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
        layout = Layout()
        travelling: list[Part] = []
        for field in plan.fields:
            travelling += (field.part,) if field.packed is None else field.packed.parts
        for part in travelling:
            layout.add(part.dtype, part.shape)
        moved_bytes = layout.nbytes
        for field in plan.fields:  # behind what is copied, the room for what is unpacked
            if field.packed is not None:
                layout.add(field.part.dtype, field.part.shape)

        copies = self.streams.copies
        host = self._staging.acquire(moved_bytes)
        done = host.busy
        try:
            if host.busy is not None:
                host.busy.synchronize()
            done = None
            for part, tensor in zip(travelling, layout.tensors(host.memory, len(travelling)), strict=True):
                part.write(tensor)
            slab = self._slabs.acquire(layout.nbytes)
            before = slab.busy
            tensors = layout.tensors(slab.lend(self._slabs))  # from here on it returns when its tensors go
            with self._submitting:
                if before is not None:
                    copies.wait(before)
                start = copies.record()
                try:
                    source, target = host.memory[:moved_bytes], slab.memory[:moved_bytes]
                    copies.submit(lambda: target.copy_(source, non_blocking=True), nbytes=moved_bytes)
                    arrived, unpacking = _arrivals(plan, tensors)
                    if unpacking:
                        copies.submit(lambda: _unpack(unpacking, name))
                finally:
                    done = copies.record()
        finally:
            self._staging.give_back(host, busy=done)
        return Placed(plan.assemble(arrived), moved_bytes, 1, (start, done), self.streams, slab)

    def trim(self) -> None:
        """Free the slabs that wait for a use."""
        self._staging.trim()
        self._slabs.trim()


_Unpacking = tuple[Callable[[Sequence[Tensor], Tensor], None], list[Tensor], Tensor]


def _unpack(unpacking: Sequence[_Unpacking], name: str) -> None:
    try:
        for unpack, parts, out in unpacking:
            unpack(parts, out)
    except Exception as error:
        error.add_note(f"{NOTE} {name} was unpacked on the device.")
        raise


def _arrivals(plan: BatchPlan, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[_Unpacking]]:
    """Tell apart what arrives on a device: the batch's tensors, and what has to be unpacked into which of them."""
    places = iter(tensors)
    travelled = [
        [next(places) for _ in range(1 if field.packed is None else len(field.packed.parts))] for field in plan.fields
    ]
    arrived: list[Tensor] = []
    unpacking: list[_Unpacking] = []
    for field, parts in zip(plan.fields, travelled, strict=True):
        if field.packed is None:
            arrived += parts
        else:
            arrived.append(next(places))
            unpacking.append((field.packed.unpack, parts, arrived[-1]))
    return arrived, unpacking
