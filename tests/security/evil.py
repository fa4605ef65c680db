"""Files as somebody might send them who means harm: what they ask for leaves a trace."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class Evil:
    """Pickled as a call that makes a folder.

    Args:
        trace: The folder.
    """

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.trace,)


def evil_pickle(trace: Path, protocol: int = 2) -> bytes:
    """A pickle that leaves the trace wherever it is unpickled."""
    return pickle.dumps(Evil(trace), protocol)


def objects(trace: Path, shape: tuple[int, ...] = (1,)) -> NDArray[Any]:
    """An array of objects that leaves the trace where it is read with `allow_pickle=True`."""
    array = np.empty(shape, dtype=object)
    array[...] = Evil(trace)
    return array


def claiming(shape: tuple[int, ...], dtype: str = "<f4", content: bytes = b"") -> bytes:
    """An npy file that says a shape and holds something else."""
    stream = io.BytesIO()
    npy.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue() + content
