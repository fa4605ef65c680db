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
from lightning_gnnopt.loading.copies import Copy
from lightning_gnnopt.loading.features import FeatureStore
from lightning_gnnopt.loading.plan import Field, Packed, Part


def rows_field(store: FeatureStore, ids: NDArray[np.integer]) -> Field:
    """Take rows of a store; they travel as they are stored.

    Args:
        store: The rows of all nodes or edges.
        ids: Which, shape ``(n,)``.
    """
    shape = (len(ids), *store.shape[1:])
    same = store.stored_dtype == store.dtype
    copied = store.copied(ids)
    part = Part(store.dtype, shape, (copied,) if same and copied is not None else lambda out: store.write(ids, out))
    if isinstance(store, CachedFeatures):
        return Field(part, lambda: store.packed(ids))
    if same:
        return Field(part)
    stored = Part(store.stored_dtype, shape, (lambda out: store.gather(ids, out)) if copied is None else (copied,))
    return Field(part, lambda: Packed((stored,), lambda parts, out: store.restore(parts[0], out)))


def array_field(array: NDArray[Any]) -> Field:
    """Take an array as it is."""
    array = np.ascontiguousarray(array)
    return Field(Part(torch.from_numpy(array).dtype, array.shape, (Copy.of_array(array),)))


def ids_field(ids: NDArray[np.integer]) -> Field:
    """Take ids as PyG has them, in int64; they travel as they are, where numbers below 2**31 are int32."""
    ids = np.ascontiguousarray(ids)
    if ids.dtype.itemsize >= 8:
        ids = ids.astype(np.int64, copy=False)
        return Field(Part(torch.int64, ids.shape, (Copy.of_array(ids),)))
    narrow = ids.astype(np.int32, copy=False)
    part = Part(torch.int64, ids.shape, (Copy.widened(narrow),))
    return Field(part, lambda: Packed((Part(torch.int32, ids.shape, (Copy.of_array(narrow),)),), _widen))


class Columns:
    """The columns of a batch's edges in their compressed form, found when it is first asked for.

    Args:
        col: Local destinations, shape ``(E,)``.
        num_targets: No destination is this number or a higher one.
    """

    def __init__(self, col: NDArray[np.int32], num_targets: int) -> None:
        self._col, self._num_targets = col, num_targets
        self._starts: NDArray[np.int32] | None = None
        self._tried = False

    @property
    def starts(self) -> NDArray[np.int32] | None:
        """Where the edges of each destination start, shape ``(num_targets + 1,)``; None if they do not ascend."""
        if not self._tried:
            starts = np.empty(self._num_targets + 1, np.int32)
            self._starts, self._tried = starts if _compress(self._col, starts) else None, True
        return self._starts


def edge_index_field(row: NDArray[np.integer], col: NDArray[np.integer], num_targets: int) -> tuple[Field, Columns]:
    """Take the ends of a batch's edges as an edge index; in its place int32 sources and compressed columns travel.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``. If they do not ascend, they travel too.
        num_targets: No destination is this number or a higher one.

    Returns:
        The field, int64 of shape ``(2, E)``; and the compressed columns.
    """
    sources = np.ascontiguousarray(row, np.int32)
    destinations = np.ascontiguousarray(col, np.int32)
    columns = Columns(destinations, num_targets)

    def pack() -> Packed:
        starts = columns.starts
        first, second = sources, destinations if starts is None else starts
        parts = tuple(Part(torch.int32, array.shape, (Copy.of_array(array),)) for array in (first, second))
        return Packed(parts, _stack if starts is None else _expand)

    return Field(Part(torch.int64, (2, len(row)), (Copy.widened(sources), Copy.widened(destinations))), pack), columns


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
