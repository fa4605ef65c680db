from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading import feature_store
from lightning_gnnopt.loading.fields import array_field, edge_index_field, ids_field, rows_field
from lightning_gnnopt.loading.plan import Field, Part


def written(part: Part) -> Tensor:
    out = torch.full((part.nbytes,), 255, dtype=torch.uint8).view(part.dtype).view(part.shape)
    part.write(out)
    return out


def both_ways(field: Field) -> Tensor:
    """Write a field on the host, and let it travel: both must be the same bits."""
    on_host = written(field.part)
    if field.packed is not None:
        unpacked = torch.full((field.part.nbytes,), 255, dtype=torch.uint8).view(on_host.dtype).view(on_host.shape)
        field.packed.unpack([written(part) for part in field.packed.parts], unpacked)
        assert torch.equal(on_host.view(torch.uint8), unpacked.view(torch.uint8))
    return on_host


def travels_as(field: Field) -> list[torch.dtype]:
    return [part.dtype for part in ((field.part,) if field.packed is None else field.packed.parts)]


@pytest.mark.parametrize(
    ("dtype", "travels"),
    [
        (np.int64, torch.int64),
        (np.uint64, torch.int64),
        (np.int32, torch.int32),
        (np.int16, torch.int32),
        (np.int8, torch.int32),
        (np.uint8, torch.int32),
        (np.uint16, torch.int32),
    ],
)
@pytest.mark.parametrize("size", [0, 1, 1000])
def test_ids_travel_in_32_bits_where_they_fit_and_arrive_in_64(dtype: Any, travels: torch.dtype, size: int) -> None:
    ids = np.random.default_rng(0).integers(0, min(np.iinfo(dtype).max, 2**63 - 1), size, dtype=dtype, endpoint=True)
    field = ids_field(ids)
    assert travels_as(field) == [travels]
    out = both_ways(field)
    assert out.dtype == torch.int64
    assert out.tolist() == ids.tolist()


def test_large_and_negative_ids_are_kept() -> None:
    for ids in ([2**40, -1, 0], [2**62]):
        assert both_ways(ids_field(np.array(ids, np.int64))).tolist() == ids
    assert both_ways(ids_field(np.array([2**31 - 1, -(2**31)], np.int32))).tolist() == [2**31 - 1, -(2**31)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int32, np.bool_, np.uint8])
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 4)])
def test_an_array_is_taken_as_it_is(dtype: Any, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).integers(0, 2, shape).astype(dtype)
    field = array_field(array)
    assert field.packed is None
    assert torch.equal(both_ways(field), torch.from_numpy(array))


def edges_of(degrees: list[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(degrees), dtype=np.int32), degrees)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(0, 3), st.integers(0, 99))
def test_ascending_destinations_travel_as_compressed_columns(degrees: list[int], more_targets: int, seed: int) -> None:
    col = edges_of(degrees)
    row = np.random.default_rng(seed).integers(0, 50, len(col), dtype=np.int32)
    num_targets = len(degrees) + more_targets
    field, columns = edge_index_field(row, col, num_targets)
    assert field.packed is not None
    assert [part.shape for part in field.packed.parts] == [(len(col),), (num_targets + 1,)]
    assert travels_as(field) == [torch.int32, torch.int32]
    edge_index = both_ways(field)
    assert edge_index.dtype == torch.int64
    assert edge_index.tolist() == [row.tolist(), col.tolist()]
    colptr = columns.starts
    assert colptr is not None
    assert colptr.dtype == np.int32
    assert colptr.tolist() == [int((col < v).sum()) for v in range(num_targets + 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=30))
def test_destinations_in_any_order_travel_themselves(ends: list[int]) -> None:
    col = np.array(ends, np.int64)
    row = np.arange(len(ends), dtype=np.int64)
    field, columns = edge_index_field(row, col, 10)
    assert (columns.starts is None) == (ends != sorted(ends))
    assert both_ways(field).tolist() == [row.tolist(), ends]


@pytest.mark.parametrize("col", [[0, 2], [2], [0, 0, 7], [1_000_000]])
def test_a_destination_past_the_last_target_is_not_compressed(col: list[int]) -> None:
    """A transform may return edges into nodes of the last hop."""
    row = np.zeros(len(col), np.int32)
    field, columns = edge_index_field(row, np.array(col, np.int32), 2)
    assert columns.starts is None
    assert both_ways(field).tolist() == [row.tolist(), col]


@pytest.mark.parametrize("num_targets", [0, 1, 5])
def test_no_edges(num_targets: int) -> None:
    none = np.empty(0, np.int32)
    field, columns = edge_index_field(none, none, num_targets)
    assert both_ways(field).shape == (2, 0)
    colptr = columns.starts
    assert colptr is not None
    assert colptr.tolist() == [0] * (num_targets + 1)


@pytest.mark.parametrize("stored_as", [None, "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_rows_travel_as_they_are_stored(stored_as: str | None, sparse: bool) -> None:
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    store = feature_store(values.relu().to_sparse_csr() if sparse else values, stored_as=stored_as)
    ids = np.array([3, 39, 3, 0], np.int32)
    field = rows_field(store, ids)
    assert travels_as(field) == [store.stored_dtype]
    assert torch.equal(both_ways(field), store.rows(ids))
