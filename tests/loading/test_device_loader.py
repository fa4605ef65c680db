"""`PrefetchLoader` and `GraphDataModule` on the simulated device."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import (
    BatchBuilder,
    DevicePlacement,
    GraphDataModule,
    HostPlacement,
    NodeSource,
    PrefetchLoader,
    SeedOrder,
    SimulatedDevice,
)
from lightning_gnnopt.sampling import NeighborSampler, Subgraph, Topology

from .graphs import F, N, make_data, make_loader, prefetch_threads, same_bits
from .modules import Recorder, make_trainer
from .values import SlowReader, ValueSource, numbers_in, value_plan

WORKERS = [0, 1, 2, 5]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert prefetch_threads() == []


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    """The host computes: batches may be looked at as soon as they are taken."""
    with SimulatedDevice(host_computes=True) as device:
        yield device


def tensors_of(batch: Data) -> dict[str, Tensor]:
    return {name: value for name, value in batch.to_dict().items() if isinstance(value, Tensor)}


def same(a: Data, b: Data) -> bool:
    left, right = a.to_dict(), b.to_dict()
    return left.keys() == right.keys() and all(same_bits(left[name], right[name]) for name in left)


# ---- corruption ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
@pytest.mark.parametrize("prefetch_factor", [1, 2])
def test_batch_i_carries_i_however_late_it_is_read(num_workers: int, prefetch_factor: int) -> None:
    dice = random.Random(10 * num_workers + prefetch_factor)
    pauses = [dice.choice([0.0, 0.0, 0.0005, 0.002]) for _ in range(997)]
    sizes = [dice.randint(100, 3000) for _ in range(30)]

    def plan(i: int) -> Any:
        return value_plan(i, numel=sizes[i], write=lambda i: time.sleep(pauses[31 * i % 997]))

    with SimulatedDevice(bytes_per_s=5e7, copy_delay_s=lambda nbytes: pauses[nbytes % 997]) as device:
        reader = SlowReader(device)
        loader = PrefetchLoader(
            ValueSource(30, plan),
            SeedOrder(30, 1, shuffle=True, seed=1),
            num_workers=num_workers,
            prefetch_factor=prefetch_factor,
            placement=DevicePlacement(device),
        )
        expected: list[set[float]] = []
        for epoch in range(2):
            expected += [{float(i)} for i in loader.order.epoch(epoch)]
            for step, batch in enumerate(loader):
                reader.read(batch, seconds=pauses[7 * step % 997])
                del batch
        device.synchronize()
    assert reader.seen == expected


@pytest.mark.parametrize("num_workers", WORKERS)
def test_graph_batches_read_late_are_those_of_host_memory(num_workers: int) -> None:
    expected = [tensors_of(batch) for _ in range(2) for batch in make_loader(num_workers=0)]
    pauses = random.Random(5).choices([0.0, 0.001, 0.003], k=100)
    read: list[list[Tensor]] = []

    def kernel(*bare: Tensor) -> None:
        time.sleep(pauses[len(read)])
        read.append([tensor.clone() for tensor in bare])

    with SimulatedDevice(copy_delay_s=lambda nbytes: pauses[nbytes % 100]) as device:
        placement = DevicePlacement(device)
        for _ in range(2):
            for batch in make_loader(num_workers=num_workers, placement=placement):
                tensors = tensors_of(batch)
                assert list(tensors) == list(expected[0])
                device.compute(kernel, *tensors.values())
                del batch, tensors
        device.synchronize()
    assert len(read) == len(expected) == 10
    for found, wanted in zip(read, expected, strict=True):
        assert all(map(same_bits, found, wanted.values()))


# ---- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
def test_batches_on_the_device_are_the_same_bits(num_workers: int, device: SimulatedDevice) -> None:
    there, here = make_loader(num_workers=num_workers, placement=DevicePlacement(device)), make_loader(num_workers=0)
    for _ in range(3):
        on_device, on_host = list(there), list(here)
        assert len(on_device) == len(on_host) == 5
        assert all(map(same, on_device, on_host))


def csc_loader(placement: Any, *, num_neighbors: tuple[int, ...] = (3, 2), **builder: Any) -> PrefetchLoader:
    data = make_data()
    topology = Topology.from_edge_index(data.edge_index, N, edge_ids=True)
    source = NodeSource(
        NeighborSampler(topology, num_neighbors), BatchBuilder(data, topology, **builder), np.arange(35)
    )
    return PrefetchLoader(source, SeedOrder(35, 8, shuffle=True, seed=5), placement=placement)


def test_compressed_edges_travel_and_arrive(device: SimulatedDevice) -> None:
    on_host = list(csc_loader(None, edge_format="csc"))
    on_device = list(csc_loader(DevicePlacement(device), edge_format="csc"))
    as_pairs = list(csc_loader(DevicePlacement(device)))
    for host, there, pairs in zip(on_host, on_device, as_pairs, strict=True):
        assert isinstance(there.edge_index, EdgeIndex)
        assert there.edge_index.dtype == torch.int64
        assert there.edge_index.is_sorted_by_col
        assert torch.equal(there.edge_index.as_tensor(), host.edge_index.as_tensor())
        assert there.edge_index.as_tensor().tolist() == pairs.edge_index.tolist()
        assert pairs.edge_index.dtype == torch.int64
        there.edge_index.validate()
        col = pairs.edge_index[1]
        expected = [int((col < v).sum()) for v in range(there.num_nodes + 1)]
        (colptr, row), _ = there.edge_index.get_csc()
        assert colptr.tolist() == expected
        assert row.tolist() == pairs.edge_index[0].tolist()


def test_a_batch_that_is_kept_is_the_consumers_own_and_the_slabs_go_again(device: SimulatedDevice) -> None:
    placement = DevicePlacement(device)
    loader = PrefetchLoader(ValueSource(40), SeedOrder(40, 1), placement=placement)
    for batch in loader:
        del batch
    assert placement._slabs.num_slabs <= placement._slabs.target == 6
    kept = list(loader)
    gc.collect()
    assert [numbers_in(batch) for batch in kept] == [{float(i)} for i in range(40)]
    assert placement._slabs.num_slabs >= 40
    assert len({batch[0].data_ptr() for batch in kept}) == 40
    del kept
    for batch in loader:
        del batch
    assert placement._slabs.num_slabs <= 6


def test_lists_of_batches_in_host_memory_do_not_share_it() -> None:
    """Each large enough to lie in a slab."""
    placement = HostPlacement()
    loader = PrefetchLoader(
        ValueSource(8, lambda i: value_plan(i, numel=200_000)), SeedOrder(8, 1), placement=placement
    )
    for _ in range(2):
        kept = list(loader)
        assert [numbers_in(batch) for batch in kept] == [{float(i)} for i in range(8)]
        assert placement._pool.num_slabs >= 8
        del kept
        for i, batch in enumerate(loader):
            assert numbers_in(batch) == {float(i)}
            del batch
        assert placement._pool.num_slabs <= placement._pool.target


def test_a_dropped_batch_is_whole_in_the_backward_pass(device: SimulatedDevice) -> None:
    """Gradient accumulation keeps what autograd saved of many batches, and nothing else of them."""
    for placement in (DevicePlacement(device), HostPlacement()):
        numel = 200_000
        loader = PrefetchLoader(
            ValueSource(8, lambda i, numel=numel: value_plan(i, numel=numel)), SeedOrder(8, 1), placement=placement
        )
        weights = [torch.ones(numel, requires_grad=True) for _ in range(8)]
        loss = torch.zeros(())
        for weight, batch in zip(weights, loader, strict=True):
            loss = loss + (batch[0] * weight).sum()
            batch[2].add_(1)  # in place, of another tensor
            del batch
        for batch in loader:
            del batch
        loss.backward()
        assert [numbers_in([weight.grad]) for weight in weights if weight.grad is not None] == [
            {float(i)} for i in range(8)
        ]


# ---- errors and places -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", WORKERS)
def test_an_error_of_a_transform_names_its_batch(num_workers: int, device: SimulatedDevice) -> None:
    def refuse(subgraph: Subgraph, resample: Callable[[int], Subgraph]) -> Subgraph:
        if subgraph.batch_size == 3:
            raise RuntimeError("three are too few")
        return subgraph

    loader = make_loader(transforms=[refuse], num_workers=num_workers, placement=DevicePlacement(device))
    received: list[Data] = []
    with pytest.raises(RuntimeError, match="three are too few") as caught:
        received.extend(loader)
    assert caught.value.__notes__ == ["This happened while batch 4 of epoch 0 was prepared."]
    assert all(map(same, received, list(make_loader(num_workers=0))[:4]))
    assert any(entry.name == "refuse" for entry in caught.traceback)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_loader_delivers_the_rest(num_workers: int, device: SimulatedDevice) -> None:
    placement = DevicePlacement(device)
    loader = make_loader(num_workers=num_workers, placement=placement)
    iterator = iter(loader)
    first = list(islice(iterator, 2))
    state = loader.state_dict()
    iterator.close()
    resumed = make_loader(num_workers=num_workers, placement=placement)
    resumed.load_state_dict(state)
    assert all(map(same, [*first, *resumed], make_loader(num_workers=0)))


def test_warming_up_is_not_a_pass(device: SimulatedDevice) -> None:
    loader = make_loader(placement=DevicePlacement(device))
    loader.warm_up()
    assert (loader.stats.batches, len(device.copied_bytes)) == (0, 1)
    assert loader.state_dict()["batch"] == 0
    assert all(map(same, loader, make_loader(num_workers=0)))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_was_moved_is_counted(num_workers: int, device: SimulatedDevice) -> None:
    loader = make_loader(num_workers=num_workers, placement=DevicePlacement(device))
    batches = list(loader)
    stats = loader.stats
    assert stats.copies == stats.batches == len(device.copied_bytes) == 5
    assert stats.moved_bytes == sum(device.copied_bytes)
    assert stats.nbytes == sum(tensor.nbytes for batch in batches for tensor in tensors_of(batch).values())
    assert stats.transfer_s > 0
    assert (stats.cache_lookups, stats.cache_hits, stats.cache_hit_rate) == (0, 0, None)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_the_depth_of_the_queue_is_a_mean(num_workers: int) -> None:
    """A slow consumer finds all that may be ahead; only the first and the last batches find less."""
    loader = PrefetchLoader(ValueSource(20), SeedOrder(20, 1), num_workers=num_workers, prefetch_factor=1)
    for received, batch in enumerate(loader, 1):
        del batch
        left = min(num_workers, 20 - received)
        assert loader.stats.batches == received
        time.sleep(0.01 if left else 0.0)
    assert loader.stats.queue_depth == loader.stats.queued / 20
    assert 0 < loader.stats.queue_depth <= num_workers


# ---- the DataModule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"feature_dtype": "float16"},
        {"feature_dtype": "int8"},
        {"cache": 10 * F * 4},
        {"cache": 10 * F, "feature_dtype": "int8", "cache_policy": "degree"},
        {"cache": 10**6, "cache_policy": "presample"},
        {"edge_format": "csc"},
    ],
)
def test_the_datamodules_batches_are_the_same_bits(options: dict[str, Any], device: SimulatedDevice) -> None:
    def make(where: Any, **more: Any) -> GraphDataModule:
        return GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, device=where, **more)

    there = make(device, **options)
    here = make(None, **{name: value for name, value in options.items() if not name.startswith("cache")})
    assert isinstance(there.placement, DevicePlacement)
    for stage in ("train", "val", "test", "predict"):
        loaders = [getattr(datamodule, f"{stage}_dataloader")() for datamodule in (there, here)]
        assert loaders[0].placement is there.placement
        for _ in range(2):
            pairs = list(zip(*loaders, strict=True))
            assert len(pairs) == len(loaders[0])
            assert all(same(a, b) for a, b in pairs)
        stats = loaders[0].stats
        assert stats.copies == stats.batches
        if "cache" in options:
            assert there.cached_features is not None
            assert stats.cache_lookups == stats.nodes
            assert 0 < stats.cache_hits <= stats.cache_lookups
            assert stats.cache_hit_rate == stats.cache_hits / stats.nodes


@pytest.mark.parametrize("cache", [0, 10 * F * 4])
def test_training_on_the_device_is_the_same_to_the_bit(cache: int, device: SimulatedDevice) -> None:
    losses = []
    for where in (None, device):
        module = Recorder()
        options = {} if where is None else {"cache": cache}
        datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, seed=5, device=where, **options)
        make_trainer(3).fit(module, datamodule)
        losses.append(module.losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 15


def test_accumulated_gradients_are_the_same_to_the_bit(device: SimulatedDevice) -> None:
    class Keeps(Recorder):
        @override
        def training_step(self, batch: Data, batch_idx: int) -> Tensor:
            loss = self._loss(batch)
            self.losses.append(loss.item())
            return loss

    losses = []
    for where in (None, device):
        module = Keeps()
        datamodule = GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=4, seed=5, device=where)
        make_trainer(4, accumulate_grad_batches=3).fit(module, datamodule)
        losses.append(module.losses)
    assert losses[0] == losses[1]
