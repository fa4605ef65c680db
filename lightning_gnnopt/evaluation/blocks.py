"""The memory of tensors and arrays: what of it is the same, and where other processes find it."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.storage import UntypedStorage

from lightning_gnnopt.sampling.shared_arrays import SharedArrays, find_shared

_ALIGNMENT = 64  # torch's own for host memory: kernels may round differently where a row begins elsewhere
_CHUNK = 2**24
_OWN_FILE_BYTES = 16 * 2**20  # smaller ones lie in one file together: each file is an open descriptor


@dataclass(frozen=True)
class Place:
    """Where memory lies: in a shared array or, without a name, in the payload."""

    name: str | None
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Block:
    """Stands for memory of this process in the stream."""

    number: int


@dataclass(frozen=True)
class File:
    """Stands for a file's contents in the stream."""

    path: str
    identity: tuple[int, int]
    nbytes: int

    def map(self) -> np.memmap[Any, Any]:
        """Map the file into memory, copy-on-write.

        Raises:
            FileNotFoundError: If it is gone, or another one.
        """
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._gone() from error
        if (status.st_dev, status.st_ino) != self.identity or status.st_size < self.nbytes:
            raise self._gone()
        return np.memmap(self.path, np.uint8, mode="c", shape=(self.nbytes,))

    def _gone(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"'{self.path}', which an array was mapped from, is gone or another file by now."
            " HINT: keep it until training has ended."
        )


class Memory:
    """Memory that a pickled object uses, each piece once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}
        self._pieces: list[tuple[Any, int, int]] = []  # its owner, so that it stays; address, bytes

    def add(self, owner: Any, address: int, nbytes: int, *, where: Any = "cpu") -> Block:
        """Note a piece of memory.

        Args:
            owner: Keeps it.
            address: Where it begins.
            nbytes: How much it is.
            where: Tells devices apart.

        Returns:
            What stands for it; the same for the same memory.
        """
        key = (where, address, nbytes)
        if key not in self._numbers:
            self._numbers[key] = len(self._pieces)
            self._pieces.append((owner, address, nbytes))
        return Block(self._numbers[key])

    def add_storage(self, storage: UntypedStorage) -> Block:
        """Note a tensor's storage, of any device."""
        nbytes, address = storage.nbytes(), storage.data_ptr()
        if not nbytes or not address:
            return self.add(storage, 0, 0, where=storage._cdata)
        return self.add(storage, address, nbytes, where=str(storage.device))

    def place(self, min_bytes: int) -> tuple[list[Place], bytes, SharedArrays | None, int]:
        """Copy the pieces to where other processes find them, unless they find them already."""
        places: list[Place] = []
        arrays: dict[str, NDArray[np.uint8]] = {}
        ends: dict[str | None, int] = {None: 0, "small": 0}
        joined: dict[str | None, list[tuple[int, NDArray[np.uint8]]]] = {None: [], "small": []}
        shared: list[tuple[str, int, int]] = []
        for number, (owner, address, nbytes) in enumerate(self._pieces):
            if isinstance(owner, UntypedStorage) and owner.device.type != "cpu":
                owner = owner.cpu()  # type: ignore[no-untyped-call]
                address = owner.data_ptr()
            name = None if nbytes < min_bytes else "small" if nbytes < _OWN_FILE_BYTES else f"block{number}"
            if name is not None and _is_shared(owner, address, nbytes):
                places.append(Place(f"block{number}", 0, nbytes))
                shared.append((f"block{number}", address, nbytes))
                continue
            raw = raw_bytes(owner, address, nbytes)
            if name in joined:
                places.append(Place(name, ends[name], nbytes))
                joined[name].append((ends[name], raw))
                ends[name] += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
            else:
                places.append(Place(name, 0, nbytes))
                arrays[str(name)] = raw
        together = {name: np.zeros(ends[name], np.uint8) for name in joined}
        for name, pieces in joined.items():
            for start, raw in pieces:
                together[name][start : start + len(raw)] = raw
        if len(together["small"]):
            arrays["small"] = together["small"]
        shared_bytes = sum(place.nbytes for place in places if place.name is not None)
        source = SharedArrays(arrays) if arrays or shared else None
        for name, address, nbytes in shared:
            assert source is not None
            source.adopt(name, address, nbytes)
        return places, together[None].tobytes(), source, shared_bytes


def _is_shared(owner: Any, address: int, nbytes: int) -> bool:
    """Whether memory is shared already, and still has what it had then: what is written to it stays in this process."""
    found = find_shared(address, nbytes)
    if found is None:
        return False
    file, mine = found[0].map().view(np.uint8), raw_bytes(owner, address, nbytes)
    return all(np.array_equal(mine[k : k + _CHUNK], file[k : k + _CHUNK]) for k in range(0, nbytes, _CHUNK))


def raw_bytes(owner: Any, address: int, nbytes: int) -> NDArray[np.uint8]:
    """Memory that an object owns, as an array that keeps the object."""
    if not nbytes:
        return np.empty(0, np.uint8)
    buffer: Any = (ctypes.c_char * nbytes).from_address(address)
    buffer._owner = owner
    array: NDArray[np.uint8] = np.frombuffer(buffer, np.uint8)
    return array


def address_of(array: NDArray[Any]) -> int:
    """The address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def bounds_of(array: NDArray[Any]) -> tuple[int, int]:
    """The addresses of an array's first byte and of the one behind its last."""
    low = high = address_of(array)
    for size, stride in zip(array.shape, array.strides, strict=True):
        reach = (size - 1) * stride
        low, high = low + min(reach, 0), high + max(reach, 0)
    return low, high + array.itemsize


def file_of(root: np.memmap[Any, Any]) -> File | None:
    """The file that has what a mapped array has; None if there is none."""
    path = root.filename
    try:
        status = os.stat(path)  # type: ignore[arg-type]
        end = root.offset + root.nbytes
        if status.st_size < end:
            return None
        if root.mode == "c":
            # what was written to such an array is not in its file
            file = np.memmap(path, np.uint8, mode="r", offset=root.offset, shape=(root.nbytes,))  # type: ignore[call-overload]
            mine = raw_bytes(root, address_of(root), root.nbytes)
            if not all(np.array_equal(mine[k : k + _CHUNK], file[k : k + _CHUNK]) for k in range(0, len(mine), _CHUNK)):
                return None
    except (OSError, TypeError):  # deleted, or a file without a name
        return None
    return File(os.path.abspath(path), (status.st_dev, status.st_ino), end)  # type: ignore[arg-type,type-var]
