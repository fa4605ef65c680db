from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_gnnopt.loading.dense_features import DenseFeatures
from lightning_gnnopt.loading.features import feature_store
from lightning_gnnopt.loading.mapped_features import MappedFeatures

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.complex128,
]
LAYOUTS = {
    "dense": lambda x: x,
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "coo": lambda x: x.to_sparse_coo(),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_equal_indexing(layout: str, dtype: torch.dtype) -> None:
    x = torch.randint(-1, 3, (7, 4), generator=torch.Generator().manual_seed(0)).clamp(min=0).to(dtype)
    store = feature_store(LAYOUTS[layout](x))
    n_id = torch.tensor([6, 0, 3, 3, 6, 1])  # a row twice, out of order

    for ids in (n_id, n_id.int(), n_id.numpy(), n_id.to(torch.uint8), n_id.repeat_interleave(2)[::2]):
        assert torch.equal(store.rows(ids), x[n_id])
    rows = store.rows(n_id)
    assert (rows.dtype, rows.layout, rows.is_contiguous()) == (dtype, torch.strided, True)
    assert (store.shape, store.dtype, store.stored_dtype, store.scale) == (x.shape, dtype, dtype, None)
    assert (store.num_rows, store.row_bytes) == (7, 4 * dtype.itemsize)
    assert store.rows(n_id[:0]).shape == (0, 4)
    assert torch.equal(pickle.loads(pickle.dumps(store)).rows(n_id), x[n_id])
    shared = store.share()
    assert shared.share() is shared
    assert torch.equal(shared.rows(n_id), x[n_id])


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
    entries.sort(key=lambda entry: entry[0])  # by row, but not by column: a CSR matrix with repeats
    starts = np.searchsorted([entry[0] for entry in entries], range(num_rows + 1))
    columns, values = torch.tensor([e[1] for e in entries]).long(), torch.tensor([float(e[2]) for e in entries])
    with_repeats = torch.sparse_csr_tensor(
        torch.from_numpy(starts), columns, values, dense.shape, check_invariants=False
    )
    for sparse in (coo, coo.coalesce(), coo.to_sparse_csr(), coo.to_sparse_csc(), with_repeats):
        assert torch.equal(feature_store(sparse).rows(n_id), dense[n_id])


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 3), (5, 0), (5, 3, 1, 7)])
def test_dense_attributes_have_any_number_of_dimensions(shape: tuple[int, ...]) -> None:
    values = torch.randn(shape)
    n_id = torch.tensor([4, 4, 0])
    assert torch.equal(feature_store(values).rows(n_id), values[n_id])


def test_rows_are_a_copy_and_carry_no_gradient() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    rows = feature_store(x).rows(torch.tensor([1]))
    rows += 1
    assert not rows.requires_grad
    assert x.detach().eq(1).all()


def test_sources_in_another_memory_order_are_the_same_rows() -> None:
    x = torch.arange(24.0).reshape(4, 6)
    z = torch.complex(x, -x)
    n_id = torch.tensor([3, 0])
    for values in (x.t(), x[:, ::2], x[1::2].repeat(2, 1), z.conj(), z.conj().imag):
        assert torch.equal(feature_store(values).rows(n_id), values[n_id])


def test_arrays_are_not_copied_even_if_they_are_read_only() -> None:
    array = np.arange(6.0).reshape(3, 2)
    frozen = array.view()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store = feature_store(frozen)
    array[2] = 7.0
    assert store.rows(np.array([2, 0])).tolist() == [[7.0, 7.0], [0.0, 1.0]]


def test_frozen_ids_give_the_same_rows() -> None:
    ids = np.array([2, 0])
    ids.flags.writeable = False
    assert feature_store(torch.arange(3)).rows(ids).tolist() == [2, 0]


def test_a_memmap_of_a_whole_file_is_mapped_and_part_of_one_is_not(tmp_path: Path) -> None:
    path, array = tmp_path / "x.npy", np.arange(12).reshape(6, 2)
    np.save(path, array)
    whole = np.load(path, mmap_mode="r")
    assert isinstance(feature_store(whole), MappedFeatures)
    for part in (whole[1:], whole[::-1], whole[:, ::-1], whole.view(np.float64), np.load(path, mmap_mode="c")):
        store = feature_store(part)
        assert isinstance(store, DenseFeatures)
        assert torch.equal(store.rows(np.array([4, 0])), torch.from_numpy(part[[4, 0]]))


def test_a_store_is_returned_as_it_is_and_a_path_is_mapped(tmp_path: Path) -> None:
    store = feature_store(torch.ones(2, 2))
    assert feature_store(store) is store
    np.save(tmp_path / "x.npy", np.eye(2))
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy")):
        assert torch.equal(feature_store(path).rows(np.array([1])), torch.eye(2, dtype=torch.float64)[1:])


@pytest.mark.parametrize("kind", ["a store", "the file 'x.npy'"])
def test_what_is_stored_already_is_not_stored_otherwise(kind: str) -> None:
    source = feature_store(torch.ones(2)) if kind == "a store" else "x.npy"
    message = rf"`stored_as` must be None for {kind}, .* but got 'int8'\. HINT: pass the tensor instead"
    with pytest.raises(ValueError, match=message):
        feature_store(source, stored_as="int8")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.tensor(1.0), "`source` must have a row for each node or edge, but got a single number"),
        ([[1.0]], "`source` must be a tensor, .* but got list"),
        (np.array(["a"]), "`source` must have a type that torch has, but got an array of <U1"),
        (np.array([1.0], dtype=">f8"), "`source` must have a type that torch has, but got an array of >f8"),
    ],
)
def test_other_sources_are_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"{message}.* HINT: "):
        feature_store(source)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_rows_checks_ids(wrong: int) -> None:
    with pytest.raises(IndexError, match=rf"`ids` must be in 0 \.\. 2, but got {wrong}\. HINT"):
        feature_store(torch.ones(3, 1)).rows(torch.tensor([0, wrong]))


@pytest.mark.parametrize("ids", [torch.tensor([True, False]), torch.tensor([[0]]), torch.tensor([0.0])])
def test_rows_takes_ids_only(ids: Tensor) -> None:
    with pytest.raises(ValueError, match=r"`ids` must be integers of shape \(n,\), but got .* HINT: turn a mask"):
        feature_store(torch.ones(2)).rows(ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tensor_that_does_not_fit_is_not_written_to(layout: str) -> None:
    store = feature_store(LAYOUTS[layout](torch.eye(3)))
    for out in (torch.zeros(2, 3), torch.zeros(1, 3).double(), torch.zeros(3, 1).t()[:, ::2], torch.zeros(3)):
        for method in (store.gather, store.write):
            with pytest.raises(ValueError, match=r"`out` must be a contiguous torch.float32 of shape \(1, 3\) in host"):
                method(np.array([0]), out)
            assert not out.any()


def test_repr_tells_what_a_batch_gets_and_what_is_stored() -> None:
    assert repr(feature_store(torch.ones(2, 3))) == "DenseFeatures((2, 3), torch.float32)"
    narrow = feature_store(torch.eye(2).to_sparse_coo(), stored_as="int8")
    assert repr(narrow) == "SparseFeatures((2, 2), torch.float32 stored as torch.int8)"
