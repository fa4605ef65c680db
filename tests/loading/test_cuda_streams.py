"""Streams, slabs and waits on a real device: what `test_placement.py` and the files beside it show on a simulated one.

`torch.cuda._sleep` holds up a stream for so many cycles of the device's clock.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from lightning_gnnopt.loading import DevicePlacement, PrefetchLoader, SeedOrder
from lightning_gnnopt.loading.cuda_streams import CudaStreams
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.loading.slabs import SlabPool
from lightning_gnnopt.loading.streams import streams_of

from .cuda_reader import SECOND, Reader
from .graphs import prefetch_threads
from .values import ValueSource, value_plan

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

WORKERS = [0, 1, 2, 5]


@pytest.fixture
def streams() -> Iterator[CudaStreams]:
    streams = streams_of("cuda")
    assert isinstance(streams, CudaStreams)
    yield streams
    torch.cuda.synchronize()
    assert prefetch_threads() == []


# ---- streams and slabs -----------------------------------------------------------------------------------------------


def test_a_device_without_an_index_is_the_current_one(streams: CudaStreams) -> None:
    assert streams.device == torch.device("cuda", torch.cuda.current_device())
    free_bytes = streams.free_bytes()
    assert free_bytes is not None
    assert 0 < free_bytes <= torch.cuda.get_device_properties(streams.device).total_memory


def test_host_memory_is_pinned_and_the_devices_is_the_devices(streams: CudaStreams) -> None:
    assert streams.host_memory(100).is_pinned()
    memory = streams.device_memory(100)
    assert (memory.device, memory.dtype, memory.shape) == (streams.device, torch.uint8, (100,))


def test_events_tell_the_order_and_the_seconds(streams: CudaStreams) -> None:
    start = streams.copies.record()
    streams.copies.submit(lambda: torch.cuda._sleep(SECOND // 20))
    end = streams.copies.record()
    assert not end.query()
    end.synchronize()
    assert end.query()
    assert end.elapsed_s(start) > 0


def test_a_slab_on_the_device_returns_with_its_last_tensor(streams: CudaStreams) -> None:
    pool = SlabPool(streams.device_memory, target=2)
    slab = pool.acquire(100)
    address = slab.memory.data_ptr()
    tensor = slab.lend(pool)
    assert (tensor.data_ptr(), tensor.device) == (address, streams.device)
    view = tensor[3:9]
    del tensor, slab
    gc.collect()  # takes no slab that is lent
    assert pool.num_waiting == 0
    del view
    assert pool.num_waiting == 1
    assert pool.acquire(100).memory.data_ptr() == address


def test_a_thread_may_drop_the_last_tensor(streams: CudaStreams) -> None:
    pool = SlabPool(streams.device_memory, target=2)
    held = [pool.acquire(100).lend(pool)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert pool.num_waiting == 1


# ---- the three waits, each with the proof that its absence would show ------------------------------------------------


def nothing(*args: Any, **kwargs: Any) -> None:
    """Stands for a wait that is left out."""


def full_of(value: int) -> BatchPlan:
    """Large enough that its copy reads host memory when it runs and not when it is submitted."""
    return value_plan(value, numel=1_000_000)


def warm_up(placement: DevicePlacement) -> None:
    """Allocate memory and load kernels, both of which may wait for all that the device was told to do."""
    reader = Reader()
    for _ in range(2):
        reader.read(placement.place(full_of(1)).take())
        torch.cuda.synchronize()
    assert reader.seen == [{1.0}, {1.0}]


@pytest.mark.parametrize("broken", [False, True])
def test_compute_waits_for_the_copy(streams: CudaStreams, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    placement, reader = DevicePlacement(streams), Reader()
    placement._slabs.target = 1
    warm_up(placement)  # other numbers stand in the slab now
    streams.copies.submit(lambda: torch.cuda._sleep(SECOND))
    placed = placement.place(full_of(7))
    if broken:
        monkeypatch.setattr(type(streams.copies), "wait", nothing)
    reader.read(placed.take())
    torch.cuda.current_stream().synchronize()
    assert placement._slabs.num_slabs == 1
    assert reader.seen == [{1.0} if broken else {7.0}]


@pytest.mark.parametrize("broken", [False, True])
def test_the_copy_waits_for_the_consumer(streams: CudaStreams, broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    placement, reader = DevicePlacement(streams), Reader()
    placement._slabs.target = 1
    warm_up(placement)
    batch = placement.place(full_of(1)).take()
    streams.copies.record().synchronize()
    torch.cuda._sleep(SECOND)
    reader.read(batch)
    del batch
    if broken:
        monkeypatch.setattr(streams.copies, "wait", nothing)
    second = placement.place(full_of(2))
    assert second.span is not None
    second.span[1].synchronize()
    reader.read(second.take())
    assert placement._slabs.num_slabs == 1
    assert reader.seen == [{2.0} if broken else {1.0}, {2.0}]


@pytest.mark.parametrize("broken", [False, True])
def test_the_host_waits_before_it_writes_again(
    streams: CudaStreams, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    placement, reader = DevicePlacement(streams), Reader()
    placement._staging.target = 1
    warm_up(placement)
    if broken:
        give_back = SlabPool.give_back
        monkeypatch.setattr(SlabPool, "give_back", lambda pool, slab, *, busy=None: give_back(pool, slab, busy=None))
    streams.copies.submit(lambda: torch.cuda._sleep(SECOND))
    placed = [placement.place(full_of(value)) for value in (1, 2)]
    for one in placed:
        reader.read(one.take())
    assert reader.seen == [{2.0} if broken else {1.0}, {2.0}]


# ---- corruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("prefetch_factor", [1, 3])
def test_batch_i_carries_i_however_late_it_is_read(
    num_workers: int, prefetch_factor: int, streams: CudaStreams
) -> None:
    sizes = np.random.default_rng(0).integers(100, 300_000, 60).tolist()
    placement, reader = DevicePlacement(streams), Reader(cycles=1_000_000)
    loader = PrefetchLoader(
        ValueSource(60, lambda i: value_plan(i, numel=sizes[i])),
        SeedOrder(60, 1, shuffle=True),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        placement=placement,
    )
    expected: list[set[float]] = []
    for epoch in range(2):
        expected += [{float(i)} for i in loader.order.epoch(epoch)]
        torch.cuda._sleep(SECOND // 10)  # the host is ahead from here on
        for batch in loader:
            reader.read(batch)
            del batch
    assert reader.seen == expected
    assert placement._slabs.num_slabs <= placement._slabs.target


def test_the_consumer_may_compute_on_a_stream_of_its_own(streams: CudaStreams) -> None:
    reader = Reader(cycles=1_000_000)
    loader = PrefetchLoader(ValueSource(40), SeedOrder(40, 1), placement=DevicePlacement(streams))
    with torch.cuda.stream(torch.cuda.Stream()):
        for batch in loader:
            reader.read(batch)
            del batch
    assert reader.seen == [{float(i)} for i in range(40)]


def test_slabs_may_go_while_kernels_still_read_them(streams: CudaStreams) -> None:
    placement, reader = DevicePlacement(streams), Reader()
    for i in range(20):
        batch = placement.place(value_plan(i, numel=1000 * (i + 1))).take()  # each too large for the slabs before
        torch.cuda._sleep(5_000_000)
        reader.read(batch)
        del batch
        placement.trim()
        torch.empty(4 << 20, dtype=torch.uint8, device="cuda").fill_(255)  # whatever the allocator has to give
    assert reader.seen == [{float(i)} for i in range(20)]


def test_a_kept_batch_is_the_consumers_own(streams: CudaStreams) -> None:
    placement, reader = DevicePlacement(streams), Reader()
    loader = PrefetchLoader(ValueSource(30), SeedOrder(30, 1), placement=placement)
    kept = list(loader)
    for batch in kept:
        reader.read(batch)
    assert reader.seen == [{float(i)} for i in range(30)]
    assert len({batch[0].data_ptr() for batch in kept}) == 30
    del kept, batch
    for batch in loader:
        del batch
    assert placement._slabs.num_slabs <= placement._slabs.target


def test_a_dropped_batch_is_whole_in_the_backward_pass(streams: CudaStreams) -> None:
    """The thread in which autograd runs drops what it had saved."""
    placement = DevicePlacement(streams)
    loader = PrefetchLoader(ValueSource(8), SeedOrder(8, 1), placement=placement)
    weights = [torch.ones(1000, device="cuda", requires_grad=True) for _ in range(8)]
    for _ in range(3):
        loss = torch.zeros((), device="cuda")
        for weight, batch in zip(weights, loader, strict=True):
            loss = loss + (batch[0] * weight).sum()
            batch[2].add_(1)  # in place, of another tensor
            del batch
        for batch in loader:
            del batch
        torch.cuda._sleep(10_000_000)
        loss.backward()
        for batch in loader:  # what was given back meanwhile is read first
            del batch
        for i, weight in enumerate(weights):
            assert weight.grad is not None
            assert weight.grad.unique().tolist() == [float(i)]
            weight.grad = None
        del loss
    for batch in loader:
        del batch
    assert placement._slabs.num_slabs <= placement._slabs.target
