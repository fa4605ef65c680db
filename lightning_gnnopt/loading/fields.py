"""The tensors of a batch, each with the form in which it travels to a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.cached_features import CachedFeatures
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.plan import Field, Packed, Part


def rows_field(store: FeatureStore, ids: NDArray[np.integer]) -> Field:
    """Take rows of a store; they travel as they are stored.

    Args:
        store: The rows of all nodes or edges.
        ids: Which, shape ``(n,)``.
    """
    shape = (len(ids), *store.shape[1:])
    part = Part(store.dtype, shape, lambda out: store.write(ids, out))
    if isinstance(store, CachedFeatures):
        return Field(part, store.packed(ids))
    if store.stored_dtype == store.dtype:
        return Field(part)
    stored = Part(store.stored_dtype, shape, lambda out: store.gather(ids, out))
    return Field(part, Packed((stored,), lambda parts, out: store.restore(parts[0], out)))


def array_field(array: NDArray[Any]) -> Field:
    """Take an array as it is."""
    values = torch.from_numpy(array)
    return Field(Part(values.dtype, tuple(values.shape), _writer(array)))


def ids_field(ids: NDArray[np.integer]) -> Field:
    """Take ids as PyG has them, in int64; they travel as they are, where numbers below 2**31 are int32."""
    part = Part(torch.int64, ids.shape, _writer(ids))
    if ids.dtype.itemsize >= 8:
        return Field(part)
    if ids.dtype != np.int32:
        ids = ids.astype(np.int32)
    return Field(part, Packed((Part(torch.int32, ids.shape, _writer(ids)),), _widen))


def edge_index_field(
    row: NDArray[np.integer], col: NDArray[np.integer], num_targets: int
) -> tuple[Field, NDArray[np.int32] | None]:
    """Take the ends of a batch's edges as an edge index; in its place int32 sources and compressed columns travel.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``. If they do not ascend, they travel too.
        num_targets: No destination is this number or a higher one.

    Returns:
        The field, int64 of shape ``(2, E)``; and where the edges of each destination start, shape
        ``(num_targets + 1,)``, or None if destinations do not ascend.
    """
    row = row.astype(np.int32, copy=False)
    col_int32: NDArray[np.int32] = col.astype(np.int32, copy=False)
    starts = np.empty(num_targets + 1, np.int32)
    colptr = starts if _compress(col_int32, starts) else None

    def write(out: Tensor) -> None:
        ends = out.numpy()
        ends[0], ends[1] = row, col_int32

    part = Part(torch.int64, (2, len(row)), write)
    sources = Part(torch.int32, row.shape, _writer(row))
    if colptr is None:
        return Field(part, Packed((sources, Part(torch.int32, col.shape, _writer(col_int32))), _stack)), None
    columns = Part(torch.int32, colptr.shape, _writer(colptr))
    return Field(part, Packed((sources, columns), _expand)), colptr


def _writer(array: NDArray[Any]) -> Any:
    def write(out: Tensor) -> None:
        out.numpy()[...] = array  # numpy casts on this thread alone, where torch would start a team of its own

    return write


def _widen(parts: Sequence[Tensor], out: Tensor) -> None:
    out.copy_(parts[0])


def _stack(parts: Sequence[Tensor], out: Tensor) -> None:
    out[0].copy_(parts[0])
    out[1].copy_(parts[1])


def _expand(parts: Sequence[Tensor], out: Tensor) -> None:
    """Spell out compressed columns: the column of edge ``e`` is the number of columns that end at or before ``e``."""
    row, colptr = parts
    out[0].copy_(row)
    if len(row):
        edges = torch.arange(len(row), dtype=torch.int32, device=out.device)
        torch.searchsorted(colptr[1:], edges, right=True, out=out[1])


@njit(nogil=True, cache=True)
def _compress(col: NDArray[np.int32], colptr: NDArray[np.int32]) -> bool:
    """Write where the edges of each column start; stop where columns do not ascend, and say so."""
    v = 0
    colptr[0] = 0
    for e in range(len(col)):
        c = col[e]
        if c < v or c >= len(colptr) - 1:
            return False
        while v < c:
            v += 1
            colptr[v] = e
    for rest in range(v + 1, len(colptr)):
        colptr[rest] = len(col)
    return True
