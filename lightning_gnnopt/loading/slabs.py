"""Reused buffers, each handed out anew only when nobody uses it any more."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_gnnopt.loading.streams import Event, Stream

_PAGE = 4096
_RECENT = 64  # requests by which a slab's size goes
_MUCH = 3  # times the largest of them: a slab that large is not kept

_LENT: set[Slab] = set()
"""Slabs in use. While one is lent, nothing else may hold it, and it must not go before the tensors over its memory."""


class Slab:
    """A buffer of a pool.

    Attributes:
        memory: Uint8 tensor.
        nbytes: Its size.
        busy: Until when the device works on it, if it does; to be waited for before it is written.
        reader: The stream that reads what is lent; None if the host does.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.nbytes = len(memory)
        self.busy: Event | None = None
        self.reader: Stream | None = None
        self._lease: Any = None

    def lend(self, pool: SlabPool) -> Tensor:
        """Lend the memory: the slab returns to the pool when no tensor uses it any more.

        That is when the last tensor over the returned one's storage is gone, those that autograd keeps for the backward
        pass included. What the device was told to do with them by then may still be to come; so the end of the `reader`
        as it stands then becomes the slab's `busy`.

        Args:
            pool: Where it returns to.

        Returns:
            A tensor over the same memory with a storage of its own.
        """
        tensor, lease = _lease(self.memory)

        def end(_: object) -> None:
            # In whichever thread drops the last tensor, maybe in the middle of something: nothing here waits.
            try:
                self.busy = None if self.reader is None else self.reader.record()
            finally:
                self.reader = None
                _LENT.discard(self)  # first: once it has returned, another thread may lend it anew
                pool.returned.append(self)
                pool.settle()

        self._lease = weakref.ref(lease, end)
        _LENT.add(self)
        return tensor


class SlabPool:
    """Buffers of about the same size, reused in the order in which they return.

    Args:
        allocate: Makes a uint8 tensor of so many bytes.
        target: Up to so many, a new slab is made rather than one taken that the device still works on. If all are lent
            out there will be more, which go when they return: a consumer may keep what it was given.
        max_bytes: The same in bytes, beyond which only two slabs more are made: that of this step and of the next. None
            goes by the number alone.
    """

    def __init__(self, allocate: Callable[[int], Tensor], *, target: int, max_bytes: int | None = None) -> None:
        self._allocate = allocate
        self.target = target
        self.max_bytes = max_bytes
        self.returned: deque[Slab] = deque()  # appending is atomic
        self._lock = threading.Lock()
        self._free: list[Slab] = []  # those that returned first stand first
        self._asked: deque[int] = deque(maxlen=_RECENT)
        self.num_slabs = 0
        self.nbytes = 0
        """Bytes of all slabs, lent ones included."""

    @property
    def num_waiting(self) -> int:
        """Slabs that wait for a use."""
        return len(self._free) + len(self.returned)

    def acquire(self, nbytes: int) -> Slab:
        """Take a slab of at least `nbytes`; its `busy` is to be waited for before it is written."""
        with self._lock:
            self._asked.append(nbytes)
            self._take_back()
            # Batches differ in size: with an eighth to spare, the next larger one fits as well.
            size = -(-max(self._asked) * 9 // 8 // _PAGE) * _PAGE
            fits = [slab for slab in self._free if slab.nbytes >= nbytes]
            idle = (slab for slab in fits if slab.busy is None or slab.busy.query())
            slab = min(idle, key=lambda slab: slab.nbytes, default=None)
            if slab is None and fits and self._is_full(size):
                slab = fits[0]
            if slab is not None:
                self._free.remove(slab)
                return slab
            if self._free and self._is_full(size):  # none that fits: one makes room for a larger one
                self._drop(self._free.pop(0))
            self.num_slabs += 1
            self.nbytes += size
        try:
            try:
                return Slab(self._allocate(size))
            except torch.OutOfMemoryError:
                self.trim()
                return Slab(self._allocate(size))
        except BaseException:
            with self._lock:
                self.num_slabs -= 1
                self.nbytes -= size
            raise

    def give_back(self, slab: Slab, *, busy: Event | None = None) -> None:
        """Return a slab that was not lent; it may be written again once `busy` is reached."""
        slab.busy = busy
        self.returned.append(slab)

    def settle(self) -> None:
        """Free what has returned and is not needed, unless that would mean to wait; to be called from anywhere."""
        if self._lock.acquire(blocking=False):
            try:
                self._take_back()
            finally:
                self._lock.release()

    def trim(self) -> None:
        """Free the slabs that wait for a use."""
        with self._lock:
            self._take_back()
            for slab in self._free:
                self._drop(slab)
            self._free.clear()

    def _is_full(self, size: int) -> bool:
        if self.num_slabs >= self.target:
            return True
        return self.max_bytes is not None and self.nbytes + size > self.max_bytes + 2 * size

    def _take_back(self) -> None:
        while self.returned:
            slab = self.returned.popleft()
            # More than were asked for, or made for batches of a size that no longer comes.
            if self.num_slabs > self.target or slab.nbytes > _MUCH * max(self._asked, default=0) + _PAGE:
                self._drop(slab)
            else:
                self._free.append(slab)

    def _drop(self, slab: Slab) -> None:
        self.num_slabs -= 1
        self.nbytes -= slab.nbytes


class _Lease:
    """Stands for memory of a CUDA device, and lives as long as a tensor uses it."""

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory  # it must not go before the tensors over it
        self.__cuda_array_interface__ = {
            "shape": (len(memory),),
            "typestr": "|u1",
            "data": (memory.data_ptr(), False),
            "version": 2,
        }


def _lease(memory: Tensor) -> tuple[Tensor, object]:
    """Make a tensor over some memory, and an object that dies with its storage."""
    if memory.device.type == "cuda":
        lease = _Lease(memory)
        return torch.as_tensor(lease, device=memory.device), lease
    array = memory.numpy()[:]
    return torch.from_numpy(array), array
