"""Objects for another process: pickled by value where it cannot import them, and large arrays shared, not copied."""

from __future__ import annotations

import dataclasses
import io
import pickle
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._dynamo import OptimizedModule
from torch.storage import TypedStorage, UntypedStorage
from torch.utils.data import DataLoader

from lightning_gnnopt.evaluation.blocks import Block, File, Memory, Place, address_of, bounds_of, file_of
from lightning_gnnopt.evaluation.unpicklable import explain
from lightning_gnnopt.sampling.shared_arrays import SharedArrays

_COMPILED = ("forward", "training_step", "validation_step", "test_step", "predict_step")
# What belongs to this process alone. By name, since what is not imported has no instances.
_ABSENT = (
    ("lightning.pytorch.trainer.trainer", "Trainer"),
    ("pytorch_lightning.trainer.trainer", "Trainer"),
    ("lightning.fabric.loggers.logger", "Logger"),
    ("lightning_fabric.loggers.logger", "Logger"),
    ("torch.distributed", "ProcessGroup"),
)


@dataclass(frozen=True)
class Packed:
    """An object on its way to other processes.

    Attributes:
        payload: What :func:`unpack` takes, in any process of this machine while `source` is alive.
        source: Memory that the processes share; None if there is nothing large in the object.
        shared_bytes: How much that is.
    """

    payload: bytes = field(repr=False)
    source: SharedArrays | None
    shared_bytes: int

    def unpack(self) -> Any:
        """Make an equal object, in this process."""
        return unpack(self.payload)


def pack(value: Any, *, min_bytes: int = 64 * 1024) -> Packed:
    """Pack an object for other processes of this machine.

    Classes and functions of scripts and notebooks go by value. The memory of large tensors and numpy arrays is copied
    once, whatever number of them are views of it, and is mapped copy-on-write where the object is unpacked; arrays of a
    mapped file (`numpy.memmap`) are mapped from it. Tensors come out on the CPU, compiled modules uncompiled, and None
    stands for Trainers, loggers and process groups. Nothing is changed in this process.

    Args:
        value: The object.
        min_bytes: Memory of fewer bytes is in the payload.

    Returns:
        The packed object.

    Raises:
        TypeError: If something in it cannot be pickled.

    Examples:
        >>> packed = pack({"x": torch.zeros(1000, 1000), "n": 3})
        >>> packed.shared_bytes, packed.unpack()["x"].shape
        (4000000, torch.Size([1000, 1000]))
    """
    stream, memory = io.BytesIO(), Memory()
    try:
        _Pickler(stream, memory, min_bytes=min_bytes).dump(value)
    except Exception as error:
        raise TypeError(explain(value, error, _trial_pickler)) from error
    places, small, source, shared_bytes = memory.place(min_bytes)
    payload = pickle.dumps((places, small, source, stream.getbuffer().tobytes()), pickle.HIGHEST_PROTOCOL)
    return Packed(payload, source, shared_bytes)


def unpack(payload: bytes) -> Any:
    """Make the object that was packed.

    Raises:
        FileNotFoundError: If the process that packed it has ended or dropped the :class:`Packed`, or a file that is to
            be mapped is gone or another one.
    """
    places, small, source, stream = pickle.loads(payload)
    mapped = {} if source is None else source.arrays()
    return _Unpickler(io.BytesIO(stream), places, memoryview(small), mapped).load()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,name-defined,unused-ignore]
    """Pickles all but memory, which it only notes."""

    def __init__(self, stream: Any, memory: Memory, *, min_bytes: int, without: frozenset[int] = frozenset()) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self._memory, self._min_bytes, self._without = memory, min_bytes, without
        self._absent = tuple(
            getattr(sys.modules[module], name) for module, name in _ABSENT if hasattr(sys.modules.get(module), name)
        )

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, UntypedStorage):
            return "storage", self._memory.add_storage(obj).number
        if isinstance(obj, Block):
            return "array", obj.number
        if isinstance(obj, File):
            return "file", dataclasses.astuple(obj)
        if isinstance(obj, self._absent) or (self._without and id(obj) in self._without):
            return ("absent",)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is np.ndarray or type(obj) is np.memmap:
            return self._array(obj)
        if isinstance(obj, TypedStorage):
            return _typed_storage, (obj._untyped_storage, obj.dtype)
        if isinstance(obj, OptimizedModule):
            return _same, (obj._orig_mod,)
        if isinstance(obj, types.FunctionType) and (compiled := getattr(obj, "_torchdynamo_orig_callable", None)):
            return _same, (compiled,)
        if isinstance(obj, nn.Module):
            return _module(obj)
        if isinstance(obj, DataLoader) and getattr(obj, "_iterator", None) is not None:
            # its workers stay
            return _with_state(obj, lambda state: {**state, "_iterator": None})
        return super().reducer_override(obj)

    def _array(self, array: NDArray[Any]) -> Any:
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        low, high = bounds_of(root)
        first, last = bounds_of(array)
        if array.dtype.hasobject or not array.nbytes or high - low < self._min_bytes or first < low or last > high:
            return NotImplemented
        file = file_of(root) if isinstance(root, np.memmap) else None
        block: Any = self._memory.add(root, low, high - low) if file is None else file
        offset = address_of(array) - low + (0 if file is None else root.offset)  # type: ignore[attr-defined]
        is_mapped = file is not None and type(array) is np.memmap
        return _view, (block, array.dtype, array.shape, offset, array.strides, array.flags.writeable, is_mapped)


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


def _trial_pickler(without: frozenset[int]) -> _Pickler:
    return _Pickler(_Nowhere(), Memory(), min_bytes=0, without=without)


class _Unpickler(pickle.Unpickler):
    """Finds the memory again."""

    def __init__(
        self, stream: Any, places: list[Place], small: memoryview, mapped: Mapping[str, NDArray[np.uint8]]
    ) -> None:
        super().__init__(stream)
        self._places, self._small, self._mapped = places, small, mapped
        self._found: dict[Any, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        # torch pickles the newer types (uint16, ...) with a storage that its function does not take
        return _rebuild_tensor_v3 if name == "_rebuild_tensor_v3" else super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "absent":
            return None
        if pid not in self._found:
            if pid[0] == "storage":
                # one storage and the arrays on it stay one piece of memory
                tensor = torch.from_numpy(self.persistent_load(("array", pid[1])))
                self._found[pid] = tensor.untyped_storage()
            else:
                self._found[pid] = File(*pid[1]).map() if pid[0] == "file" else self._block(self._places[pid[1]])
        return self._found[pid]

    def _block(self, place: Place) -> NDArray[np.uint8]:
        stop = place.offset + place.nbytes
        if place.name is not None:
            return self._mapped[place.name][place.offset : stop]
        # torch's memory, for its alignment
        array: NDArray[np.uint8] = torch.empty(place.nbytes, dtype=torch.uint8, device="cpu").numpy()
        array[:] = np.frombuffer(self._small[place.offset : stop], np.uint8)
        return array


def _with_state(obj: Any, change: Any) -> Any:
    reduced = obj.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    if not isinstance(reduced, tuple) or len(reduced) < 3 or not isinstance(reduced[2], dict):
        return NotImplemented
    return (*reduced[:2], change(reduced[2]), *reduced[3:])


def _module(module: nn.Module) -> Any:
    own = vars(module)
    if own.get("_compiled_call_impl") is None and own.get("_compiler_ctx") is None:
        return NotImplemented
    names = {"_compiled_call_impl"} | (set(_COMPILED) if own.get("_compiler_ctx") is not None else set())

    def change(state: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in state.items() if name not in names}
        return kept | ({"_compiler_ctx": None} if "_compiler_ctx" in kept else {})

    return _with_state(module, change)


def _same(value: Any) -> Any:
    return value


def _typed_storage(storage: UntypedStorage, dtype: torch.dtype) -> TypedStorage:
    return TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)  # type: ignore[no-untyped-call]


def _rebuild_tensor_v3(storage: UntypedStorage, *arguments: Any) -> Any:
    rebuild: Any = torch._utils._rebuild_tensor_v3
    return rebuild(_typed_storage(storage, torch.uint8), *arguments)


def _view(
    block: NDArray[np.uint8],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    offset: int,
    strides: tuple[int, ...],
    writeable: bool,
    is_mapped: bool,
) -> Any:
    array: Any = np.ndarray(shape, dtype, buffer=block, offset=offset, strides=strides)
    if is_mapped:
        file: Any = block
        array = array.view(np.memmap)
        array._mmap, array.filename, array.offset, array.mode = file._mmap, file.filename, offset, file.mode
    array.flags.writeable = writeable
    return array
