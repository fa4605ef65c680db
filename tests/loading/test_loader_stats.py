"""What a loader says that its batches cost: seconds of transfers, and of nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_gnnopt.analysis import RunSummary
from lightning_gnnopt.loading import DevicePlacement, GraphDataModule, PrefetchLoader, SimulatedDevice, simulated
from lightning_gnnopt.loading import pipeline as pipeline_module
from lightning_gnnopt.loading import placement as placement_module
from lightning_gnnopt.loading.seeds import SeedOrder

from .graphs import make_data, make_loader, prefetch_threads, same_batches
from .modules import Recorder, make_trainer
from .values import ValueSource

COPY_S = 0.05


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert prefetch_threads() == []


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the device's clock stand still but for what copies take."""
    monkeypatch.setattr(simulated, "time", SimpleNamespace(perf_counter=lambda: 0.0, sleep=lambda s: None))


# ---- transfers -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_trainers_last_transfers_are_counted(num_workers: int) -> None:
    """Lightning knows how many batches there are, and does not ask for one too many."""
    summary = RunSummary()
    with SimulatedDevice(host_computes=True, copy_delay_s=lambda nbytes: COPY_S) as device:
        datamodule = GraphDataModule(
            make_data(), num_neighbors=[3, 2], batch_size=18, seed=5, num_workers=num_workers, device=device
        )
        trainer = make_trainer(2, callbacks=[summary])
        trainer.fit(Recorder(), datamodule)
        for loader, copies in ((trainer.train_dataloader, 4), (trainer.val_dataloaders, 3)):
            stats = loader.stats
            assert (stats.batches, stats.copies) == (copies, copies)
            assert stats.transfer_s == pytest.approx(COPY_S * copies, rel=1e-6)
            assert loader.stats.transfer_s == stats.transfer_s  # nothing is counted twice
    assert len(summary.epochs) == 2
    for epoch in summary.epochs:
        assert epoch.loader is not None
        assert epoch.loader.copies == 2
        assert epoch.loader.transfer_s == pytest.approx(2 * COPY_S, rel=1e-6)
    moving = summary._rows()["Moving it"]
    assert moving.startswith("50.0 ms, ")
    assert moving.endswith(" in 1 copy")


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_passes_that_are_left_early_are_counted_up_to_there(num_workers: int) -> None:
    with SimulatedDevice(copy_delay_s=lambda nbytes: COPY_S) as device:
        loader = make_loader(placement=DevicePlacement(device), num_workers=num_workers)
        for taken in (2, 1, 5):
            before = loader.stats.copy()
            batches = iter(loader)
            for _ in itertools.islice(batches, taken):
                pass
            batches.close()
            device.copies.record().synchronize()
            counted = loader.stats - before
            assert counted.copies == taken
            assert counted.transfer_s == pytest.approx(taken * COPY_S, rel=1e-6)


def test_waiting_for_host_memory_is_no_slicing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock goes only where the host waits for a copy out of it, a second each time."""
    now_s = [0.0]
    clock = SimpleNamespace(perf_counter=lambda: now_s[0])
    waited: list[float] = []

    def synchronize(event: simulated._SimulatedEvent) -> None:
        event._reached.wait()
        now_s[0] += 1.0
        waited.append(now_s[0])

    monkeypatch.setattr(pipeline_module, "time", clock)
    monkeypatch.setattr(placement_module, "time", clock)
    monkeypatch.setattr(simulated._SimulatedEvent, "synchronize", synchronize)
    monkeypatch.setattr(simulated._SimulatedEvent, "query", lambda event: False)  # copies always seem to go on
    with SimulatedDevice() as device:
        placement = DevicePlacement(device)
        loader = PrefetchLoader(ValueSource(12), SeedOrder(12, 1), num_workers=1, placement=placement)
        for batch in loader:
            del batch
        num_staging = placement._staging.num_slabs
        assert num_staging == placement._staging.target == 3
        assert len(waited) == 12 - num_staging  # each batch but those that found a slab of their own
        assert (loader.stats.sample_s, loader.stats.slice_s) == (0.0, 0.0)
        assert loader.stats.batches == loader.stats.copies == 12


# ---- a device that carries nothing -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("carries", [True, False])
def test_copies_take_their_time_whether_or_not_they_are_made(carries: bool) -> None:
    source, target = torch.arange(100, dtype=torch.uint8), torch.full((100,), 255, dtype=torch.uint8)
    with SimulatedDevice(bytes_per_s=1000, copy_delay_s=lambda nbytes: COPY_S, carries=carries) as device:
        start = device.copies.record()
        device.copies.submit(lambda: target.copy_(source), nbytes=100)
        device.copies.submit(lambda: target[:1].fill_(9))
        end = device.copies.record()
        end.synchronize()
        assert end.elapsed_s(start) == pytest.approx(100 / 1000 + COPY_S, rel=1e-9)
        assert device.copied_bytes == [100]
        device.compute(lambda ones: ones.add_(1), ones := torch.ones(3))  # what is computed is computed
        device.synchronize()
    assert ones.tolist() == [2.0] * 3
    expected = torch.cat([torch.tensor([9], dtype=torch.uint8), source[1:]])
    assert torch.equal(target, expected if carries else torch.full_like(target, 255))


@pytest.mark.usefixtures("frozen")
def test_a_loader_counts_the_same_where_nothing_is_carried() -> None:
    counted: list[tuple[Any, ...]] = []
    shapes: list[Any] = []
    for carries in (True, False):
        with SimulatedDevice(bytes_per_s=1e6, carries=carries, host_computes=True) as device:
            loader = make_loader(placement=DevicePlacement(device), num_workers=2)
            batches = list(loader)
            stats = loader.stats
            counted.append((stats.copies, stats.moved_bytes, stats.nbytes, sorted(device.copied_bytes)))
            shapes.append([{name: tuple(batch[name].shape) for name in ("x", "y", "edge_index")} for batch in batches])
            assert sum(device.copied_bytes) == stats.moved_bytes > 0
            assert stats.transfer_s == pytest.approx(stats.moved_bytes / 1e6, rel=1e-6)
            assert same_batches(batches, list(make_loader())) == carries
    assert counted[0] == counted[1]
    assert shapes[0] == shapes[1]
