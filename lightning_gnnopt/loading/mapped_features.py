"""Rows of a file, which may be larger than the memory."""

from __future__ import annotations

import mmap
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore, bytes_of, check_out, kernel_ids
from lightning_gnnopt.loading.gather import gather_rows

# Python names it from 3.13 on. A private mapping larger than the memory is refused without it.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_INLINE_ROWS = 128  # fewer rows than these are copied before a thread would have woken up
_HINT = "HINT: write it anew with `np.save(path, np.ascontiguousarray(array))`."


def read_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Read what an .npy file says of itself.

    Args:
        stream: The file, at its start.

    Returns:
        Shape, type, and where the values begin in the file, in bytes.

    Raises:
        ValueError: If it is no .npy file of format 1.0, 2.0 or 3.0, or its values stand column by column.
    """
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"has format {version}, which is unknown")
    # Format 3.0 is 2.0 with names of columns in UTF-8, and an array with named columns is refused in any case.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if is_fortran and len(shape) > 1:
        raise ValueError("holds an array column by column (Fortran order), of which a row cannot be read as one")
    return tuple(shape), np.dtype(dtype), stream.tell()


class MappedFeatures(FeatureStore):
    """Rows of an ``.npy`` file that is mapped into memory.

    The operating system reads what is asked for, keeps it as long as it has memory to spare, and shares it between
    processes. Rows that are not in memory are waited for; so several threads wait at once. The file must not be made
    shorter while it is mapped.

    Args:
        path: The file, as `numpy.save` writes it: format 1.0, 2.0 or 3.0, C order.
        io_threads: How many threads take the rows of a large batch.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, is truncated or empty, or has a type that torch has not.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "x.npy")
        >>> np.save(path, np.arange(6.0).reshape(3, 2))
        >>> MappedFeatures(path).rows(torch.tensor([2, 0]))
        tensor([[4., 5.],
                [0., 1.]], dtype=torch.float64)
    """

    def __init__(self, path: str | os.PathLike[str], *, io_threads: int = 4) -> None:
        if io_threads < 1:
            raise ValueError(f"`io_threads` must be at least 1, but got {io_threads}. HINT: 1 takes no extra thread.")
        self.path = Path(path).resolve()
        self.io_threads = io_threads
        shape, dtype, self._rows = _map(self.path)
        super().__init__(shape, dtype=dtype)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None
        self._lock = threading.Lock()
        self._is_open = True

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the store holds: none, since the system can take back what it has read."""
        return 0

    def gather(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Copy rows as they are stored; see :meth:`FeatureStore.gather`.

        Raises:
            ValueError: If `out` does not fit, or the store is closed.
        """
        check_out(out, (len(ids), *self.shape[1:]), self.stored_dtype)
        rows, width = self._rows, self.row_bytes
        if not self._is_open:
            raise ValueError(f"The store of '{self.path}' is closed. HINT: open another one.")
        places, target = kernel_ids(ids), bytes_of(out)
        # Cuts at multiples of 16 rows leave each part as well aligned as the whole.
        step = -(-len(places) // (16 * self.io_threads)) * 16
        if self.io_threads == 1 or len(places) < _INLINE_ROWS:
            gather_rows(rows, places, target, row_bytes=width)
            return
        pool = self._threads()
        parts = [
            pool.submit(
                gather_rows,
                rows,
                places[first : first + step],
                target[first * width : (first + step) * width],
                row_bytes=width,
            )
            for first in range(step, len(places), step)
        ]
        gather_rows(rows, places[:step], target[: step * width], row_bytes=width)
        for part in parts:
            part.result()

    def share(self) -> MappedFeatures:
        """Give the store itself: processes that map a file share its memory."""
        return self

    def close(self) -> None:
        """Stop the threads and let go of the file; the store cannot be used after that."""
        with self._lock:
            self._is_open = False
            pool, self._pool = self._pool, None
        if pool is not None and pool[0] == os.getpid():
            pool[1].shutdown()
        self._rows = np.empty(0, np.uint8)

    def _threads(self) -> ThreadPoolExecutor:
        """Start the threads on first use; they end with the store. A forked process has none of its parent's."""
        with self._lock:
            if not self._is_open:
                raise ValueError(f"The store of '{self.path}' is closed. HINT: open another one.")
            if self._pool is None or self._pool[0] != os.getpid():
                self._pool = os.getpid(), ThreadPoolExecutor(self.io_threads - 1, f"rows of {self.path.name}")
            return self._pool[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "io_threads": self.io_threads, "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        MappedFeatures.__init__(self, state["path"], io_threads=state["io_threads"])
        if (self.shape, self.dtype) != (state["shape"], state["dtype"]):
            raise ValueError(
                f"'{self.path}' must hold {state['dtype']} of shape {tuple(state['shape'])} as it did, but holds"
                f" {self.dtype} of shape {tuple(self.shape)} by now. HINT: open it anew."
            )


def _map(path: Path) -> tuple[tuple[int, ...], torch.dtype, NDArray[np.uint8]]:
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`path` must be an .npy file, but there is none at '{path}'. HINT: `np.save(path, array)` writes one."
        ) from error
    except IsADirectoryError as error:
        raise ValueError(f"`path` must be an .npy file, but '{path}' is a folder. {_HINT}") from error
    with stream:
        size = os.fstat(stream.fileno()).st_size
        if not size:
            _refuse(path, "is empty")
        try:
            shape, dtype, offset = read_header(stream)
        except ValueError as error:
            _refuse(path, f"is not a .npy file whose rows can be read ({error})")
        if not shape or min(shape) < 1:
            _refuse(path, f"holds an array of shape {shape}, which has no rows")
        if dtype.kind not in "biufc" or not dtype.isnative:
            _refuse(path, f"holds {dtype} instead of numbers in this machine's byte order")
        try:
            torch_dtype = torch.from_numpy(np.empty(0, dtype)).dtype
        except TypeError:
            _refuse(path, f"holds {dtype}, which torch has not")
        length = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if size < offset + length:
            _refuse(path, f"is truncated: it has {size:,} bytes instead of {offset + length:,}")
        # Copy-on-write, though nobody writes: to numba a read-only array is a type of its own.
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        memory = mmap.mmap(stream.fileno(), offset + length, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=protection)
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)  # a row's neighbours are not needed: do not read ahead
    return shape, torch_dtype, np.frombuffer(memory, np.uint8, length, offset)


def _refuse(path: Path, found: str) -> NoReturn:
    raise ValueError(f"'{path}' {found}. {_HINT}")
