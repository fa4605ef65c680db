"""Copy a snapshot's tensors as fast as memory allows: the only part of a snapshot that training waits for."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ATOMS = frozenset({int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device})

_SMALL_BYTES = 4096  # below it the allocator hands out warm memory, and a reused buffer saves nothing

_Key = tuple[torch.Size, tuple[int, ...], torch.dtype, bool]  # a buffer's shape and strides; whether it is pinned


class CopyPool:
    """Copies nested structures of tensors into buffers that are reused.

    The first write to fresh memory costs more than the copy itself, as the system has to map every page, so the
    buffers of a snapshot that was written go to the next one. Each tensor has a buffer of its own, as
    `torch.save` writes whole storages. Together, the buffers in use and those that wait never take more memory than
    was once in use at the same time. Small tensors on the CPU need no such buffer.

    Example:
        >>> pool = CopyPool()
        >>> weight = torch.zeros(2)
        >>> copied = pool.copy({"weight": weight, "name": "first"})
        >>> _ = weight.add_(1)
        >>> copied.wait()
        >>> copied.value
        {'weight': tensor([0., 0.]), 'name': 'first'}
        >>> copied.release()
    """

    def __init__(self) -> None:
        self._free: OrderedDict[_Key, list[Tensor]] = OrderedDict()  # least recently returned first
        self._free_bytes = 0
        self._used_bytes = 0
        self._peak_bytes = 0
        self._lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        """Bytes of all buffers, those in use included."""
        with self._lock:
            return self._free_bytes + self._used_bytes

    def copy(self, value: Any) -> Copied:
        """Copy dicts, lists and tuples of tensors and of anything else, to any depth.

        Tensors become plain tensors on the CPU, without gradients. Tensors that share their memory and their shape,
        such as tied weights, share it in the copy as well. What is neither a tensor nor one of these containers is
        deep-copied as Python does it, and so are tensors that are not strided or not of a class of torch's own. Keys
        of dicts are kept as they are.

        Copies from a CUDA device are queued on its current stream, so later work on that stream cannot change them;
        they are complete after :meth:`Copied.wait`.

        Args:
            value: What to copy.

        Returns:
            The copy. Give it back with :meth:`Copied.release`.
        """
        copier = _Copier(self)
        try:
            with torch.inference_mode(False), torch.no_grad():
                result = copier.copy(value)
                copier.run()
        except BaseException:
            copier.finish(None).release()
            raise
        return copier.finish(result)

    def _take(self, key: _Key) -> Tensor:
        with self._lock:
            found = self._free.get(key)
            if found:
                buffer = found.pop()
                self._free_bytes -= buffer.nbytes
                self._use(buffer.nbytes)
                return buffer
        shape, stride, dtype, pinned = key
        buffer = torch.empty_strided(shape, stride, dtype=dtype, device="cpu", pin_memory=pinned)
        with self._lock:
            self._use(buffer.nbytes)
            while self._free_bytes + self._used_bytes > self._peak_bytes:
                oldest = next(iter(self._free))
                if self._free[oldest]:
                    self._free_bytes -= self._free[oldest].pop().nbytes
                else:
                    del self._free[oldest]
        return buffer

    def _use(self, nbytes: int) -> None:
        self._used_bytes += nbytes
        self._peak_bytes = max(self._peak_bytes, self._used_bytes)

    def _give_back(self, buffers: Sequence[tuple[_Key, Tensor]], *, again: bool = True) -> None:
        with self._lock:
            for key, buffer in buffers:
                self._used_bytes -= buffer.nbytes
                if not again:
                    continue
                self._free_bytes += buffer.nbytes
                self._free.setdefault(key, []).append(buffer)
                self._free.move_to_end(key)


class Copied:
    """A copy in borrowed buffers.

    Its methods may be called from any thread. A tensor of :attr:`value` must not be used after :meth:`release`: its
    memory is the next copy's.
    """

    def __init__(
        self, pool: CopyPool, value: Any, buffers: Sequence[tuple[_Key, Tensor]], events: Sequence[Any]
    ) -> None:
        self._pool: CopyPool | None = pool
        self._value = value
        self._buffers = buffers
        self._events = events
        self._lock = threading.Lock()

    @property
    def value(self) -> Any:
        """The copy; complete after :meth:`wait`.

        Raises:
            RuntimeError: After :meth:`release`.
        """
        if self._pool is None:
            raise RuntimeError("This copy was released. HINT: use `value` before `release()`.")
        return self._value

    def wait(self) -> None:
        """Wait until the copies from CUDA devices are complete, without the GIL."""
        for event in self._events:
            event.synchronize()

    def release(self) -> None:
        """Give the buffers back; a second time does nothing."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            self.wait()  # else the next copy's owner could read what a device still writes
        except RuntimeError:  # the device has failed, which is told to who waits for the copy
            pool._give_back(self._buffers, again=False)
        else:
            pool._give_back(self._buffers)
        self._value, self._buffers, self._events = None, (), ()


class _Copier:
    """One copy in the making."""

    def __init__(self, pool: CopyPool) -> None:
        self._pool = pool
        self._memo: dict[int, Any] = {}  # by the original's id, as `copy.deepcopy` keeps it
        self._tensors: dict[tuple[Any, ...], Tensor] = {}
        self._buffers: list[tuple[_Key, Tensor]] = []
        self._copies: list[tuple[Tensor, Tensor, bool]] = []  # into, from, whether it comes from a CUDA device
        self._devices: set[torch.device] = set()

    def copy(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        known = self._memo.get(id(value))
        if known is not None:
            return known
        new: Any
        if kind is Tensor or kind is nn.Parameter:
            new = self._memo[id(value)] = self._tensor(value)
        elif kind is dict or kind is OrderedDict or kind is defaultdict:
            new = defaultdict(value.default_factory) if kind is defaultdict else kind()
            self._memo[id(value)] = new  # before its items, which may refer to it
            for key, item in value.items():
                new[key] = self.copy(item)
            if kind is OrderedDict and vars(value):  # a state dict's `_metadata`
                vars(new).update(self.copy(vars(value)))
        elif kind is list:
            new = self._memo[id(value)] = []
            new.extend(self.copy(item) for item in value)
        elif kind is tuple:
            new = self._memo[id(value)] = tuple(self.copy(item) for item in value)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            new = self._memo[id(value)] = kind(*(self.copy(item) for item in value))
        else:
            new = copy.deepcopy(value, self._memo)
        return new

    def run(self) -> None:
        """Copy what was found: at the end and at one go, as it drives the walk's own objects out of the cache."""
        for new, tensor, on_cuda in self._copies:
            new.copy_(tensor, non_blocking=on_cuda)
        self._copies.clear()

    def finish(self, value: Any) -> Copied:
        events = []
        for device in self._devices:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            events.append(event)
        return Copied(self._pool, value, self._buffers, events)

    def _tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            return tensor.detach().to("meta" if tensor.is_meta else "cpu", copy=True)
        shape, stride, device = tensor.shape, tensor.stride(), tensor.device
        place = (tensor.data_ptr(), shape, stride, tensor.dtype, device, tensor.is_conj(), tensor.is_neg())
        known = self._tensors.get(place)
        if known is not None:
            return known
        on_cuda = device.type == "cuda"
        if not (tensor.is_contiguous() or _is_dense(shape, stride)):
            tensor = tensor.contiguous()
            stride = tensor.stride()
        if tensor.nbytes < _SMALL_BYTES and device.type == "cpu":
            new = tensor.detach().clone()
        else:
            key = (shape, stride, tensor.dtype, on_cuda)
            new = self._pool._take(key)
            self._buffers.append((key, new))
            if on_cuda:
                self._devices.add(device)
            self._copies.append((new, tensor, on_cuda))
        self._tensors[place] = new
        return new


def _is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether a tensor's elements fill its memory, in whatever order, each once."""
    expected = 1
    for step, length in sorted((s, n) for n, s in zip(shape, stride, strict=True) if n != 1):
        if step != expected:
            return False
        expected *= length
    return True
