"""The loading pipeline on a real device: what `test_placement.py` and `test_device_loader.py` show on a simulated one.

`torch.cuda._sleep` holds up a stream for so many cycles of the device's clock.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import (
    BatchBuilder,
    CachedFeatures,
    DevicePlacement,
    GraphDataModule,
    HostPlacement,
    NodeSource,
    PrefetchLoader,
    SeedOrder,
    feature_store,
)
from lightning_gnnopt.loading.cuda_streams import CudaStreams
from lightning_gnnopt.loading.fields import rows_field
from lightning_gnnopt.loading.plan import BatchPlan
from lightning_gnnopt.loading.slabs import SlabPool
from lightning_gnnopt.loading.streams import streams_of
from lightning_gnnopt.sampling import NeighborSampler, Topology

from .graphs import N, make_data, make_loader, prefetch_threads, same_bits
from .modules import Recorder, make_trainer
from .values import ValueSource, value_plan

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and torch finds none"),
]

SECOND = 2_000_000_000
"""Cycles: a second or so, which is longer than the host takes for anything here."""

WORKERS = [0, 1, 2, 5]


@pytest.fixture
def streams() -> Iterator[CudaStreams]:
    streams = streams_of("cuda")
    assert isinstance(streams, CudaStreams)
    yield streams
    torch.cuda.synchronize()
    assert prefetch_threads() == []


class Reader:
    """Reads batches with kernels that start late, without ever waiting for them.

    Attributes:
        seen: The smallest and the largest number of each tensor, as they stood before and after a pause.
    """

    def __init__(self, *, cycles: int = 0) -> None:
        self._cycles = cycles
        self._seen: list[list[Tensor]] = []

    def read(self, tensors: Sequence[Tensor]) -> None:
        extremes: list[Tensor] = []
        for _ in range(2):
            for tensor in tensors:
                extremes += [tensor.amin().double(), tensor.amax().double()]
            if self._cycles:
                torch.cuda._sleep(self._cycles)
        self._seen.append(extremes)

    @property
    def seen(self) -> list[set[float]]:
        torch.cuda.synchronize()
        return [{extreme.item() for extreme in extremes} for extremes in self._seen]


def on_host(batch: Data) -> dict[str, Any]:
    """A batch's attributes; its tensors must be on the device."""
    found = {}
    for name, value in batch.to_dict().items():
        if isinstance(value, Tensor):
            assert value.is_cuda, name
            value = (value.as_tensor() if isinstance(value, EdgeIndex) else value).cpu()
        found[name] = value
    return found


def same(on_device: Data, reference: Data) -> bool:
    left, right = on_host(on_device), reference.to_dict()
    right = {name: value.as_tensor() if isinstance(value, EdgeIndex) else value for name, value in right.items()}
    return left.keys() == right.keys() and all(same_bits(left[name], right[name]) for name in left)


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


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
def test_graph_batches_are_those_of_host_memory(num_workers: int, streams: CudaStreams) -> None:
    there, here = make_loader(num_workers=num_workers, placement=DevicePlacement(streams)), make_loader(num_workers=0)
    for _ in range(3):
        batches = list(zip(there, here, strict=True))
        assert len(batches) == 5
        assert all(same(a, b) for a, b in batches)
    stats = there.stats
    assert (stats.copies, stats.batches) == (15, 15)
    assert stats.moved_bytes > 0
    assert stats.transfer_s > 0


def test_compressed_edges_arrive(streams: CudaStreams) -> None:
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, N)
    source = NodeSource(
        NeighborSampler(topology, [3, 2]), BatchBuilder(data, topology, edge_format="csc"), np.arange(35)
    )
    there = PrefetchLoader(source, SeedOrder(35, 8), placement=DevicePlacement(streams))
    here = PrefetchLoader(source, SeedOrder(35, 8))
    for a, b in zip(there, here, strict=True):
        assert same(a, b)
        assert isinstance(a.edge_index, EdgeIndex)
        (colptr, row), _ = a.edge_index.get_csc()
        col = b.edge_index.as_tensor()[1]
        assert colptr.tolist() == [int((col < v).sum()) for v in range(b.num_nodes + 1)]
        assert row.tolist() == b.edge_index.as_tensor()[0].tolist()


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "bool", "int64", "sparse"])
@pytest.mark.parametrize("num_hot", [0, 10, 50])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_cached_rows_are_the_same_bits(kind: str, num_hot: int, streams: CudaStreams) -> None:
    values = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    if kind in ("bool", "int64"):
        store = feature_store(values > 0 if kind == "bool" else (100 * values).long())
    elif kind == "sparse":
        store = feature_store(values.relu().to_sparse_csr())
    else:
        store = feature_store(values, stored_as=None if kind == "float32" else kind)
    cached = CachedFeatures(store, np.random.default_rng(0).permutation(50)[:num_hot], streams)
    placement = DevicePlacement(streams)
    for ids in (np.arange(50), np.array([7, 7, 0, 49, 7]), np.empty(0, np.int64)):
        expected = store.rows(ids)
        for one in (cached, store):
            (rows,) = placement.place(BatchPlan([rows_field(one, ids)], list, len(ids), 0)).take()
            assert rows.is_cuda
            if kind == "int8":  # a product, which another device may round in another way
                assert torch.allclose(rows.cpu(), expected, rtol=1e-6, atol=0)
            else:
                assert same_bits(rows.cpu(), expected)


def test_taking_batches_never_makes_the_host_wait_in_an_operator(streams: CudaStreams) -> None:
    store = feature_store(torch.randn(N, 5))
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, N, edge_ids=True)
    cached = CachedFeatures(store, np.arange(20), streams)
    builder = BatchBuilder(data, topology, stores={"x": cached}, edge_id=True)
    source = NodeSource(NeighborSampler(topology, [3, 2]), builder, np.arange(35))
    loader = PrefetchLoader(source, SeedOrder(35, 8), placement=DevicePlacement(streams))
    loader.warm_up()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in loader:
            batch.x.sum()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loader.stats.batches == 5


# ---- in a Trainer ----------------------------------------------------------------------------------------------------


def make_gpu_trainer(max_epochs: int = 3, **kwargs: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="gpu", devices=1, max_epochs=max_epochs, enable_model_summary=False, **{**quiet, **kwargs}
    )


def make_datamodule(**kwargs: Any) -> GraphDataModule:
    return GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=5, edge_id=True, **kwargs)


class OnDevice(Recorder):
    """Fails if Lightning has to move anything."""

    @override
    def on_before_batch_transfer(self, batch: Data, dataloader_idx: int) -> Data:
        for name, value in batch.to_dict().items():
            assert not isinstance(value, Tensor) or value.device == self.device, name
        return batch


@pytest.mark.parametrize(
    "options", [{}, {"num_workers": 0}, {"cache": "auto"}, {"cache": 400, "feature_dtype": "float16"}]
)
def test_a_fit_sees_the_batches_of_host_memory_on_its_device(options: dict[str, Any]) -> None:
    module, datamodule = OnDevice(), make_datamodule(**options)
    make_gpu_trainer(3).fit(module, datamodule)
    assert isinstance(datamodule.placement, DevicePlacement)
    assert len(module.batches) == 15
    on_cpu = {name: value for name, value in options.items() if name != "cache"}
    reference, recorded = make_datamodule(**on_cpu), Recorder()
    make_trainer(3).fit(recorded, reference)
    assert all(same(a, b) for (_, _, a), (_, _, b) in zip(module.batches, recorded.batches, strict=True))
    assert all(same(a, b) for a, b in zip(module.validated, recorded.validated, strict=True))
    assert module.losses[0] == pytest.approx(recorded.losses[0], rel=1e-4)  # sums on a device have another order
    assert (datamodule.cached_features is not None) == ("cache" in options)
    assert prefetch_threads() == []


def test_the_datamodule_works_without_a_trainer() -> None:
    there, here = make_datamodule(device="cuda"), make_datamodule()
    for stage in ("train", "val", "test", "predict"):
        loaders = [getattr(datamodule, f"{stage}_dataloader")() for datamodule in (there, here)]
        assert all(same(a, b) for a, b in zip(*loaders, strict=True))


def test_one_side_stream_for_all_epochs_and_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.cuda.Stream] = []
    make_stream: Callable[..., torch.cuda.Stream] = torch.cuda.Stream

    def counted(*args: Any, **kwargs: Any) -> torch.cuda.Stream:
        stream = make_stream(*args, **kwargs)
        if "stream_id" not in kwargs:  # else it stands for one that there is
            made.append(stream)
        return stream

    datamodule = make_datamodule(device="cuda")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", counted)
        placement = datamodule.placement
        for _ in range(10):
            for stage in ("train", "val"):
                for batch in getattr(datamodule, f"{stage}_dataloader")():
                    del batch
        assert datamodule.placement is placement
    assert len(made) == 1


@pytest.mark.parametrize("num_workers", [0, 3])
def test_memory_does_not_grow_over_fifty_epochs(num_workers: int, streams: CudaStreams) -> None:
    sizes = np.random.default_rng(1).integers(50_000, 500_000, 8).tolist()
    loader = PrefetchLoader(
        ValueSource(8, lambda i: value_plan(i, numel=sizes[i])),
        SeedOrder(8, 1, shuffle=True),
        num_workers=num_workers,
        placement=DevicePlacement(streams),
    )

    def epochs(num: int) -> tuple[int, int]:
        for _ in range(num):
            for batch in loader:
                batch[0].sum()
                del batch
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()

    before, after = epochs(5), epochs(45)
    # In the first epochs not all slabs need have come to the size of the largest batch.
    largest_bytes = 2 * max(value_plan(i, numel=size).nbytes for i, size in enumerate(sizes))
    slabs_bytes = loader.placement._slabs.target * largest_bytes
    assert after[0] <= before[0] + slabs_bytes
    assert after[1] <= before[1] + slabs_bytes
    assert epochs(50)[0] <= after[0] + largest_bytes


def test_an_error_leaves_the_device_usable(streams: CudaStreams, monkeypatch: pytest.MonkeyPatch) -> None:
    placement, reader = DevicePlacement(streams), Reader()

    def no_room(nbytes: int) -> Tensor:
        raise torch.cuda.OutOfMemoryError("no room")

    loader = PrefetchLoader(ValueSource(10), SeedOrder(10, 1), placement=placement)
    with monkeypatch.context() as patch:
        patch.setattr(placement._slabs, "_allocate", no_room)
        with pytest.raises(torch.cuda.OutOfMemoryError, match="no room") as caught:
            list(loader)
        assert caught.value.__notes__ == ["This happened while batch 0 of epoch 0 was prepared."]
    for batch in loader:
        reader.read(batch)
        del batch
    assert reader.seen == [{float(i)} for i in range(10)]


def test_host_and_device_placements_may_be_mixed(streams: CudaStreams) -> None:
    loaders = [
        PrefetchLoader(ValueSource(20), SeedOrder(20, 1), placement=placement)
        for placement in (DevicePlacement(streams), HostPlacement())
    ]
    for i, (there, here) in enumerate(zip(*loaders, strict=True)):
        assert there[0].is_cuda
        assert not here[0].is_cuda
        assert there[0].unique().tolist() == here[0].unique().tolist() == [float(i)]
