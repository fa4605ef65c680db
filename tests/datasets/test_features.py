from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from lightning_gnnopt.datasets import features as module
from lightning_gnnopt.datasets.features import lay_out, normalize_rows, sparse_tensor

MATRIX = np.array([[0.0, 2.0, 0.0, 2.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 3.0, 0.0, 0.0]], dtype=np.float32)


def test_a_sparse_tensor_holds_the_matrix_with_duplicates_summed() -> None:
    matrix = sp.coo_matrix((np.array([1.0, 1.0, 5.0]), (np.array([0, 0, 1]), np.array([2, 2, 0]))), shape=(2, 3))
    x = sparse_tensor(matrix)
    assert x.layout == torch.sparse_csr
    assert x.dtype == torch.float32
    assert x.to_dense().tolist() == [[0, 0, 2], [5, 0, 0]]
    assert x.values().numel() == 2


@pytest.mark.parametrize("given", ["dense", "sparse"])
@pytest.mark.parametrize("wanted", ["dense", "sparse"])
def test_both_layouts_are_to_be_had_from_both(given: str, wanted: str) -> None:
    x = torch.from_numpy(MATRIX) if given == "dense" else sparse_tensor(sp.csr_matrix(MATRIX))
    laid_out = lay_out(x, wanted)
    assert (laid_out.layout == torch.sparse_csr) == (wanted == "sparse")
    np.testing.assert_array_equal((laid_out.to_dense() if wanted == "sparse" else laid_out).numpy(), MATRIX)


@pytest.mark.parametrize(
    ("limit_bytes", "density", "layout"),
    [(48, 1.0, torch.strided), (47, 0.34, torch.sparse_csr), (47, 1 / 3, torch.strided)],
)
@pytest.mark.parametrize("given", ["dense", "sparse"])
def test_auto_is_sparse_above_the_limit_and_below_the_density(
    monkeypatch: pytest.MonkeyPatch, limit_bytes: int, density: float, layout: torch.layout, given: str
) -> None:
    # 3 x 4 float32 entries are 48 bytes, 4 of 12 are not zero.
    monkeypatch.setattr(module, "DENSE_LIMIT_BYTES", limit_bytes)
    monkeypatch.setattr(module, "SPARSE_DENSITY", density)
    x = torch.from_numpy(MATRIX) if given == "dense" else sparse_tensor(sp.csr_matrix(MATRIX))
    assert lay_out(x, "auto").layout == layout


def test_the_limits_are_the_documented_ones() -> None:
    assert module.DENSE_LIMIT_BYTES == 268_435_456
    assert module.SPARSE_DENSITY == 0.1


@pytest.mark.parametrize("layout", ["dense", "sparse"])
def test_rows_are_divided_by_their_absolute_sum(layout: str) -> None:
    x = normalize_rows(lay_out(torch.from_numpy(MATRIX), layout))
    assert (x.layout == torch.sparse_csr) == (layout == "sparse")
    assert (x.to_dense() if layout == "sparse" else x).tolist() == [
        [0.0, 0.5, 0.0, 0.5],
        [0.0, 0.0, 0.0, 0.0],
        [-0.25, 0.75, 0.0, 0.0],
    ]
