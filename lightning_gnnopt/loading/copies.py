"""What a batch's tensors are copied from, all of them by one call that does not hold the GIL.

A thread that releases the GIL must get it back, and meanwhile every operator of the training thread, which releases it
too, wakes the waiting one. With one call for each tensor that costs more than the Python between the calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types  # type: ignore[attr-defined]
from numba.extending import intrinsic
from numpy.typing import NDArray

from lightning_gnnopt.loading.gather import copy_bytes, copy_rows


class Copy(NamedTuple):
    """Bytes that stand in a batch: rows of a table, an array, or int32 numbers as int64.

    Attributes:
        source: The table's or array's bytes, or the numbers; contiguous.
        nbytes: Bytes that are written.
        ids: Of a table, which rows: int32 or int64, contiguous, all of them in the table; None for an array.
        row_bytes: Of a table, bytes of a row.
        widen: Whether `source` is int32, and int64 is written.
    """

    source: NDArray[Any]
    nbytes: int
    ids: NDArray[np.integer] | None = None
    row_bytes: int = 0
    widen: bool = False

    @classmethod
    def of_rows(cls, table: NDArray[np.uint8], ids: NDArray[np.integer], row_bytes: int) -> Copy:
        """Rows of a table, given as bytes."""
        return cls(table, len(ids) * row_bytes, ids, row_bytes)

    @classmethod
    def of_array(cls, array: NDArray[Any]) -> Copy:
        """An array as it is."""
        return cls(array, array.nbytes)

    @classmethod
    def widened(cls, numbers: NDArray[np.int32]) -> Copy:
        """Int32 numbers as int64."""
        return cls(numbers, 2 * numbers.nbytes, widen=True)


def write_copies(copies: Iterable[tuple[Copy, int]]) -> None:
    """Write copies, each at its address in host memory, where there must be room for it."""
    orders, seen, place = [], None, 0
    for (source, nbytes, ids, row_bytes, widen), address in copies:
        if not nbytes:
            continue
        if ids is None:
            orders.append((source.ctypes.data, 0, 8 if widen else 0, 0, nbytes, address))
            continue
        if ids is not seen:  # most often the same nodes' rows of the next attribute
            seen, place = ids, ids.ctypes.data
        orders.append((source.ctypes.data, place, ids.itemsize, row_bytes, nbytes, address))
    if orders:
        _write(np.array(orders, np.int64))


@intrinsic
def _emit_pointer(typingctx: Any, address: Any) -> Any:
    """Take a number for an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), codegen


_pointer: Any = _emit_pointer
_array: Any = carray  # whose types know no addresses that are numbers


@njit(nogil=True, cache=True)
def _write(orders: NDArray[np.int64]) -> None:
    for i in range(len(orders)):
        source, ids, item, row_bytes, nbytes, target = orders[i]
        out = _array(_pointer(target), nbytes, np.uint8)
        if ids:
            # how long the table is does not matter: all ids are in it
            table, n = _array(_pointer(source), np.int64(1) << 62, np.uint8), nbytes // row_bytes
            if item == 4:
                copy_rows(table, _array(_pointer(ids), n, np.int32), out, row_bytes)
            else:
                copy_rows(table, _array(_pointer(ids), n, np.int64), out, row_bytes)
        elif item:
            n = nbytes // item
            narrow, wide = _array(_pointer(source), n, np.int32), _array(_pointer(target), n, np.int64)
            for k in range(n):
                wide[k] = narrow[k]
        else:
            copy_bytes(_array(_pointer(source), nbytes, np.uint8), 0, out, 0, nbytes)
