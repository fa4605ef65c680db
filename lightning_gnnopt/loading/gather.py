"""The numba kernels that copy rows: bytes in, bytes out, the GIL released.

Every dtype is copied as bytes, so each kernel is compiled once per type of ids. Callers validate; a kernel trusts its
input. All places are 64-bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.cgutils import raw_memcpy
from numba.extending import intrinsic
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import prefetch

_BYTES_AHEAD = 8192  # of rows to come are asked for: some 20 rows of 100 float32
_ROWS_AHEAD = (2, 128)  # the least and the most
_STREAM_BYTES = 32 << 20  # outputs from this size on are written past the caches, which could not keep them anyway

_LINE = np.uint64(64)
_ZERO, _ONE, _TWO, _FOUR, _EIGHT = (np.uint64(n) for n in (0, 1, 2, 4, 8))
_SIXTEEN, _FIFTEEN = np.uint64(16), np.uint64(15)
_THIRTY_TWO, _FORTY_EIGHT = np.uint64(32), np.uint64(48)
# Of longer rows, the lines are asked for one by one, between the copying: too many at once wait for one another.
_SHORT = np.uint64(1200)


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


def _streaming_store(width_bytes: int) -> Any:
    """Make an intrinsic that copies one word with a store that goes past the caches."""
    word = ir.IntType(32) if width_bytes == 4 else ir.VectorType(ir.IntType(64), width_bytes // 8)

    @intrinsic
    def store(typingctx: Any, source: Any, start: Any, target: Any, place: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            from_ = builder.gep(context.make_array(source)(context, builder, args[0]).data, [args[1]])
            to = builder.gep(context.make_array(target)(context, builder, args[2]).data, [args[3]])
            value = builder.load(builder.bitcast(from_, word.as_pointer()), align=1)
            # The processor has such stores for aligned words only.
            stored = builder.store(value, builder.bitcast(to, word.as_pointer()), align=width_bytes)
            stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
            return context.get_dummy_value()

        return types.none(source, start, target, place), codegen

    return store


_stream_4: Any = _streaming_store(4)
_stream_16: Any = _streaming_store(16)


@intrinsic
def _emit_fence(typingctx: Any) -> Any:
    """Emit a full fence: streaming stores are not ordered by what hands the buffer to another thread."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


_copy: Any = _emit_copy
_fence: Any = _emit_fence


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
            _copy(table, start, out, place, 4)
        elif width == _EIGHT:
            _copy(table, start, out, place, 8)
        elif width == _SIXTEEN:
            _copy(table, start, out, place, 16)
        elif width == _TWO:
            _copy(table, start, out, place, 2)
        else:
            _copy(table, start, out, place, 1)


@njit(nogil=True, cache=True)
def _copy_rows(
    table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], row_bytes: int, ahead: int
) -> None:
    """Copy rows of any width."""
    n, width, far = np.uint64(len(ids)), np.uint64(row_bytes), np.uint64(ahead)
    for i in range(n):
        if i + far < n:
            _ask(table, np.uint64(ids[i + far]) * width, width)
        _copy(table, np.uint64(ids[i]) * width, out, i * width, width)


@njit(nogil=True, cache=True)
def _stream_rows(
    table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], row_bytes: int, ahead: int
) -> None:
    """Copy rows whose width is a multiple of 4 bytes past the caches into `out`, which starts at a multiple of 16.

    A line that is written over as a whole need not be read first, as an ordinary store would have it read.
    """
    n, width, far = np.uint64(len(ids)), np.uint64(row_bytes), np.uint64(ahead)
    if width <= _SHORT:
        for i in range(n):
            if i + far < n:
                _ask(table, np.uint64(ids[i + far]) * width, width)
            start, place = np.uint64(ids[i]) * width, i * width
            end = place + width
            while place < end and place & _FIFTEEN != _ZERO:
                _stream_4(table, start, out, place)
                start, place = start + _FOUR, place + _FOUR
            while place + _SIXTEEN <= end:
                _stream_16(table, start, out, place)
                start, place = start + _SIXTEEN, place + _SIXTEEN
            while place < end:
                _stream_4(table, start, out, place)
                start, place = start + _FOUR, place + _FOUR
    else:
        for i in range(n):
            asked = np.uint64(ids[i + far if i + far < n else i]) * width
            start, place = np.uint64(ids[i]) * width, i * width
            end = place + width
            while place & _FIFTEEN != _ZERO:
                _stream_4(table, start, out, place)
                start, place = start + _FOUR, place + _FOUR
            while place + _LINE <= end:
                prefetch(table, asked)
                _stream_16(table, start, out, place)
                _stream_16(table, start + _SIXTEEN, out, place + _SIXTEEN)
                _stream_16(table, start + _THIRTY_TWO, out, place + _THIRTY_TWO)
                _stream_16(table, start + _FORTY_EIGHT, out, place + _FORTY_EIGHT)
                asked, start, place = asked + _LINE, start + _LINE, place + _LINE
            _ask(table, asked, end - place + _ONE)
            while place < end:
                _stream_4(table, start, out, place)
                start, place = start + _FOUR, place + _FOUR
    _fence()


@njit(nogil=True, cache=True)
def _probe(table: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    _stream_4(table, 0, out, 0)
    _stream_16(table, 16, out, 16)
    _fence()


def _works() -> bool:
    """Whether this numba's LLVM takes the streaming stores; the kernels are right without them, only slower."""
    table, out = np.arange(32, dtype=np.uint8), np.zeros(48, np.uint8)
    out = out[-out.ctypes.data % 16 :][:32]
    try:
        _probe(table, out)
    except Exception:
        return False
    return bool((out[:4] == table[:4]).all() and (out[16:] == table[16:]).all())


HAS_STREAMING: bool = _works()
"""Whether large outputs are written past the caches."""


def gather_rows(table: NDArray[np.uint8], ids: NDArray[np.integer], out: NDArray[np.uint8], *, row_bytes: int) -> None:
    """Copy rows of a table.

    Args:
        table: The rows, one behind the other, shape ``(N * row_bytes,)``.
        ids: Which rows, int32 or int64 of shape ``(n,)``, all in ``0 .. N - 1``.
        out: Output, shape ``(n * row_bytes,)``.
        row_bytes: Bytes of one row.
    """
    if not row_bytes or not len(ids):
        return
    ahead = min(max(_BYTES_AHEAD // row_bytes, _ROWS_AHEAD[0]), _ROWS_AHEAD[1])
    if row_bytes in (1, 2, 4, 8, 16):
        kernel: Any = _copy_words
    elif HAS_STREAMING and len(out) >= _STREAM_BYTES and row_bytes % 4 == 0 and out.ctypes.data % 16 == 0:
        kernel = _stream_rows
    else:
        kernel = _copy_rows
    kernel(table, ids, out, row_bytes, ahead)


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
                _copy(values, p * item, out, to, 4)
            elif item == _TWO:
                _copy(values, p * item, out, to, 2)
            elif item == _ONE:
                _copy(values, p * item, out, to, 1)
            elif item == _EIGHT:
                _copy(values, p * item, out, to, 8)
            else:
                _copy(values, p * item, out, to, item)


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
