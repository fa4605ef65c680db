from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_gnnopt.loading import narrowing
from lightning_gnnopt.loading.features import feature_store

pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse CS[RC] tensor support"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks"),
]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored_as", ["float32", torch.float16, "bfloat16", "int8", torch.int8])
def test_batches_get_the_sources_own_type(dtype: torch.dtype, stored_as: Any, sparse: bool) -> None:
    x = torch.randn(300, 5, generator=torch.Generator().manual_seed(0)).clamp(min=-1).to(dtype) + 1
    x[:, 3] = 0
    narrow = getattr(torch, str(stored_as).removeprefix("torch."))
    if narrow.itemsize >= dtype.itemsize and narrow != dtype:
        with pytest.raises(ValueError, match=r"`stored_as` must take fewer bits than the values' own .* HINT"):
            feature_store(x, stored_as=stored_as)
        return
    store = feature_store(x.to_sparse_csr() if sparse else x, stored_as=stored_as)
    ids = np.arange(299, -1, -1)

    rows = store.rows(ids)

    assert (store.dtype, store.stored_dtype, rows.dtype) == (dtype, narrow, dtype)
    assert store.row_bytes == 5 * narrow.itemsize
    stored = torch.empty(300, 5, dtype=narrow)
    store.gather(ids, stored)
    if narrow == torch.int8:
        scale = x.double().abs().amax(0) / 127
        scale[3] = 1
        assert store.scale is not None
        torch.testing.assert_close(store.scale, scale.float(), rtol=1e-6, atol=0)
        assert torch.equal(rows, (stored * store.scale).to(dtype))
        # The type of the batch rounds too; beside that, no more than half a step.
        slack = torch.finfo(dtype).eps * x.double().abs().amax(0) + 1e-6 * scale
        assert ((rows.double() - x.double()[ids]).abs() <= scale / 2 + slack).all()
    else:
        assert torch.equal(stored, x[ids].to(narrow))
        assert torch.equal(rows, x[ids].to(narrow).to(dtype))
    for other in (
        pickle.loads(pickle.dumps(store)),
        store.share(),
        pickle.loads(pickle.dumps(shared := store.share())),
    ):
        assert torch.equal(other.rows(ids), rows)
    del shared


@settings(deadline=None, max_examples=100)
@example([[0.0, torch.finfo(torch.float32).max], [1e-45, 1e-44]])
@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
        min_size=1,
        max_size=8,
    )
)
def test_int8_is_at_most_half_a_scale_away(values: list[list[float]]) -> None:
    x = torch.tensor(values)
    store = feature_store(x, stored_as="int8")
    assert store.scale is not None
    error = (store.rows(np.arange(len(x))).double() - x.double()).abs()
    assert (error <= store.scale.double() * (0.5 + 1e-4)).all()  # float32 rounds a product of 127 by less than 1e-4
    assert torch.equal(store.scale[x.eq(0).all(0)], torch.ones(int(x.eq(0).all(0).sum())))


def test_the_largest_magnitude_of_a_column_comes_back_nearly_as_it_was() -> None:
    x = torch.tensor([[1.0, -254.0], [127.0, 100.0]])
    store = feature_store(x, stored_as="int8")
    assert torch.equal(store.scale, torch.tensor([1.0, 2.0]))  # type: ignore[arg-type]
    assert torch.equal(store.rows(np.array([0, 1])), x)


def test_rows_of_one_number_have_one_scale() -> None:
    x = torch.tensor([1.0, -254.0, 100.0])
    store = feature_store(x, stored_as="int8")
    assert torch.equal(store.scale, torch.tensor([2.0]))  # type: ignore[arg-type]
    assert store.rows(np.array([2, 1, 0])).tolist() == [100.0, -254.0, 0.0]


def test_chunks_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(70, 3, generator=torch.Generator().manual_seed(1))
    whole = feature_store(x.t().contiguous().t(), stored_as="int8")
    monkeypatch.setattr(narrowing, "_CHUNK_BYTES", 8 * 12)
    chunked = feature_store(x, stored_as="int8")
    ids = np.arange(70)
    assert torch.equal(chunked.rows(ids), whole.rows(ids))
    assert torch.equal(chunked.scale, whole.scale)  # type: ignore[arg-type]


def test_more_rows_than_the_scratch_memory_holds() -> None:
    x = torch.randn(50, 1000, generator=torch.Generator().manual_seed(2))  # 32 rows at a time
    ids = np.random.default_rng(0).integers(0, 50, 217)
    store = feature_store(x, stored_as="bfloat16")
    assert torch.equal(store.rows(ids), x.bfloat16()[ids].float())


@pytest.mark.parametrize("sparse", [False, True])
def test_float16_refuses_what_overflows(sparse: bool) -> None:
    x = torch.tensor([[1.0, 65504.0], [0.0, -70000.0]])
    x, row = (x.to_sparse_csr(), x[0]) if sparse else (x, x[0])
    message = r"`stored_as='float16'` must hold every value, .* but got -70000\. HINT: use `stored_as='bfloat16'`"
    with pytest.raises(ValueError, match=message):
        feature_store(x, stored_as="float16")
    assert feature_store(x, stored_as="bfloat16").rows(np.array([0])).tolist() == [row.bfloat16().tolist()]


def test_infinity_and_nan_stay_in_floats_and_are_refused_for_int8() -> None:
    for value in (float("inf"), float("nan")):
        x = torch.tensor([[1.0], [value]])
        rows = feature_store(x, stored_as="float16").rows(np.array([1, 0]))
        torch.testing.assert_close(rows, x.flip(0), equal_nan=True, rtol=0, atol=0)
        with pytest.raises(ValueError, match=r"`stored_as='int8'` must have finite values .* HINT: replace NaN"):
            feature_store(x, stored_as="int8")
    with pytest.raises(ValueError, match=r"`stored_as='bfloat16'` must hold .* HINT: use `stored_as=None`"):
        feature_store(torch.tensor([3.4e38]), stored_as="bfloat16")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floats_are_stored_in_fewer_bits(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"`stored_as` must be None for values that are no floating-point .* HINT"):
        feature_store(torch.ones(2, 2, dtype=dtype), stored_as="int8")


def test_an_unknown_type_is_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown `stored_as` 'int4'\. Did you mean 'int8'\? Known: .* HINT"):
        feature_store(torch.ones(2, 2), stored_as="int4")


@pytest.mark.parametrize("shape", [(1 << 16,), (1 << 12, 16), (1 << 8, 2, 128)])
@pytest.mark.parametrize("stored_as", ["float16", "bfloat16"])
def test_every_16_bit_number_becomes_the_float32_that_torch_makes_of_it(stored_as: str, shape: tuple[int, ...]) -> None:
    narrow = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(getattr(torch, stored_as)).view(shape)
    x = narrow.float()
    ids = np.random.default_rng(0).permutation(shape[0])
    rows = feature_store(x, stored_as=stored_as).rows(ids)
    torch.testing.assert_close(rows, x[ids], rtol=0, atol=0, equal_nan=True)
    assert torch.equal((rows.signbit() & ~rows.isnan()), (x[ids].signbit() & ~x[ids].isnan()))


@pytest.mark.parametrize("stored_as", ["float16", "bfloat16", "int8"])
def test_rows_that_became_float32_on_the_way_are_those_that_a_device_would_make(stored_as: str) -> None:
    x = torch.randn(60, 41, generator=torch.Generator().manual_seed(3))
    store = feature_store(x, stored_as=stored_as)
    for ids in (np.arange(59, -1, -1), np.arange(0, 60, 7, dtype=np.int32), np.empty(0, np.int64)):
        stored, restored = torch.empty(len(ids), 41, dtype=store.stored_dtype), torch.empty(len(ids), 41)
        store.gather(ids, stored)
        store.restore(stored, restored)
        assert torch.equal(store.rows(ids), restored)
