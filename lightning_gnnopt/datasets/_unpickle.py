"""Numpy and scipy arrays out of pickles, without running what a pickle asks for.

Planetoid's files and the npz files of GraphData are pickles. A pickle can call any function it names, and even
``numpy.ndarray`` alone is no safe thing to allow: called with a buffer and an object dtype, it takes bytes from the
file for pointers. So a pickle gets to call no more than ``list``, ``dict``, ``int`` and ``defaultdict`` here. Stand-ins
collect the state of dtypes, arrays and sparse matrices, and the real ones are built from plain bytes once the pickle
has been read, with every length and index checked.
"""

from __future__ import annotations

import math
import pickle
import re
from collections import defaultdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import scipy.sparse as sp

from lightning_gnnopt.datasets._arrays import damaged, open_member, read_header, read_npz


def load_pickle(path: Path) -> Any:
    """Read a pickle of an array, of a sparse matrix, or of lists and dicts of numbers, written by Python 2 or 3.

    Args:
        path: File to read.

    Returns:
        The numpy array, scipy matrix, list or dict.

    Raises:
        ValueError: If the file asks for anything else, or is damaged.
    """
    with path.open("rb") as stream:
        return _load(stream, path.name)


def load_object_npz(path: Path, member: str) -> Any:
    """Read one array of an npz file, whether it is stored plainly or as a pickled object.

    Args:
        path: The npz file.
        member: Name of the array.

    Returns:
        The array; for an object array without dimensions, the object in it.

    Raises:
        ValueError: If the file asks for anything but arrays and sparse matrices, or is damaged.
    """
    with open_member(path, member) as (stream, _):
        try:
            _, dtype = read_header(stream)
        except ValueError as error:
            raise damaged(path.name, error) from error
        if dtype.hasobject:
            return _load(stream, path.name)
    return read_npz(path, member)[0]


class _Dtype:
    """Stand-in for ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biufc][0-9]{1,2}|O8?", code):
            raise ValueError(f"dtype {code!r}")
        self.code = code
        self.order = ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.order = state[1]


class _Array:
    """Stand-in for ``numpy.ndarray``; `arguments` are those of numpy's reconstructor, which say nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def build(self) -> Any:
        _, shape, dtype, fortran, raw = self.state
        if dtype.code.startswith("O"):
            if shape != () or not isinstance(raw, list) or len(raw) != 1:
                raise ValueError("an array of objects")
            return _build(raw[0])
        if isinstance(raw, str):  # bytes, to Python 2
            raw = raw.encode("latin1")
        kind = np.dtype(dtype.order + dtype.code)
        if len(raw) != kind.itemsize * math.prod(shape):
            raise ValueError(f"{len(raw)} bytes for an array of shape {shape}")
        # A copy: scipy and torch want arrays they may write to, in the machine's own byte order.
        return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C").astype(kind.newbyteorder("="))


class _Sparse:
    """Stand-in for the compressed and coordinate matrices of scipy."""

    kind: type[Any]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def build(self) -> Any:
        state = {name: _build(value) for name, value in self.state.items()}
        shape = tuple(int(size) for size in state["_shape" if "_shape" in state else "shape"])
        if self.kind is sp.coo_matrix:  # its constructor checks the indices
            row, col = state["coords"] if "coords" in state else (state["row"], state["col"])
            return sp.coo_matrix((state["data"], (row, col)), shape=shape)
        matrix = self.kind((state["data"], state["indices"], state["indptr"]), shape=shape)
        matrix.check_format(full_check=True)
        return matrix


class _Csr(_Sparse):
    kind = sp.csr_matrix


class _Csc(_Sparse):
    kind = sp.csc_matrix


class _Coo(_Sparse):
    kind = sp.coo_matrix


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("collections", "defaultdict"): defaultdict,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = _Array
for _module in ("builtins", "__builtin__"):
    _ALLOWED |= {(_module, "list"): list, (_module, "dict"): dict, (_module, "int"): int}
for _format, _class in (("csr", _Csr), ("csc", _Csc), ("coo", _Coo)):
    for _module in (f"scipy.sparse.{_format}", f"scipy.sparse._{_format}"):
        _ALLOWED[_module, f"{_format}_matrix"] = _class


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise ValueError(f"`{module}.{name}`")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise ValueError("a persistent object")


def _load(stream: IO[bytes], name: str) -> Any:
    try:
        return _build(_Unpickler(stream, encoding="latin1").load())
    except Exception as error:  # a pickle can go wrong in any way
        raise damaged(name, error) from error


def _build(value: Any) -> Any:
    """Replace a stand-in by what it stands for."""
    if isinstance(value, (_Array, _Sparse)):
        return value.build()
    if isinstance(value, tuple):
        return tuple(_build(item) for item in value)
    return value
