"""Rows of a sparse matrix, which become dense in a batch only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading.features import FeatureStore, bytes_of, check_out, kernel_ids
from lightning_gnnopt.loading.gather import scatter_rows
from lightning_gnnopt.loading.narrowing import narrow, narrow_dtype, scale_of
from lightning_gnnopt.sampling.shared_arrays import SharedArrays

_LAYOUTS = (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)
_SCALE = "scale"


class SparseFeatures(FeatureStore):
    """Rows of a sparse matrix.

    They are held by row, with 32-bit places where these suffice.

    Args:
        source: Sparse CSR, CSC or COO tensor of shape ``(N, F)``. Values at the same place are added up.
        stored_as: Store floating-point values in fewer bits: ``"float32"``, ``"float16"``, ``"bfloat16"``, ``"int8"``.

    Raises:
        ValueError: If `source` has another layout or number of dimensions, or cannot be stored so.

    Examples:
        >>> store = SparseFeatures(torch.tensor([[0.0, 7.0], [0.0, 0.0]]).to_sparse_coo())
        >>> store.rows(torch.tensor([1, 0]))
        tensor([[0., 0.],
                [0., 7.]])
    """

    def __init__(self, source: Tensor, *, stored_as: str | torch.dtype | None = None) -> None:
        if source.layout not in _LAYOUTS or source.ndim != 2 or source.dense_dim():
            raise ValueError(
                "`source` must be a dense tensor, or a sparse CSR, CSC or COO matrix of shape (N, F), but got"
                f" {source.layout} of shape {tuple(source.shape)} with {source.dense_dim()} dense dimensions."
                " HINT: convert it with `to_sparse_csr()` or `to_dense()`."
            )
        stored_dtype, scale = narrow_dtype(stored_as, source.dtype), None
        indptr, columns, values = _compressed(source.detach().cpu())
        if stored_dtype != source.dtype:
            places = torch.from_numpy(columns).long()
            if stored_dtype == torch.int8:
                largest = torch.zeros(source.shape[1], dtype=source.dtype, device="cpu")
                scale = scale_of(largest.scatter_reduce_(0, places, values.abs(), "amax"))
            values = narrow(values, stored_dtype, None if scale is None else scale[places])
        super().__init__(source.shape, dtype=source.dtype, stored_dtype=stored_dtype, scale=scale)
        fits = np.iinfo(np.int32).max
        self._arrays: dict[str, NDArray[Any]] = {
            "indptr": indptr.astype(np.int32 if len(columns) <= fits else np.int64, copy=False),
            "columns": columns.astype(np.int32 if source.shape[1] <= fits else np.int64, copy=False),
            "values": bytes_of(values.contiguous()),
        }
        self._shared: SharedArrays | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the values and their places."""
        return sum(array.nbytes for array in self._arrays.values())

    def gather(self, ids: NDArray[np.integer], out: Tensor) -> None:
        """Spell out rows as they are stored; see :meth:`FeatureStore.gather`."""
        check_out(out, (len(ids), *self.shape[1:]), self.stored_dtype)
        indptr, columns, values = (self._arrays[name] for name in ("indptr", "columns", "values"))
        scatter_rows(indptr, columns, values, kernel_ids(ids), bytes_of(out), item_bytes=self.stored_dtype.itemsize)

    def share(self) -> SparseFeatures:
        """Copy the matrix to memory that processes share; see :meth:`FeatureStore.share`."""
        if self._shared is not None:
            return self
        shared = SparseFeatures.__new__(SparseFeatures)
        arrays = self._arrays | ({} if self.scale is None else {_SCALE: self.scale.numpy()})
        shared.__setstate__(self.__getstate__() | {"_shared": SharedArrays(arrays)})
        return shared

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return state if self._shared is None else state | {"_arrays": None, "scale": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._shared is not None:
            self._arrays = self._shared.arrays()
            scale = self._arrays.pop(_SCALE, None)
            self.scale = None if scale is None else torch.from_numpy(scale)


def _compressed(matrix: Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    """Give a matrix by row, no place twice: where rows start, columns, values."""
    if matrix.layout == torch.sparse_csr:
        indptr, columns = matrix.crow_indices().numpy(), matrix.col_indices().numpy()
        if not _repeats(indptr, columns, np.full(matrix.shape[1], -1, np.int64)):
            return indptr, columns, matrix.values()
    if matrix.layout != torch.sparse_coo:
        matrix = _coordinates(matrix)
    matrix = matrix.coalesce()
    rows, places = matrix.indices().numpy()
    indptr = np.zeros(matrix.shape[0] + 1, np.int64)
    np.cumsum(np.bincount(rows, minlength=matrix.shape[0]), out=indptr[1:])
    return indptr, places, matrix.values()


def _coordinates(matrix: Tensor) -> Tensor:
    """Turn a compressed matrix into one by coordinates; torch's own conversion takes no repeats for granted."""
    by_row = matrix.layout == torch.sparse_csr
    starts = matrix.crow_indices() if by_row else matrix.ccol_indices()
    inner = matrix.col_indices() if by_row else matrix.row_indices()
    outer = torch.repeat_interleave(torch.arange(len(starts) - 1, device="cpu"), starts.diff())
    indices = torch.stack([outer, inner] if by_row else [inner, outer])
    return torch.sparse_coo_tensor(indices, matrix.values(), matrix.shape, check_invariants=False)


@njit(nogil=True, cache=True)
def _repeats(indptr: NDArray[np.integer], columns: NDArray[np.integer], last: NDArray[np.int64]) -> bool:
    """Tell whether a row has a column twice; `last` is -1 for each column."""
    for v in range(len(indptr) - 1):
        for p in range(indptr[v], indptr[v + 1]):
            if last[columns[p]] == v:
                return True
            last[columns[p]] = v
    return False
