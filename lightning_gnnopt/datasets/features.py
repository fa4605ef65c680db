"""What `x` looks like: dense or sparse, as published or normalised."""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

Features = Literal["auto", "dense", "sparse"]

#: ``features="auto"`` keeps a sparse matrix only above this size (of its dense float32 form)...
DENSE_LIMIT_BYTES = 256 * 2**20
#: ...and below this share of non-zero entries.
SPARSE_DENSITY = 0.1


def sparse_tensor(matrix: Any) -> Tensor:
    """Turn a scipy sparse matrix into a float32 CSR tensor of the same shape.

    Examples:
        >>> sparse_tensor(sp.identity(2)).to_dense()
        tensor([[1., 0.],
                [0., 1.]])
    """
    csr = sp.csr_matrix(matrix, dtype=np.float32)
    csr.sum_duplicates()
    return _csr(
        torch.from_numpy(csr.indptr.astype(np.int64)),
        torch.from_numpy(csr.indices.astype(np.int64)),
        torch.from_numpy(csr.data),
        csr.shape,
    )


def lay_out(x: Tensor, features: Features) -> Tensor:
    """Make `x` dense or sparse.

    Args:
        x: Float tensor of shape ``(N, F)``, dense or CSR.
        features: ``"dense"`` or ``"sparse"`` (CSR); ``"auto"`` picks sparse where the dense float32 matrix would take
            more than 256 MiB with less than 10 % of its entries non-zero, and dense otherwise.

    Returns:
        `x` itself, or a float32 tensor in the other layout.
    """
    is_sparse = x.layout == torch.sparse_csr
    if features == "auto":
        nonzeros = 0
        large = 4 * math.prod(x.shape) > DENSE_LIMIT_BYTES
        if large:
            nonzeros = x.values().numel() if is_sparse else int(torch.count_nonzero(x))
        features = "sparse" if large and nonzeros < SPARSE_DENSITY * math.prod(x.shape) else "dense"
    if features == "dense":
        return x.to_dense() if is_sparse else x
    return x if is_sparse else sparse_tensor(x.numpy())


def normalize_rows(x: Tensor) -> Tensor:
    """Divide each row by the sum of its absolute values; rows of zeros stay zero.

    Features that are never negative then sum to one in each row, as in the usual benchmark.

    Args:
        x: Float tensor of shape ``(N, F)``, dense or CSR.

    Examples:
        >>> normalize_rows(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
        tensor([[0.2500, 0.7500],
                [0.0000, 0.0000]])
    """
    tiny = torch.finfo(x.dtype).tiny
    if x.layout != torch.sparse_csr:
        return x / x.abs().sum(dim=1, keepdim=True).clamp_min(tiny)
    row = torch.repeat_interleave(torch.arange(x.size(0)), x.crow_indices().diff())
    total = torch.zeros(x.size(0), dtype=x.dtype).index_add_(0, row, x.values().abs()).clamp_min(tiny)
    return _csr(x.crow_indices(), x.col_indices(), x.values() / total[row], x.shape)


def _csr(row_pointer: Tensor, column: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(row_pointer, column, values, tuple(shape), check_invariants=True)
