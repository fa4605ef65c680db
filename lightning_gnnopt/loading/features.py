"""Where the rows of an attribute of nodes or edges live, and how a batch gets its own."""

from __future__ import annotations

import math
import mmap
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.copies import Copy

# No more elements than these and torch does not start a team of threads, which workers would fight over the cores with.
_CHUNK_ELEMENTS = 32_768

Source = Tensor | np.ndarray[Any, Any] | str | os.PathLike[str]


class FeatureStore(ABC):
    """Rows of an attribute, copied straight into the memory of a batch.

    A store can be used by many threads at once, and be pickled.

    Args:
        shape: Shape ``(N, ...)`` of the whole attribute.
        dtype: Type of a batch's rows.
        stored_dtype: Type in which rows are stored and travel to a device; by default `dtype`.
        scale: What stored int8 rows are multiplied by, float32, one for each column: the shape of a row.

    Attributes:
        shape: As given, a `torch.Size`.
        dtype: As given.
        stored_dtype: As given.
        scale: As given.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        dtype: torch.dtype,
        stored_dtype: torch.dtype | None = None,
        scale: Tensor | None = None,
    ) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.stored_dtype = dtype if stored_dtype is None else stored_dtype
        self.scale = scale
        self._scales: dict[torch.device, Tensor] = {}

    @property
    def num_rows(self) -> int:
        """Number of rows ``N``."""
        return self.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row as it is stored; of a sparse one, when it has become dense."""
        return math.prod(self.shape[1:]) * self.stored_dtype.itemsize

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory that the store holds."""

    @abstractmethod
    def gather(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Copy rows as they are stored. Releases the GIL, and takes no memory beside `out`.

        Args:
            ids: Which rows, int32 or int64 of shape ``(n,)``, in any order, with repeats, all in ``0 .. N - 1``: they
                are not checked.
            out: Output in host memory, contiguous, of `stored_dtype` and shape ``(n, ...)``.

        Raises:
            ValueError: If `out` is not such a tensor.
        """

    def copied(self, ids: NDArray[np.integer]) -> Copy | None:
        """Say what :meth:`gather` copies, where that is rows of one table in memory; else None.

        A batch then copies them together with all else, and does not call :meth:`gather`.

        Args:
            ids: As for :meth:`gather`.
        """
        return None

    def restore(self, stored: Tensor, out: Tensor) -> None:
        """Turn stored rows into rows of `dtype`, with operators on the device that both tensors are on.

        Args:
            stored: Rows of `stored_dtype`, shape ``(n, ...)``.
            out: Output of `dtype` and the same shape.
        """
        if self.scale is None:
            out.copy_(stored)
            return
        scale = self._scales.get(out.device)
        if scale is None:  # two threads may both make one; either is right
            scale = self._scales.setdefault(out.device, self.scale.to(out.device))
        # On the CPU, operators on two types take a copy of what they cast.
        step = len(out) if out.device.type != "cpu" else self._chunk_rows
        for first in range(0, len(out), max(1, step)):
            torch.mul(stored[first : first + step], scale, out=out[first : first + step])

    def write(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Copy rows as a batch has them.

        Args:
            ids: As for :meth:`gather`.
            out: Output in host memory, contiguous, of `dtype` and shape ``(n, ...)``.

        Raises:
            ValueError: If `out` is not such a tensor.
        """
        if self.stored_dtype == self.dtype:
            self.gather(ids, out)
            return
        check_out(out, (len(ids), *self.shape[1:]), self.dtype)
        shape = (min(len(ids), self._chunk_rows), *self.shape[1:])
        scratch = torch.empty(shape, dtype=self.stored_dtype, device="cpu")
        for first in range(0, len(ids), self._chunk_rows):
            chunk = ids[first : first + self._chunk_rows]
            stored = scratch[: len(chunk)]
            self.gather(chunk, stored)
            self.restore(stored, out[first : first + len(chunk)])

    def rows(self, ids: Tensor | NDArray[np.integer]) -> Tensor:
        """Copy rows into a new tensor.

        Args:
            ids: Which rows, integers of shape ``(n,)``.

        Returns:
            Dense tensor of `dtype` and shape ``(n, ...)``, contiguous.

        Raises:
            IndexError: If there is no such row.
            ValueError: If `ids` are not integers in one dimension.
        """
        places = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
        if places.ndim != 1 or places.dtype.kind not in "iu":
            raise ValueError(
                f"`ids` must be integers of shape (n,), but got {places.dtype} of shape {places.shape}."
                " HINT: turn a mask into ids with `mask.nonzero().flatten()`."
            )
        if len(places) and not (places.min() >= 0 and places.max() < self.num_rows):
            wrong = places[(places < 0) | (places >= self.num_rows)][0]
            raise IndexError(
                f"`ids` must be in 0 .. {self.num_rows - 1}, but got {wrong}."
                " HINT: ids are global ones; they do not count from the end."
            )
        out = torch.empty((len(places), *self.shape[1:]), dtype=self.dtype, device="cpu")
        self.write(places, out)
        return out

    @abstractmethod
    def share(self) -> FeatureStore:
        """Give a store of the same rows that other processes can open without a copy.

        It is pickled in less than 2 kB; what a process reads of it is the same memory in all of them.
        """

    @property
    def _chunk_rows(self) -> int:
        return max(1, _CHUNK_ELEMENTS // max(1, math.prod(self.shape[1:])))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_scales": {}}

    def __repr__(self) -> str:
        stored = "" if self.stored_dtype == self.dtype else f" stored as {self.stored_dtype}"
        return f"{type(self).__name__}({tuple(self.shape)}, {self.dtype}{stored})"


def feature_store(source: Source | FeatureStore, *, stored_as: str | torch.dtype | None = None) -> FeatureStore:
    """Open the rows of an attribute.

    Args:
        source: Tensor of shape ``(N, ...)``, which is not copied if it is contiguous and in host memory; sparse CSR,
            CSC or COO tensor of shape ``(N, F)``, which stays sparse in memory; numpy array; or path of an ``.npy``
            file, which is mapped into memory and may be larger than it. A store is returned as it is.
        stored_as: Store floating-point rows in fewer bits: ``"float32"``, ``"float16"``, ``"bfloat16"`` or ``"int8"``.
            Batches have the source's type nevertheless. ``"int8"`` has one scale for each column, a 127th of the
            largest magnitude in it; what comes back is at most half a scale away.

    Returns:
        The store.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If rows cannot be taken from `source`, or not be stored so.

    Examples:
        >>> store = feature_store(torch.eye(3).to_sparse_csr())
        >>> store.rows(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    # They are subclasses of what this file defines.
    from lightning_gnnopt.loading.dense_features import DenseFeatures
    from lightning_gnnopt.loading.mapped_features import MappedFeatures
    from lightning_gnnopt.loading.sparse_features import SparseFeatures

    if isinstance(source, np.memmap) and stored_as is None and (path := _whole_file(source)) is not None:
        source = path
    if isinstance(source, FeatureStore | str | os.PathLike):
        if stored_as is not None:
            kind = "a store" if isinstance(source, FeatureStore) else f"the file '{os.fspath(source)}'"
            raise ValueError(
                f"`stored_as` must be None for {kind}, whose rows are stored already, but got {stored_as!r}."
                " HINT: pass the tensor instead, e.g. `torch.from_numpy(np.load(path, mmap_mode='c'))` of a file; or"
                " write a file of that type."
            )
        return source if isinstance(source, FeatureStore) else MappedFeatures(source)
    if isinstance(source, np.ndarray):
        source = _tensor(source)
    if not isinstance(source, Tensor):
        raise ValueError(
            f"`source` must be a tensor, a numpy array, the path of an .npy file or a store, but got"
            f" {type(source).__name__}. HINT: turn it into a tensor with `torch.as_tensor`."
        )
    return (DenseFeatures if source.layout == torch.strided else SparseFeatures)(source, stored_as=stored_as)


def writable(array: NDArray[Any]) -> NDArray[Any]:
    """View an array as a contiguous one that may be written to: to numba another one is a type of its own."""
    array = np.ascontiguousarray(array)
    return array if array.flags.writeable else np.asarray(_Unlocked(array))


def kernel_ids(ids: NDArray[np.integer]) -> NDArray[np.integer]:
    """Give ids as the kernels take them: contiguous, int32 or int64."""
    return writable(ids if ids.dtype in (np.int32, np.int64) else ids.astype(np.int64))


def check_out(out: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Check that rows can be written to a tensor.

    Raises:
        ValueError: If it has another shape or type, is not contiguous, or is on a device.
    """
    if out.dtype != dtype or out.shape != shape or out.device.type != "cpu" or not out.is_contiguous():
        layout = "contiguous" if out.is_contiguous() else "non-contiguous"
        raise ValueError(
            f"`out` must be a contiguous {dtype} of shape {tuple(shape)} in host memory, but got a {layout} {out.dtype}"
            f" of shape {tuple(out.shape)} on {out.device}. HINT: `torch.empty({tuple(shape)}, dtype={dtype})` is one."
        )


def bytes_of(values: Tensor) -> NDArray[np.uint8]:
    """View a contiguous CPU tensor as its bytes, in one dimension."""
    array: NDArray[np.uint8] = values.detach().reshape(-1).view(torch.uint8).numpy()
    return array


class _Unlocked:
    """Hands on an array's memory without its lock; nothing here writes to it."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.__array_interface__ = array.__array_interface__ | {"data": (array.ctypes.data, False)}
        self._owner = array


def _tensor(array: NDArray[Any]) -> Tensor:
    try:
        return torch.from_numpy(writable(array))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`source` must have a type that torch has, but got an array of {array.dtype} ({error})."
            " HINT: convert it, e.g. with `array.astype(np.float32)`."
        ) from error


def _whole_file(array: np.memmap[Any, Any]) -> Path | None:
    """Tell which .npy file an array is all of, unchanged; None if it is anything else."""
    from lightning_gnnopt.loading.mapped_features import read_header

    if array.mode != "r" or not isinstance(array.base, mmap.mmap) or not array.flags.c_contiguous or not array.size:
        return None
    try:
        with Path(str(array.filename)).open("rb") as stream:
            shape, dtype, offset = read_header(stream)
    except (OSError, ValueError):
        return None
    same = (shape, dtype, offset) == (array.shape, array.dtype, array.offset)
    return Path(str(array.filename)) if same else None
