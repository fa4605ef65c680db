from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.loading.features import FeatureStore

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
LAYOUTS = {
    "dense": lambda x: x,
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "coo": lambda x: x.to_sparse_coo(),
}


@pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_equal_indexing(layout: str, dtype: torch.dtype) -> None:
    x = torch.randint(-1, 3, (7, 4), generator=torch.Generator().manual_seed(0)).clamp(min=0).to(dtype)
    store = FeatureStore(LAYOUTS[layout](x))
    n_id = torch.tensor([6, 0, 3, 3, 6, 1])  # a row twice, out of order

    rows = store.rows(n_id)

    assert torch.equal(rows, x[n_id])
    assert (rows.dtype, rows.layout, rows.is_contiguous()) == (dtype, torch.strided, True)
    assert (store.shape, store.dtype) == (x.shape, dtype)
    assert store.rows(n_id[:0]).shape == (0, 4)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@settings(deadline=None, max_examples=50)
@given(st.data())
def test_any_sparse_matrix_hands_out_its_rows(data: st.DataObject) -> None:
    num_rows, num_columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    entry = st.tuples(st.integers(0, num_rows - 1), st.integers(0, num_columns - 1), st.integers(-5, 5))
    entries = data.draw(st.lists(entry, max_size=20))  # an index may stand twice: its values add up
    n_id = torch.tensor(data.draw(st.lists(st.integers(0, num_rows - 1), max_size=8)), dtype=torch.long)
    dense = torch.zeros(num_rows, num_columns)
    for row, column, value in entries:
        dense[row, column] += value
    indices = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).t()
    coo = torch.sparse_coo_tensor(indices, torch.tensor([float(e[2]) for e in entries]), dense.shape)
    for sparse in (coo, coo.coalesce(), coo.to_sparse_csr()):
        assert torch.equal(FeatureStore(sparse).rows(n_id), dense[n_id])


@pytest.mark.parametrize("shape", [(5,), (5, 2, 3)])
def test_dense_attributes_have_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    n_id = torch.tensor([4, 4, 0])
    assert torch.equal(FeatureStore(values).rows(n_id), values[n_id])


def test_rows_are_a_copy_and_carry_no_gradient() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    rows = FeatureStore(x).rows(torch.tensor([1]))
    rows += 1
    assert not rows.requires_grad
    assert x.detach().eq(1).all()
