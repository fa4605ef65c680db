"""Where the rows of a node attribute live, and how a batch gets its own."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor


class FeatureStore:
    """Hands out rows of a node attribute as a dense tensor.

    Args:
        source: Dense tensor of shape ``(N, ...)``, or a sparse CSR (or COO) tensor of shape ``(N, F)``. A sparse
            source stays sparse in memory; only the rows of a batch become dense.

    Examples:
        >>> store = FeatureStore(torch.eye(3).to_sparse_csr())
        >>> store.rows(torch.tensor([2, 0]))
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """

    def __init__(self, source: Tensor) -> None:
        self._dense: Tensor | None = None
        self.shape = source.shape
        self.dtype = source.dtype
        if source.layout == torch.strided:
            self._dense = source.detach().cpu()
            return
        csr = source.detach().cpu().to_sparse_csr()
        self._indptr: NDArray[np.int64] = csr.crow_indices().numpy()
        self._columns: NDArray[np.int64] = csr.col_indices().numpy()
        self._values: NDArray[np.generic] = _bits(csr.values())

    def rows(self, n_id: Tensor) -> Tensor:
        """Copy rows.

        Args:
            n_id: Long tensor of shape ``(n,)``.

        Returns:
            Dense tensor of shape ``(n, ...)``, contiguous.
        """
        if self._dense is not None:
            return self._dense.index_select(0, n_id)
        out = torch.zeros((len(n_id), *self.shape[1:]), dtype=self.dtype)
        _scatter_rows(self._indptr, self._columns, self._values, n_id.numpy(), _bits(out))
        return out


def _bits(values: Tensor) -> NDArray[np.generic]:
    """View a tensor as an array; 16-bit floats, which numba has not, as integers."""
    is_half = values.is_floating_point() and values.element_size() == 2
    array: NDArray[np.generic] = (values.view(torch.int16) if is_half else values).numpy()
    return array


@njit(nogil=True, cache=True)
def _scatter_rows(
    indptr: NDArray[np.int64],
    columns: NDArray[np.int64],
    values: NDArray[np.generic],
    rows: NDArray[np.int64],
    out: NDArray[np.generic],
) -> None:
    """Write CSR rows into `out`, zeros of shape ``(len(rows), F)``."""
    for i in range(len(rows)):
        for p in range(indptr[rows[i]], indptr[rows[i] + 1]):
            out[i, columns[p]] = values[p]
