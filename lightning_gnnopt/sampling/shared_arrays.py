"""Arrays in memory that processes share: pickling them copies nothing."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Python names it from 3.13 on. A private mapping of a graph larger than the memory is refused without it.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def map_file(file: int, dtype: np.dtype[Any], length: int, offset: int = 0) -> NDArray[Any]:
    """Map a one-dimensional array of an open file into memory, copy-on-write.

    The file is never changed: what is written to the array stays in this process. To numba it is an array like any
    other; a read-only one would be a type of its own, and every kernel would be compiled once more for it.

    Args:
        file: Descriptor; the mapping outlives it.
        dtype: Type of the elements.
        length: Number of elements.
        offset: Where they begin in the file, in bytes.

    Returns:
        The array, of shape ``(length,)``.
    """
    return (
        np.empty(0, dtype)
        if length == 0
        else np.frombuffer(_map(file, offset + length * dtype.itemsize), dtype, length, offset)
    )


class _Mapping(mmap.mmap):
    """Mapped memory that knows whose it is."""

    file: SharedFile
    owner: SharedArrays


def _map(file: int, nbytes: int) -> _Mapping:
    flags, access = mmap.MAP_PRIVATE | _NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
    return _Mapping(file, nbytes, flags=flags, prot=access)


# Mapped memory of this process's own `SharedArrays`, by address.
_mappings: weakref.WeakValueDictionary[int, _Mapping] = weakref.WeakValueDictionary()


def find_shared(address: int, nbytes: int) -> tuple[SharedFile, SharedArrays] | None:
    """Find the shared file that memory of this process is a map of.

    What hands memory to another process asks this first: the memory may be shared already. Whether this process has
    written to its map is not known; what is shared here is not meant to be written to.

    Args:
        address: Where the memory begins.
        nbytes: Its length in bytes.

    Returns:
        The file, and what keeps it open; None if it is other memory, or was shared by another process.
    """
    mapping = _mappings.get(address)
    return (mapping.file, mapping.owner) if mapping is not None and len(mapping) == nbytes else None


@dataclass(frozen=True)
class SharedFile:
    """Where an array lies, in words that another process understands.

    Attributes:
        path: Opens the file, from any process of this user on this machine, while its owner lives.
        identity: Device and inode: a path that stands for another file by now is noticed.
        dtype: Type of the elements.
        length: Number of elements.
    """

    path: str
    identity: tuple[int, int]
    dtype: str
    length: int

    def map(self, *, owner: SharedArrays | None = None) -> NDArray[Any]:
        """Map the array into memory.

        Args:
            owner: Who keeps the file open, if it is of this process: as long as the array is mapped from now on.

        Raises:
            FileNotFoundError: If the file is gone.
        """
        dtype = np.dtype(self.dtype)
        try:
            file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise self._gone() from error
        try:
            status = os.fstat(file)
            if (status.st_dev, status.st_ino) != self.identity or status.st_size != self.length * dtype.itemsize:
                raise self._gone()
            if owner is None or not self.length:
                return map_file(file, dtype, self.length)
            mapping = _map(file, status.st_size)
            mapping.file, mapping.owner = self, owner
            array: NDArray[Any] = np.frombuffer(mapping, dtype, self.length)
            _mappings[array.ctypes.data] = mapping
            return array
        finally:
            os.close(file)

    def _gone(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"The shared array of {self.length:,} {self.dtype} at '{self.path}' is gone: the process that shared it has"
            " ended or dropped it. HINT: keep the shared topology until the processes that take it have started, or"
            " `save` it to a folder and `load` it in each."
        )


class SharedArrays:
    """Copies of arrays that any process can map which gets this object pickled.

    On Linux they are anonymous files in memory (``memfd_create``), which are not bounded by the size of ``/dev/shm``
    and which the kernel frees with the last process that has them mapped, however the processes end. They are found
    through the owner's file descriptors and sealed, so that nobody can change them. Elsewhere they are files in a
    temporary folder, which goes with the owner's object or at its exit; only a killed owner leaves it behind.

    Args:
        arrays: One-dimensional arrays by name.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self.files: dict[str, SharedFile] = {}
        self._pid = os.getpid()
        self._others: list[SharedArrays] = []  # keep open what was adopted
        if hasattr(os, "memfd_create") and os.access(f"/proc/{os.getpid()}/fd", os.R_OK | os.X_OK):
            for name, array in arrays.items():
                self.files[name] = self._in_memory(name, array)
        else:
            folder = Path(tempfile.mkdtemp(prefix="gnnopt-"))
            weakref.finalize(self, _remove, folder, os.getpid())
            for name, array in arrays.items():
                self.files[name] = _in_folder(folder / name, array)

    def adopt(self, name: str, address: int, nbytes: int) -> bool:
        """Add, as bytes, memory of this process that is shared already; say whether it is."""
        found = find_shared(address, nbytes)
        if found is None:
            return False
        file, owner = found
        self.files[name] = replace(file, dtype="|u1", length=nbytes)
        self._others.append(owner)
        return True

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Map all arrays into memory, by name.

        Raises:
            FileNotFoundError: If the process that shared them has ended or dropped them.
        """
        owner = self if self._pid == os.getpid() else None
        return {name: file.map(owner=owner) for name, file in self.files.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_pid": self._pid, "_others": []}

    def _in_memory(self, name: str, array: NDArray[Any]) -> SharedFile:
        import fcntl  # not everywhere; nor is `memfd_create`

        file = os.memfd_create(f"gnnopt-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        weakref.finalize(self, os.close, file)
        _write(file, array)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        return _shared_file(f"/proc/{os.getpid()}/fd/{file}", file, array)


def _in_folder(path: Path, array: NDArray[Any]) -> SharedFile:
    with path.open("wb") as stream:
        _write(stream.fileno(), array)
        return _shared_file(str(path), stream.fileno(), array)


def _write(file: int, array: NDArray[Any]) -> None:
    with open(file, "wb", closefd=False) as stream:
        stream.write(np.ascontiguousarray(array).data)


def _shared_file(path: str, file: int, array: NDArray[Any]) -> SharedFile:
    status = os.fstat(file)
    return SharedFile(path, (status.st_dev, status.st_ino), array.dtype.str, len(array))


def _remove(folder: Path, owner: int) -> None:
    # A forked process inherits the finalizer, but not the folder.
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)
