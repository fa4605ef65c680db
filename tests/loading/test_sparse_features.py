from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from lightning_gnnopt.loading.features import feature_store
from lightning_gnnopt.loading.sparse_features import SparseFeatures
from tests.loading.test_dense_features import DTYPES

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


def csr(num_rows: int, num_columns: int, density: float, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """Draw a matrix with scipy: as a CSR tensor, and dense."""
    rng = np.random.default_rng(seed)
    matrix = scipy.sparse.random(num_rows, num_columns, density, format="csr", random_state=rng, dtype=np.float32)
    arrays = (torch.from_numpy(array) for array in (matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)))
    return torch.sparse_csr_tensor(*arrays, torch.from_numpy(matrix.data), matrix.shape), matrix.toarray()


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_become_dense_in_a_part_of_a_buffer_that_was_used_before(dtype: torch.dtype, ids_dtype: type) -> None:
    sparse, dense = csr(60, 37, 0.1)
    dense = torch.from_numpy(dense).mul(100).to(dtype)
    values = sparse.values().mul(100).to(dtype)
    store = SparseFeatures(torch.sparse_csr_tensor(sparse.crow_indices(), sparse.col_indices(), values, sparse.shape))
    ids = np.random.default_rng(1).integers(0, 60, 200).astype(ids_dtype)
    expected = dense[torch.from_numpy(ids).long()]
    buffer = torch.full((64 + expected.nbytes + 64,), 255, dtype=torch.uint8)
    out = buffer[64:-64].view(dtype).view(expected.shape)

    store.gather(ids, out)

    assert torch.equal(out, expected)
    assert buffer[:64].eq(255).all()
    assert buffer[-64:].eq(255).all()


def test_places_take_32_bits() -> None:
    sparse, _ = csr(1000, 50, 0.1)
    store = SparseFeatures(sparse)
    assert store.nbytes == 4 * (1001 + 2 * sparse.values().numel())
    assert store.row_bytes == 200
    # Where 64 bits are needed they work; so many values are no test's business.
    store._arrays = {name: a if name == "values" else a.astype(np.int64) for name, a in store._arrays.items()}
    assert torch.equal(store.rows(np.arange(1000)), sparse.to_dense())


@pytest.mark.parametrize("shape", [(3, 0), (3, 4), (0, 4)])
def test_a_matrix_without_values(shape: tuple[int, int]) -> None:
    store = feature_store(torch.sparse_coo_tensor(size=shape))
    ids = np.arange(shape[0])
    assert torch.equal(store.rows(ids), torch.zeros(shape))
    assert torch.equal(store.share().rows(ids), torch.zeros(shape))


def test_many_threads_at_once() -> None:
    sparse, dense = csr(500, 300, 0.05)
    store = SparseFeatures(sparse)

    def work(seed: int) -> bool:
        ids = np.random.default_rng(seed).integers(0, 500, 400)
        return np.array_equal(store.rows(ids).numpy(), dense[ids])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(100)))


OTHERS = {
    "hybrid": lambda: torch.sparse_coo_tensor(torch.tensor([[0], [1]]), torch.ones(1, 3), (2, 2, 3)),
    "COO of three dimensions": lambda: torch.ones(2, 2, 2).to_sparse_coo(),
    "CSR of three dimensions": lambda: torch.ones(2, 2, 2).to_sparse_csr(),
    "BSR": lambda: torch.ones(4, 4).to_sparse_bsr((2, 2)),
}


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support")
@pytest.mark.parametrize("source", OTHERS)
def test_other_sparse_tensors_are_refused(source: str) -> None:
    with pytest.raises(
        ValueError, match=r"`source` must be a dense tensor, or a sparse CSR, CSC or COO matrix .* HINT"
    ):
        feature_store(OTHERS[source]())
