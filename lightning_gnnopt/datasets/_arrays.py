"""Arrays out of npy and npz files that may be anything: no objects, and no more memory than the file accounts for."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import scipy.sparse as sp
from numpy.lib import format as npy
from numpy.typing import NDArray

_DEFLATE_RATIO = 1032  # deflate cannot do better: 258 bytes in two bits
_HINT = "HINT: a file with such content is not the published one; get it again from its source."
_DAMAGED = (ValueError, EOFError, OSError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


def read_npy(path: Path) -> NDArray[Any]:
    """Read the array of an npy file.

    Raises:
        ValueError: If it holds objects, says another size than the file has, or is damaged.
    """
    with path.open("rb") as stream:
        return _array(stream, path.stat().st_size, path.name)


def read_npz(path: Path, *names: str) -> list[NDArray[Any]]:
    """Read arrays of an npz file, in the order of their names.

    Raises:
        ValueError: If one is missing, holds objects or says another size than the file has, or the file is damaged.
    """
    found = []
    for name in names:
        with open_member(path, name) as (stream, nbytes):
            found.append(_array(stream, nbytes, f"{path.name}: {name}"))
    return found


def names_in(path: Path) -> set[str]:
    """Give the names of an npz file's arrays.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {member.removesuffix(".npy") for member in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise damaged(path.name, error) from error


@contextmanager
def open_member(path: Path, name: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open one array of an npz file; its stream, and how many bytes it has.

    Raises:
        ValueError: If there is none, or the archive says more of its size than can be so.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise damaged(path.name, error) from error
    with archive:
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError as error:
            raise damaged(path.name, f"it has no array `{name}`") from error
        ratio = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}.get(info.compress_type, 0)
        if info.compress_size > path.stat().st_size or info.file_size > ratio * info.compress_size:
            raise damaged(path.name, f"`{name}` cannot have {info.file_size:,} bytes")
        try:
            stream = archive.open(info)
        except _DAMAGED as error:
            raise damaged(path.name, error) from error
        with stream:
            yield stream, info.file_size


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Read an array's shape and type.

    Raises:
        ValueError: If they cannot be read.
    """
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"it has format {version}, which is unknown")
    # Format 3.0 is 2.0 with names of columns in UTF-8.
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(stream)
    if any(size < 0 for size in shape):
        raise ValueError(f"it says that its shape is {shape}")
    return shape, dtype


def read_sparse(path: Path) -> Any:
    """Read what `scipy.sparse.save_npz` wrote, and look at every index.

    Returns:
        A CSR, CSC or COO matrix.

    Raises:
        ValueError: If it is damaged, or an index points outside: scipy's conversions would write there.
    """
    (kind,) = read_npz(path, "format")
    text = kind.item() if kind.ndim == 0 else None
    form = text.decode("latin1") if isinstance(text, bytes) else text
    if form in ("csr", "csc"):
        return compressed(path.name, form, *read_npz(path, "data", "indices", "indptr", "shape"))
    if form != "coo":
        raise damaged(path.name, f"its format is {form!r} instead of csr, csc or coo")
    data, row, col, shape = read_npz(path, "data", "row", "col", "shape")
    try:  # the constructor looks at the indices
        return sp.coo_matrix((data, (row, col)), shape=_shape(shape))
    except _DAMAGED as error:
        raise damaged(path.name, error) from error


def compressed(
    name: str, form: str, data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: NDArray[Any]
) -> Any:
    """Put a CSR or CSC matrix together, and look at every index.

    Raises:
        ValueError: If an index points outside, or the parts do not fit together.
    """
    try:
        matrix = (sp.csr_matrix if form == "csr" else sp.csc_matrix)((data, indices, indptr), shape=_shape(shape))
    except _DAMAGED as error:
        raise damaged(name, error) from error
    return checked(name, matrix)


def checked(name: str, matrix: Any) -> Any:
    """Look at every index of a sparse matrix that was read; give the matrix.

    Raises:
        ValueError: If one points outside, or there is no sparse matrix.
    """
    if not sp.issparse(matrix):
        raise damaged(name, "it holds no sparse matrix where one is expected")
    try:
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
    except _DAMAGED as error:
        raise damaged(name, error) from error
    return matrix


def check_shape(name: str, matrix: Any, *, rows: int, columns: int | None = None) -> None:
    """Compare a matrix with the number of nodes: an empty one may say that it is of any size.

    Raises:
        ValueError: If it has another number of rows or columns.
    """
    expected = (rows, matrix.shape[-1] if columns is None else columns)
    if tuple(matrix.shape) != expected:
        raise damaged(name, f"it has shape {tuple(matrix.shape)} where {expected} is expected")


def damaged(name: str, why: object) -> ValueError:
    """Say that a file is not what was published."""
    return ValueError(f"`{name}` is damaged or asks for more than arrays and sparse matrices: {why}. {_HINT}")


def _array(stream: IO[bytes], nbytes: int, name: str) -> NDArray[Any]:
    try:
        start = stream.tell()
        shape, dtype = read_header(stream)
        if dtype.hasobject:
            _refuse("it holds Python objects, which are not read")
        expected = stream.tell() - start + dtype.itemsize * int(np.prod(shape, dtype=object))
        if nbytes != expected:
            _refuse(f"{nbytes:,} bytes for an array of {dtype} and shape {shape}")
        stream.seek(start)
        array: NDArray[Any] = npy.read_array(stream, allow_pickle=False)
    except _DAMAGED as error:
        raise damaged(name, error) from error
    return array


def _shape(shape: NDArray[Any]) -> Any:
    return tuple(int(size) for size in shape)


def _refuse(why: str) -> NoReturn:
    raise ValueError(why)
