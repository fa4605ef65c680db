"""Software prefetch for numba kernels: ask for a cache line before it is needed.

Sampling waits for memory: a neighbour's id and its table entry lie anywhere in gigabytes. A hint some tens of elements
ahead lets the processor fetch many lines at once, where the loop alone would wait for a few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

AHEAD = 32
"""How many elements ahead a kernel prefetches that does a moderate amount of work for each."""

EDGES_AHEAD = np.uint64(256)
"""The same for a kernel that only copies."""

NODES_AHEAD = np.uint64(64)
"""The same for a kernel that draws all of a node's edges before it comes to the next node."""


@intrinsic
def _llvm_prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Emit ``llvm.prefetch`` (read, keep in all cache levels) for ``array[index]``; no bounds check, no wrap-around."""
    if not (isinstance(array, types.Array) and array.ndim == 1 and isinstance(index, types.Integer)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(array)(context, builder, args[0]).data
        address = builder.bitcast(builder.gep(data, [args[1]]), ir.IntType(8).as_pointer())
        i32 = ir.IntType(32)
        function = builder.module.globals.get("llvm.prefetch.p0")
        if function is None:
            signature_ = ir.FunctionType(ir.VoidType(), [address.type, i32, i32, i32])
            function = ir.Function(builder.module, signature_, name="llvm.prefetch.p0")
        builder.call(function, [address, ir.Constant(i32, 0), ir.Constant(i32, 3), ir.Constant(i32, 1)])
        return context.get_dummy_value()

    return types.none(array, index), codegen


@njit(nogil=True, inline="always")
def _no_prefetch(array: Any, index: Any) -> None:
    """Do nothing: kernels are right without the hint, only slower."""


_emit: Any = _llvm_prefetch


@njit(nogil=True, cache=True)
def _probe(array: Any) -> Any:
    _emit(array, 0)
    return array[0]


def _works() -> bool:
    """Whether this numba's LLVM takes the intrinsic; other versions may name or type it differently."""
    try:
        return int(_probe(np.ones(1, np.int32))) == 1
    except Exception:
        return False


HAS_PREFETCH: bool = _works()
"""Whether kernels really prefetch."""

prefetch: Any = _llvm_prefetch if HAS_PREFETCH else _no_prefetch
"""``prefetch(array, index)`` in a kernel: the place must lie in the array, or be the address of nothing harmful."""
