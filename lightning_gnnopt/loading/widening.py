"""The numba kernels that copy rows stored in fewer bits and make float32 of them on the way, the GIL released.

Callers validate; a kernel trusts its input. Results are those of torch, bit by bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.prefetch import prefetch

_AHEAD = np.uint64(16)
_ZERO, _ONE, _SIXTEEN = np.uint64(0), np.uint64(1), np.uint64(16)


@njit(nogil=True, inline="always")
def _ask(table: Any, start: Any, width: Any, step: Any) -> None:
    k = _ZERO
    while k < width:
        prefetch(table, start + k)
        k += step
    prefetch(table, start + width - _ONE)


@njit(nogil=True, cache=True)
def _from_bfloat16(
    table: NDArray[np.uint16], ids: NDArray[np.integer], out: NDArray[np.uint32], row_width: int
) -> None:
    """A bfloat16 is the upper half of a float32."""
    n, width = np.uint64(len(ids)), np.uint64(row_width)
    for i in range(n):
        if i + _AHEAD < n:
            _ask(table, np.uint64(ids[i + _AHEAD]) * width, width, np.uint64(32))
        start, place = np.uint64(ids[i]) * width, i * width
        for k in range(width):
            out[place + k] = np.uint32(table[start + k]) << np.uint32(16)


@njit(nogil=True, cache=True)
def _from_int8(
    table: NDArray[np.int8],
    ids: NDArray[np.integer],
    out: NDArray[np.float32],
    row_width: int,
    scale: NDArray[np.float32],
) -> None:
    n, width = np.uint64(len(ids)), np.uint64(row_width)
    for i in range(n):
        if i + _AHEAD < n:
            _ask(table, np.uint64(ids[i + _AHEAD]) * width, width, np.uint64(64))
        start, place = np.uint64(ids[i]) * width, i * width
        for k in range(width):
            out[place + k] = np.float32(table[start + k]) * scale[k]


@njit(nogil=True, cache=True)
def _from_float16(table: NDArray[np.uint16], ids: NDArray[np.integer], out: NDArray[np.uint32], row_width: int) -> None:
    """Move the bits to a float32's places, and correct the exponent with a product (Giesen, "Half to float", 2012)."""
    n, width = np.uint64(len(ids)), np.uint64(row_width)
    rebias = np.float32(2.0**112)
    for i in range(n):
        if i + _AHEAD < n:
            _ask(table, np.uint64(ids[i + _AHEAD]) * width, width, np.uint64(32))
        start, place = np.uint64(ids[i]) * width, i * width
        for k in range(width):
            half = np.uint32(table[start + k])  # numba makes 64 bits of every result
            magnitude = np.uint32((half & np.uint32(0x7FFF)) << np.uint32(13))
            bits = np.float32(magnitude.view(np.float32) * rebias).view(np.uint32)
            if magnitude >= np.uint32(0x7C00 << 13):  # infinity and NaN
                bits = np.uint32(magnitude | np.uint32(0x7F800000))
            out[place + k] = bits | ((half & np.uint32(0x8000)) << np.uint32(16))


def widen_rows(
    table: NDArray[np.uint8],
    ids: NDArray[np.integer],
    out: NDArray[np.uint8],
    *,
    stored_dtype: torch.dtype,
    row_width: int,
    scale: NDArray[np.float32] | None = None,
) -> None:
    """Copy rows of a table as float32.

    Args:
        table: The rows' bytes, one row behind the other.
        ids: Which rows, int32 or int64 of shape ``(n,)``.
        out: Output, the bytes of ``n * row_width`` float32.
        stored_dtype: What the table holds: bfloat16, float16, or int8, which takes a `scale`.
        row_width: Numbers in a row.
        scale: For int8, what each column is multiplied by, shape ``(row_width,)``.
    """
    if not row_width or not len(ids):
        return
    if scale is not None:
        _from_int8(table.view(np.int8), ids, out.view(np.float32), row_width, scale)
    elif stored_dtype == torch.bfloat16:
        _from_bfloat16(table.view(np.uint16), ids, out.view(np.uint32), row_width)
    else:
        _from_float16(table.view(np.uint16), ids, out.view(np.uint32), row_width)
