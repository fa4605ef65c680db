"""Who holds a slab: threads that return and lend it at once, small tensors that outlive it; memory that is short."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import DevicePlacement, HostPlacement, SimulatedDevice, slabs
from lightning_gnnopt.loading.placement import _host_memory
from lightning_gnnopt.loading.slabs import Slab, SlabPool

from .graphs import N, make_data, make_loader, prefetch_threads, same_batches
from .values import DEADLINE_S, numbers_in, value_plan

SMALL_SHARE = 1 / 8


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected() -> Iterator[None]:
    gc.freeze()  # there are so many of torch's and numba's that each collection would take half a second
    yield
    gc.unfreeze()
    assert prefetch_threads() == []


# ---- races -----------------------------------------------------------------------------------------------------------


class Eager(deque[Slab]):
    """Switches threads where CPython may: what returns is lent by another thread at once.

    Attributes:
        lent: What the other thread has lent.
        slab: Its slab, which nothing here keeps.
    """

    def __init__(self, pool: SlabPool) -> None:
        super().__init__()
        self._pool = pool
        self.lent: Tensor | None = None
        self.slab: weakref.ref[Slab] | None = None

    @override
    def append(self, slab: Slab) -> None:
        super().append(slab)
        if self.slab is None:
            thread = threading.Thread(target=self._lend)
            thread.start()
            thread.join(DEADLINE_S)

    def _lend(self) -> None:
        slab = self._pool.acquire(100)
        self.slab = weakref.ref(slab)
        self.lent = slab.lend(self._pool)


def test_a_slab_that_another_thread_lends_while_it_returns_is_not_lost() -> None:
    pool = SlabPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), target=1)
    returned = pool.returned = Eager(pool)
    first = pool.acquire(100)
    address, memory, tensor = first.memory.data_ptr(), weakref.ref(first.memory), first.lend(pool)
    del first
    del tensor  # in this thread it returns, and in the other it is lent again
    gc.collect()
    assert returned.lent is not None
    assert returned.lent.data_ptr() == address
    assert returned.slab is not None
    slab = returned.slab()
    assert slab in slabs._LENT
    assert memory() is not None
    assert pool.num_waiting == 0
    del slab
    returned.lent = None
    gc.collect()
    assert (pool.num_waiting, pool.num_slabs) == (1, 1)
    again = pool.acquire(100)
    assert again is returned.slab()
    assert again not in slabs._LENT


def test_a_lease_keeps_the_memory_that_it_stands_for() -> None:
    """On a CUDA device a tensor over it knows an address only."""
    memory = torch.arange(9, dtype=torch.uint8)
    alive, address = weakref.ref(memory), memory.data_ptr()
    lease = slabs._Lease(memory)
    del memory
    gc.collect()
    assert alive() is not None
    assert lease.__cuda_array_interface__["data"] == (address, False)
    del lease
    assert alive() is None


def test_a_stream_that_cannot_record_loses_no_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def record(self) -> None:
            raise RuntimeError("a sticky error")

    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: seen.append(str(what.exc_value)))
    pool = SlabPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), target=1)
    slab = pool.acquire(100)
    tensor = slab.lend(pool)
    slab.reader = Broken()  # type: ignore[assignment]
    del tensor
    assert seen == ["a sticky error"]
    assert slab not in slabs._LENT
    assert slab.reader is None
    assert (pool.num_waiting, pool.num_slabs) == (1, 1)
    assert pool.acquire(100) is slab


# ---- small tensors ---------------------------------------------------------------------------------------------------


def wide_data() -> Data:
    """Rows of 1600 bytes, beside which everything else is small."""
    data = make_data()
    data.x = torch.randn(N, 400, generator=torch.Generator().manual_seed(0))
    return data


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(host_computes=True) as device:
        yield device


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_who_keeps_a_small_tensor_keeps_no_slab(num_workers: int, device: SimulatedDevice) -> None:
    """As metrics with list states and predictions do."""
    placement = DevicePlacement(device)
    options: dict[str, Any] = {"batch_size": 2, "num_workers": num_workers}
    loader = make_loader(wide_data(), placement=placement, **options)
    reference = list(make_loader(wide_data(), **options))
    kept = [batch.y[: batch.batch_size] for batch in loader]
    target = max(1, num_workers * 2) + 2
    assert placement._slabs.target == target < len(kept) == 18
    assert placement._slabs.num_slabs <= target
    for batch in loader:  # the slabs are written over and over
        del batch
    assert [y.tolist() for y in kept] == [batch.y[: batch.batch_size].tolist() for batch in reference]
    assert placement._slabs.num_slabs <= target


def test_small_tensors_of_a_batch_share_memory_of_their_own(device: SimulatedDevice) -> None:
    loader = make_loader(wide_data(), placement=DevicePlacement(device), num_workers=2)
    reference = make_loader(wide_data())
    batches = list(loader)
    for batch in batches:
        tensors = {name: value for name, value in batch.to_dict().items() if isinstance(value, Tensor)}
        total = sum(tensor.nbytes for tensor in tensors.values())
        small = [name for name, tensor in tensors.items() if tensor.nbytes < SMALL_SHARE * total]
        assert {"y", "n_id", "input_id", "e_id", "train_mask"} <= set(small)
        assert "x" not in small
        (own,) = {storage_of(tensors[name]) for name in small}
        assert own not in {storage_of(tensor) for name, tensor in tensors.items() if name not in small}
    assert len({storage_of(batch.y) for batch in batches}) == len(batches)
    assert loader.stats.copies == len(device.copied_bytes) == len(batches) == 5
    assert same_batches(batches, list(reference))


def test_the_consumers_stream_reads_both_memories(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the allocator would give what is dropped to the next batch while a step still reads it."""
    noted: list[int] = []
    monkeypatch.setattr(device.current(), "reads", lambda memory: noted.append(storage_of(memory)))
    placed = DevicePlacement(device).place(value_plan(3))
    assert placed.slab is not None
    slab = storage_of(placed.slab.memory)
    rows, few, _ = placed.take()
    assert noted == [slab, storage_of(few)]
    assert rows.data_ptr() == slab  # through a storage of its own
    assert numbers_in([rows, few]) == {3.0}


# ---- allocation ------------------------------------------------------------------------------------------------------


class Allocator:
    """Has room for so many bytes, and forgets what is freed."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.asked: list[int] = []
        self._sizes: dict[weakref.ref[Tensor], int] = {}

    def __call__(self, nbytes: int) -> Tensor:
        self.asked.append(nbytes)
        used = sum(self._sizes[ref] for ref in self._sizes if ref() is not None)
        if used + nbytes > self.nbytes:
            raise torch.OutOfMemoryError(f"{used} bytes are in use")
        memory = torch.empty(nbytes, dtype=torch.uint8)
        self._sizes[weakref.ref(memory)] = nbytes
        return memory


def test_idle_slabs_make_room_where_memory_is_short() -> None:
    allocate = Allocator(20_000)
    pool = SlabPool(allocate, target=5)
    lent = pool.acquire(100).lend(pool).fill_(7)
    idle = [pool.acquire(100) for _ in range(2)]
    while idle:
        pool.give_back(idle.pop())
    assert (pool.num_slabs, pool.nbytes) == (3, 3 * 4096)
    large = pool.acquire(10_000)  # 12,288 bytes beside the 12,288 that there are
    assert len(large.memory) == 12_288
    assert allocate.asked == [4096] * 3 + [12_288] * 2
    assert (pool.num_slabs, pool.num_waiting, pool.nbytes) == (2, 0, 4096 + 12_288)
    assert numbers_in([lent]) == {7.0}


def test_memory_is_asked_for_twice_and_no_more() -> None:
    allocate = Allocator(10_000)
    pool = SlabPool(allocate, target=5)
    lent = pool.acquire(100).lend(pool)
    with pytest.raises(torch.OutOfMemoryError, match=r"^4096 bytes are in use$"):
        pool.acquire(10_000)
    assert allocate.asked == [4096, 12_288, 12_288]
    assert (pool.num_slabs, pool.nbytes) == (1, 4096)
    del lent
    assert pool.num_waiting == 1


def test_host_slabs_start_at_multiples_of_two_cache_lines() -> None:
    sizes = [1, 100, 5000, 100_000, 1 << 20, (5 << 20) + 3]
    memories = [_host_memory(nbytes) for nbytes in sizes for _ in range(3)]
    assert [len(memory) for memory in memories[::3]] == sizes
    assert {memory.data_ptr() % 128 for memory in memories} == {0}
    for memory in memories:
        memory.fill_(1)  # all of it is there


def test_large_tensors_in_host_memory_start_there_too() -> None:
    placement = HostPlacement()
    for _ in range(3):
        rows, _, ids = placement.place(value_plan(3, numel=1 << 20)).take()
        assert (rows.data_ptr() % 128, ids.data_ptr() % 128) == (0, 0)
        assert numbers_in([rows[-9:], ids[-9:]]) == {3.0}
