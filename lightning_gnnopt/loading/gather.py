"""The numba kernels that copy rows: bytes in, bytes out, the GIL released.

Every dtype is copied as bytes, so each kernel is compiled once per type of ids. Callers validate; a kernel trusts its
input. All places are 64-bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.core.cgutils import raw_memcpy
from numba.extending import intrinsic
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import prefetch

_BYTES_AHEAD = 8192  # of rows to come are asked for: some 20 rows of 100 float32
_LEAST_AHEAD, _MOST_AHEAD = 2, 128  # rows

_LINE = np.uint64(64)
_ZERO, _ONE, _TWO, _FOUR, _EIGHT = (np.uint64(n) for n in (0, 1, 2, 4, 8))
_SIXTEEN = np.uint64(16)

_memcpy: Any = raw_memcpy  # without types


@intrinsic
def _emit_copy(typingctx: Any, source: Any, start: Any, target: Any, place: Any, length: Any) -> Any:
    """Emit ``memcpy(&target[place], &source[start], length)``; a constant length becomes a single move."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        from_ = builder.gep(context.make_array(source)(context, builder, args[0]).data, [args[1]])
        to = builder.gep(context.make_array(target)(context, builder, args[2]).data, [args[3]])
        _memcpy(builder, to, from_, args[4], 1)
        return context.get_dummy_value()

    return types.none(source, start, target, place, length), codegen


copy_bytes: Any = _emit_copy


@njit(nogil=True, inline="always")
def _ask(table: Any, start: Any, length: Any) -> None:
    """Prefetch every cache line of a row."""
    k = _ZERO
    while k < length:
        prefetch(table, start + k)
        k += _LINE
    prefetch(table, start + length - _ONE)


@njit(nogil=True, cache=True)
def _copy_words(
    table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], row_bytes: int, ahead: int
) -> None:
    """Copy rows of 1, 2, 4, 8 or 16 bytes."""
    n, width, far = np.uint64(len(ids)), np.uint64(row_bytes), np.uint64(ahead)
    for i in range(n):
        if i + far < n:
            prefetch(table, np.uint64(ids[i + far]) * width)
        start, place = np.uint64(ids[i]) * width, i * width
        if width == _FOUR:
            copy_bytes(table, start, out, place, 4)
        elif width == _EIGHT:
            copy_bytes(table, start, out, place, 8)
        elif width == _SIXTEEN:
            copy_bytes(table, start, out, place, 16)
        elif width == _TWO:
            copy_bytes(table, start, out, place, 2)
        else:
            copy_bytes(table, start, out, place, 1)


@njit(nogil=True, cache=True)
def _copy_rows(
    table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], row_bytes: int, ahead: int
) -> None:
    """Copy rows of any width."""
    n, width, far = np.uint64(len(ids)), np.uint64(row_bytes), np.uint64(ahead)
    for i in range(n):
        if i + far < n:
            _ask(table, np.uint64(ids[i + far]) * width, width)
        copy_bytes(table, np.uint64(ids[i]) * width, out, i * width, width)


@njit(nogil=True, cache=True)
def copy_rows(table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], row_bytes: int) -> None:
    """Copy rows of a table; see :func:`gather_rows`."""
    ahead = min(max(_BYTES_AHEAD // row_bytes, _LEAST_AHEAD), _MOST_AHEAD)
    if row_bytes <= 16 and row_bytes & (row_bytes - 1) == 0:
        _copy_words(table, ids, out, row_bytes, ahead)
    else:
        _copy_rows(table, ids, out, row_bytes, ahead)


def gather_rows(table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], *, row_bytes: int) -> None:
    """Copy rows of a table.

    Args:
        table: The rows, one behind the other, shape ``(N * row_bytes,)``.
        ids: Which rows, int32 or int64 of shape ``(n,)``, all in ``0 .. N - 1``.
        out: Output, shape ``(n * row_bytes,)``.
        row_bytes: Bytes of one row.
    """
    if row_bytes and len(ids):
        copy_rows(table, ids, out, row_bytes)


@njit(nogil=True, cache=True)
def _scatter_rows(
    indptr: NDArray[np.integer],
    columns: NDArray[np.integer],
    values: NDArray[np.uint8],
    ids: NDArray[np.integer],
    out: NDArray[np.uint8],
    item_bytes: int,
    row_bytes: int,
) -> None:
    n, item, width = np.uint64(len(ids)), np.uint64(item_bytes), np.uint64(row_bytes)
    for i in range(n):
        # Two steps of waiting: where the row starts must be known before it can be asked for.
        if i + _SIXTEEN < n:
            prefetch(indptr, np.uint64(ids[i + _SIXTEEN]))
        if i + _EIGHT < n:
            coming = np.uint64(indptr[np.uint64(ids[i + _EIGHT])])
            if coming < np.uint64(len(columns)):
                prefetch(columns, coming)
                prefetch(values, coming * item)
        row, place = np.uint64(ids[i]), i * width
        for k in range(place, place + width):
            out[k] = 0
        for p in range(np.uint64(indptr[row]), np.uint64(indptr[row + _ONE])):
            to = place + np.uint64(columns[p]) * item
            if item == _FOUR:
                copy_bytes(values, p * item, out, to, 4)
            elif item == _TWO:
                copy_bytes(values, p * item, out, to, 2)
            elif item == _ONE:
                copy_bytes(values, p * item, out, to, 1)
            elif item == _EIGHT:
                copy_bytes(values, p * item, out, to, 8)
            else:
                copy_bytes(values, p * item, out, to, item)


def scatter_rows(
    indptr: NDArray[np.integer],
    columns: NDArray[np.integer],
    values: NDArray[np.uint8],
    ids: NDArray[np.integer],
    out: NDArray[np.uint8],
    *,
    item_bytes: int,
) -> None:
    """Spell out rows of a sparse matrix.

    Args:
        indptr: Where rows start, shape ``(N + 1,)``.
        columns: The column of each value, shape ``(E,)``.
        values: The values' bytes, shape ``(E * item_bytes,)``.
        ids: Which rows, int32 or int64 of shape ``(n,)``, all in ``0 .. N - 1``.
        out: Output, the bytes of `n` rows.
        item_bytes: Bytes of one value.
    """
    if len(ids) and len(out):
        _scatter_rows(indptr, columns, values, ids, out, item_bytes, len(out) // len(ids))
