"""Batches and fits on a real device: what `test_device_loader.py` shows on a simulated one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from lightning_gnnopt.loading.streams import streams_of
from lightning_gnnopt.sampling import NeighborSampler, Topology

from .cuda_reader import Reader
from .graphs import N, make_data, make_loader, prefetch_threads, same_bits
from .modules import Recorder, make_trainer
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
