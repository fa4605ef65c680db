"""Tell an error for want of memory from all others."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.memory import is_oom_error

_SIGNS = ("std::bad_alloc", "out of memory", "not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    Beyond what Lightning's `is_oom_error` knows: ``std::bad_alloc``, which a container with a memory limit on the CPU
    raises, `MemoryError`, and workspaces that cuBLAS could not get.

    Examples:
        >>> is_out_of_memory(RuntimeError("std::bad_alloc")), is_out_of_memory(RuntimeError("shape mismatch"))
        (True, False)
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and (is_oom_error(error) or any(sign in str(error) for sign in _SIGNS))
