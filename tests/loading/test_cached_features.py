from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lightning_gnnopt.loading import (
    BatchBuilder,
    CachedFeatures,
    DevicePlacement,
    FeatureStore,
    HostPlacement,
    NodeSource,
    PrefetchLoader,
    SeedOrder,
    SimulatedDevice,
    cached_features,
    feature_store,
)
from lightning_gnnopt.loading.fields import rows_field
from lightning_gnnopt.loading.plan import BatchPlan, Packed
from lightning_gnnopt.sampling import NeighborSampler, Topology

from .graphs import make_data

ROWS = 50


@pytest.fixture(scope="module")
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(host_computes=True) as device:
        yield device


def values_of(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(ROWS, 6, generator=generator)
    if kind == "one column":
        return dense[:, 0].contiguous()
    if kind == "three dimensions":
        return torch.randn(ROWS, 2, 3, generator=generator)
    if kind == "no columns":
        return dense[:, :0]
    if kind.startswith("sparse"):
        return dense.relu().to_sparse_csr()
    if kind.startswith("stored"):
        return dense
    dtype = getattr(torch, kind)
    return dense > 0 if dtype == torch.bool else (10 * dense).to(dtype)


KINDS = ["float32", "float64", "float16", "bfloat16", "int8", "uint8", "int64", "bool", "complex64"]
KINDS += ["one column", "three dimensions", "no columns", "sparse", "sparse int8", "sparse float16"]
KINDS += ["stored int8", "stored float16", "stored bfloat16"]


def store_of(kind: str) -> FeatureStore:
    stored_as = kind.split()[1] if kind.startswith(("stored", "sparse ")) else None
    return feature_store(values_of(kind), stored_as=stored_as)


def on_device(store: FeatureStore, ids: NDArray[np.integer], device: SimulatedDevice) -> Tensor:
    field = rows_field(store, ids)
    (rows,) = DevicePlacement(device).place(BatchPlan([field], list, len(ids), 0)).take()
    return rows.clone()


def bits(rows: Tensor) -> list[int]:
    return rows.contiguous().view(-1).view(torch.uint8).tolist()


IDS = [
    [],
    [7],
    [3, 3, 3],
    list(range(ROWS)),
    list(range(ROWS - 1, -1, -1)),
    [0, 49, 7, 7, 21, 0, 13, 48, 2, 7],
]


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_hot", [0, 1, 17, ROWS])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_batch_gets_the_same_bits(kind: str, num_hot: int, dtype: Any, device: SimulatedDevice) -> None:
    store = store_of(kind)
    hot_ids = np.random.default_rng(num_hot).permutation(ROWS)[:num_hot].astype(dtype)
    cached = CachedFeatures(store, hot_ids, device)
    for chosen in IDS:
        ids = np.array(chosen, dtype)
        expected = store.rows(ids)
        for rows in (on_device(cached, ids, device), on_device(store, ids, device), cached.rows(ids)):
            assert (rows.dtype, rows.shape) == (expected.dtype, expected.shape)
            assert bits(rows) == bits(expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, ROWS - 1), max_size=80), st.sets(st.integers(0, ROWS - 1)), st.booleans())
def test_hits_and_what_travels_are_all_rows(
    device: SimulatedDevice, chosen: list[int], hot: set[int], narrow: bool
) -> None:
    ids = np.array(chosen, np.int64)
    cached = CachedFeatures(store_of("stored int8" if narrow else "float32"), np.array(sorted(hot), np.int64), device)
    packed = cached.packed(ids)
    hits = sum(i in hot for i in chosen)
    assert (packed.lookups, packed.hits) == (len(chosen), hits)
    slots, places, travelled = packed.parts
    assert (slots.shape, places.shape) == ((hits,), (len(chosen),))
    assert travelled.shape == (len(chosen) - hits, 6)
    assert travelled.dtype == (torch.int8 if narrow else torch.float32)
    order = torch.empty(places.shape, dtype=places.dtype)
    places.write(order)
    assert sorted(order.tolist()) == list(range(len(chosen)))  # each row is written once
    assert [chosen[place] in hot for place in order.tolist()] == [True] * hits + [False] * (len(chosen) - hits)
    expected = cached.store.rows(ids)
    assert torch.equal(on_device(cached, ids, device), expected)


def test_ids_are_left_as_they_are(device: SimulatedDevice) -> None:
    cached = CachedFeatures(store_of("float32"), np.array([1, 2]), device)
    ids = np.array([2, 9, 1, 9])
    ids.flags.writeable = False
    cached.packed(ids)
    assert ids.tolist() == [2, 9, 1, 9]


@pytest.mark.parametrize("num_hot", [0, 1, 3, 6])
def test_hit_rates_are_those_of_a_count_by_hand(num_hot: int, device: SimulatedDevice) -> None:
    dice = np.random.default_rng(num_hot)
    store = feature_store(torch.randn(6, 2))
    hot = dice.permutation(6)[:num_hot]
    cached = CachedFeatures(store, hot, device)
    assert (cached.hit_rate, cached.best_hit_rate) == (0.0, 0.0)
    asked: list[int] = []
    for _ in range(5):
        ids = dice.choice(6, size=9, p=[0.4, 0.3, 0.1, 0.1, 0.1, 0.0])
        cached.packed(ids)
        asked += ids.tolist()
        best = max(sum(i in choice for i in asked) for choice in combinations(range(6), num_hot))
        assert cached.hit_rate == pytest.approx(sum(i in hot for i in asked) / len(asked))
        assert cached.best_hit_rate == pytest.approx(best / len(asked))
        assert cached.hit_rate <= cached.best_hit_rate + 1e-12
    cached.reset_counts()
    assert (cached.hit_rate, cached.best_hit_rate) == (0.0, 0.0)
    cached.packed(hot)
    assert cached.hit_rate == (1.0 if num_hot else 0.0)


def test_it_looks_like_its_store(device: SimulatedDevice) -> None:
    store = store_of("stored int8")
    cached = CachedFeatures(store, np.arange(10), device)
    assert (cached.shape, cached.dtype, cached.stored_dtype) == (store.shape, torch.float32, torch.int8)
    assert (cached.num_rows, cached.row_bytes, cached.nbytes) == (ROWS, 6, store.nbytes)
    assert (cached.num_cached, cached.device_bytes) == (10, 60)
    assert repr(cached).startswith("CachedFeatures((50, 6), torch.float32")
    assert bits(cached.share().rows(np.arange(ROWS))) == bits(store.rows(np.arange(ROWS)))


@pytest.mark.parametrize("num_hot", [1, 5, 6, 7, 13])
def test_it_is_filled_in_chunks(num_hot: int, device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_features, "_CHUNK_BYTES", 6 * 24 + 5)  # six rows
    copied = len(device.copied_bytes)
    store = store_of("float32")
    hot = np.random.default_rng(0).permutation(ROWS)[:num_hot]
    cached = CachedFeatures(store, hot, device)
    sizes = device.copied_bytes[copied:]
    assert sizes == [24 * len(hot[first : first + 6]) for first in range(0, num_hot, 6)]
    assert torch.equal(on_device(cached, hot, device), store.rows(hot))


def test_only_misses_travel(device: SimulatedDevice) -> None:
    cached = CachedFeatures(store_of("float32"), np.arange(40), device)
    ids = np.array([0, 1, 45, 2, 46, 3])
    copied = len(device.copied_bytes)
    on_device(cached, ids, device)
    # four slots, six places, two rows of 24 bytes, each at a multiple of 128
    assert device.copied_bytes[copied:] == [128 + 128 + 48]


def test_many_threads_may_ask_at_once(device: SimulatedDevice) -> None:
    store = store_of("stored float16")
    cached = CachedFeatures(store, np.arange(0, ROWS, 2), device)
    wrong: list[int] = []

    def work(number: int) -> None:
        dice = np.random.default_rng(number)
        placement = DevicePlacement(device)
        for _ in range(40):
            ids = dice.integers(0, ROWS, 30)
            (rows,) = placement.place(BatchPlan([rows_field(cached, ids)], list, 30, 0)).take()
            if not torch.equal(rows, store.rows(ids)):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cached._counts.sum() == 5 * 40 * 30  # none is lost


class Seen:
    """Notes what a builder asks of a store."""

    def __init__(self, cached: CachedFeatures) -> None:
        self.rows = 0
        self.hits = 0
        self._packed = cached.packed
        cached.packed = self  # type: ignore[method-assign]

    def __call__(self, ids: NDArray[np.integer]) -> Packed:
        packed = self._packed(ids)
        self.rows += len(ids)
        self.hits += packed.hits
        return packed


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "bool", "sparse"])
@pytest.mark.parametrize("num_workers", [0, 3])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_loader_with_a_cache_delivers_the_same_bits(kind: str, num_workers: int, device: SimulatedDevice) -> None:
    data = make_data()
    wide = torch.randn(data.num_nodes, 9, generator=torch.Generator().manual_seed(1))
    if kind == "bool":
        store = feature_store(wide > 0)
    elif kind == "sparse":
        store = feature_store(wide.relu().to_sparse_csr())
    else:
        store = feature_store(wide, stored_as=None if kind == "float32" else kind)
    topology = Topology.from_edge_index(data.edge_index, data.num_nodes)

    def loader(x: FeatureStore, placement: Any, workers: int) -> PrefetchLoader:
        source = NodeSource(
            NeighborSampler(topology, [4, 3]), BatchBuilder(data, topology, stores={"x": x}), np.arange(35)
        )
        order = SeedOrder(35, 8, shuffle=True, seed=2)
        return PrefetchLoader(source, order, placement=placement, num_workers=workers)

    cached = CachedFeatures(store, np.arange(5, 30), device)
    seen = Seen(cached)
    there, here = loader(cached, DevicePlacement(device), num_workers), loader(store, HostPlacement(), 0)
    for _ in range(3):
        with_cache, without = xs(there), xs(here)
        assert [bits(x) for x in with_cache] == [bits(x) for x in without]
        assert {x.dtype for x in with_cache} == {store.dtype}
    assert (there.stats.cache_lookups, there.stats.cache_hits) == (seen.rows, seen.hits)
    assert seen.rows == there.stats.nodes
    assert there.stats.cache_hit_rate == cached.hit_rate == seen.hits / seen.rows
    assert here.stats.cache_hit_rate is None


def xs(loader: PrefetchLoader) -> Sequence[Tensor]:
    return [batch.x.clone() for batch in loader]
