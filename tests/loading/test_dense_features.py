from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_gnnopt.loading.dense_features import DenseFeatures
from lightning_gnnopt.loading.features import feature_store

DTYPES = [
    torch.bool,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.float16,
    torch.bfloat16,
    torch.int32,
    torch.float32,
    torch.int64,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
SHAPES = [(40,), (40, 1), (40, 3), (40, 13), (40, 100), (40, 2, 5)]


def random(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Draw random bytes, and see them as that type; NaNs come too."""
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.randint(2, shape, generator=generator).bool()
    size = (*shape[:-1], shape[-1] * dtype.itemsize)
    return torch.randint(256, size, dtype=torch.uint8, generator=generator).view(dtype)


def raw(values: Tensor) -> list[int]:
    return values.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_is_copied_into_a_part_of_a_larger_buffer(
    dtype: torch.dtype, shape: tuple[int, ...], ids_dtype: type
) -> None:
    values = random(shape, dtype)
    ids = np.random.default_rng(0).integers(0, 40, 77).astype(ids_dtype)
    expected = values[torch.from_numpy(ids).long()]
    store = DenseFeatures(values)
    buffer = torch.zeros(64 + expected.nbytes + 64, dtype=torch.uint8)
    for method in (store.gather, store.write):
        buffer.zero_()
        out = buffer[64 : 64 + expected.nbytes].view(dtype).view(expected.shape)
        method(ids, out)
        assert raw(out) == raw(expected)
        assert not buffer[:64].any()
        assert not buffer[-64:].any()
    assert store.nbytes == values.nbytes


@pytest.mark.parametrize("stored_as", [None, "int8"])
def test_many_threads_at_once(stored_as: str | None) -> None:
    values = torch.randn(1000, 37, generator=torch.Generator().manual_seed(0))
    store = DenseFeatures(values, stored_as=stored_as)
    reference = store.rows(np.arange(1000))
    start = threading.Barrier(8)

    def work(seed: int) -> bool:
        start.wait()
        rng = np.random.default_rng(seed)
        for _ in range(20):
            ids = rng.integers(0, 1000, 500)
            if not torch.equal(store.rows(ids), reference[ids]):
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [True] * 8
    if stored_as is None:
        assert torch.equal(reference, values)


def test_a_contiguous_tensor_is_not_copied() -> None:
    values = torch.zeros(3, 2)
    store = DenseFeatures(values)
    values[1] = 5
    assert store.rows(np.array([1])).tolist() == [[5.0, 5.0]]


def test_scales_are_shared_too() -> None:
    values = torch.randn(10, 3000)
    narrow = feature_store(values, stored_as="int8")
    shared = narrow.share()
    assert len(pickle.dumps(shared)) < 2000
    opened = pickle.loads(pickle.dumps(shared))
    assert torch.equal(opened.scale, narrow.scale)
    assert torch.equal(opened.rows(np.arange(10)), narrow.rows(np.arange(10)))
    assert opened.share() is opened


def test_a_store_whose_memory_is_gone_says_so() -> None:
    pickled = pickle.dumps(feature_store(torch.ones(4, 4)).share())  # and the store is dropped
    with pytest.raises(FileNotFoundError, match="is gone: the process that shared it has ended or dropped it"):
        pickle.loads(pickled)
