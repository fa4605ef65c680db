"""What is left of loaders, fits and abandoned passes: no thread, no open file, no memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import psutil
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch_geometric.data import Data
from typing_extensions import override

from lightning_gnnopt.loading import (
    DevicePlacement,
    GraphDataModule,
    HostPlacement,
    PrefetchLoader,
    SeedOrder,
    SimulatedDevice,
)
from lightning_gnnopt.loading.placement import Placement
from lightning_gnnopt.loading.slabs import Slab, SlabPool

from .graphs import make_data, make_loader
from .modules import Recorder, make_trainer
from .test_ordered import wait_until
from .values import ValueSource, numbers_in, value_plan

PLACES = ["host", "device"]
ROOT = Path(__file__).resolve().parents[2]
_FILES = Path("/proc/self/fd")


def open_files() -> list[str]:
    """What each descriptor points to; those of the listing itself are gone by the time they are read."""
    found = []
    for name in os.listdir(_FILES) if _FILES.is_dir() else []:
        try:
            found.append(os.readlink(_FILES / name))
        except OSError:
            continue
    return sorted(found)


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice(host_computes=True) as device:
        yield device


@pytest.fixture(autouse=True)
def _no_thread_and_no_file_is_left(device: SimulatedDevice) -> Iterator[None]:
    gc.freeze()  # what there is already need not be searched in each collection
    threads, files = set(threading.enumerate()), open_files()
    yield
    gc.collect()
    wait_until(lambda: set(threading.enumerate()) <= threads)
    if _FILES.is_dir():
        assert open_files() == files
    gc.unfreeze()


def placement_at(place: str, device: SimulatedDevice) -> HostPlacement | DevicePlacement:
    return HostPlacement() if place == "host" else DevicePlacement(device)


def pool_of(placement: Placement) -> SlabPool:
    return placement._pool if isinstance(placement, HostPlacement) else placement._slabs


def settle(placement: Placement, device: SimulatedDevice) -> None:
    """Let what is still copied arrive, and the pool take back what has returned."""
    device.copies.record().synchronize()
    device.copied_bytes.clear()
    assert pool_of(placement).nbytes >= 0


_MODULES = ("lightning_gnnopt", "numpy", "threading", "torch", "weakref")


def live() -> dict[str, int]:
    """Slabs, tensors and all objects that came since the test began."""
    gc.collect()
    kinds = [type(one) for one in gc.get_objects()]
    coverage = sys.modules.get("coverage")
    if coverage is not None and coverage.Coverage.current() is not None:
        # It keeps a tracer, with tables of its own, for every thread that ever was.
        kinds = [kind for kind in kinds if kind.__module__.startswith(_MODULES)]
    return {
        "slabs": sum(kind is Slab for kind in kinds),
        "tensors": sum(issubclass(kind, Tensor) for kind in kinds),
        "objects": len(kinds),
    }


def large_loader(placement: Placement, **kwargs: Any) -> PrefetchLoader:
    """Eight batches of 1.2 to 2.3 MB each: they lie in slabs."""
    source = ValueSource(8, lambda i: value_plan(i, numel=150_000 + 20_000 * (5 * i % 8)))
    return PrefetchLoader(source, SeedOrder(8, 1), placement=placement, **kwargs)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("num_workers", [0, 3])
def test_fifty_epochs_take_no_more_than_a_few(place: str, num_workers: int, device: SimulatedDevice) -> None:
    placement = placement_at(place, device)
    loader = large_loader(placement, num_workers=num_workers)

    def epochs(num: int) -> tuple[dict[str, int], int]:
        for _ in range(num):
            for i, batch in enumerate(loader):
                assert numbers_in(batch) == {float(i)}
                del batch
        settle(placement, device)
        return live(), psutil.Process().memory_info().rss

    before, rss_bytes = epochs(5)
    after, rss_after_bytes = epochs(45)
    assert after["slabs"] <= before["slabs"] + 2  # the first epochs need not have needed all of them at once
    assert after["tensors"] <= before["tensors"] + 4
    assert after["objects"] <= before["objects"] + 100  # a hundredth of what one object for each batch would be
    # All batches together are 630 MB; less than a tenth of that may be the allocator's.
    assert rss_after_bytes - rss_bytes < 45e6
    pool = pool_of(placement)
    assert pool.num_slabs <= pool.target == max(1, 2 * num_workers) + 2


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("num_workers", [0, 2])
def test_abandoned_passes_leave_nothing(place: str, num_workers: int, device: SimulatedDevice) -> None:
    placement = placement_at(place, device)
    loader = large_loader(placement, num_workers=num_workers)

    def abandon(num: int) -> dict[str, int]:
        for number in range(num):
            iterator = iter(loader)
            for i, batch in enumerate(islice(iterator, number % 4)):
                assert numbers_in(batch) == {float(i)}
                del batch
            del iterator
        settle(placement, device)
        return live()

    before = abandon(8)
    after = abandon(40)
    assert after["slabs"] <= before["slabs"] + 2
    assert after["tensors"] <= before["tensors"] + 4
    assert after["objects"] <= before["objects"] + 100
    pool = pool_of(placement)
    assert pool.num_slabs <= pool.target


def test_a_pass_in_a_cycle_ends_with_the_garbage() -> None:
    threads = threading.active_count()
    cycle: list[Any] = [iter(make_loader(num_workers=3, batch_size=1))]
    cycle.append(cycle)
    next(cycle[0])
    assert threading.active_count() == threads + 3
    del cycle
    gc.collect()
    wait_until(lambda: threading.active_count() == threads)


class StopsAt(Callback):
    """Does something in the training step with this number."""

    def __init__(self, step: int, act: Callable[[L.Trainer], None]) -> None:
        self._step, self._act = step, act

    @override
    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Data, batch_idx: int) -> None:
        if trainer.global_step == self._step:
            self._act(trainer)


def interrupt(trainer: L.Trainer) -> None:
    raise KeyboardInterrupt


def fail(trainer: L.Trainer) -> None:
    raise RuntimeError("in the step")


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


FITS: dict[str, tuple[dict[str, Any], Callable[[L.Trainer], None] | None, type[BaseException] | None]] = {
    "whole": ({}, None, None),
    "limited": ({"limit_train_batches": 2, "limit_val_batches": 1}, None, None),
    "stopped": ({}, stop, None),
    "interrupted": ({}, interrupt, SystemExit),  # which Lightning makes of it
    "failed": ({}, fail, RuntimeError),
}


def fit(datamodule: GraphDataModule, kind: str) -> int:
    """Fit a new module for at most three epochs of five batches; return its steps."""
    options, act, error = FITS[kind]
    module = Recorder()
    trainer = make_trainer(3, callbacks=[] if act is None else [StopsAt(6, act)], **options)
    if error is None:
        trainer.fit(module, datamodule)
    else:
        with pytest.raises(error):
            trainer.fit(module, datamodule)
    return len(module.losses)


def make_datamodule(place: str, device: SimulatedDevice, **kwargs: Any) -> GraphDataModule:
    where = None if place == "host" else device
    return GraphDataModule(make_data(), num_neighbors=[3, 2], batch_size=8, device=where, **kwargs)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("kind", "steps"), [("limited", 6), ("stopped", 7), ("interrupted", 6), ("failed", 6)])
def test_a_fit_that_ends_early_leaves_nothing(place: str, kind: str, steps: int, device: SimulatedDevice) -> None:
    threads = set(threading.enumerate())
    datamodule = make_datamodule(place, device, num_workers=3)
    assert fit(datamodule, kind) == steps
    assert set(threading.enumerate()) == threads
    assert fit(datamodule, "whole") == 15  # and the next one finds all in order


@pytest.mark.parametrize("place", PLACES)
def test_twenty_fits_in_one_process_take_no_more_than_a_few(place: str, device: SimulatedDevice) -> None:
    """Half of them with a DataModule of their own, and every kind of end among them."""
    threads = set(threading.enumerate())
    shared, kinds = make_datamodule(place, device), list(FITS)

    def fits(first: int, last: int) -> dict[str, int]:
        for number in range(first, last):
            fit(shared if number % 2 else make_datamodule(place, device), kinds[number % len(kinds)])
            assert set(threading.enumerate()) == threads
        gc.collect()  # the modules, which keep their batches
        settle(shared.placement, device)
        return live()

    before = fits(0, 10)
    after = fits(10, 20)
    assert after["slabs"] <= before["slabs"] + 2
    # A fit records 15 batches of 11 tensors, and its model and optimizer have 24.
    assert after["tensors"] <= before["tensors"] + 10
    assert after["objects"] <= before["objects"] + 500


@pytest.mark.parametrize("place", PLACES)
def test_a_datamodule_that_is_dropped_takes_its_memory_along(place: str, device: SimulatedDevice) -> None:
    def use() -> None:
        datamodule = make_datamodule(place, device, cache=0 if place == "host" else 400)
        for stage in ("train", "val", "predict"):
            for batch in getattr(datamodule, f"{stage}_dataloader")():
                del batch

    use()
    device.copies.record().synchronize()
    device.copied_bytes.clear()
    before = live()
    for _ in range(10):
        use()
        device.copies.record().synchronize()
    device.copied_bytes.clear()
    after = live()
    assert after["slabs"] <= before["slabs"]
    assert after["tensors"] <= before["tensors"]


ENDS_IN_THE_MIDDLE = """
import sys
from lightning_gnnopt.loading import DevicePlacement, HostPlacement, PrefetchLoader, SeedOrder, SimulatedDevice
from tests.loading.values import ValueSource, value_plan

device = SimulatedDevice(host_computes=True)
placement = HostPlacement() if sys.argv[1] == "host" else DevicePlacement(device)
source = ValueSource(200, lambda i: value_plan(i, numel=2_000_000))
iterator = iter(PrefetchLoader(source, SeedOrder(200, 1), num_workers=4, prefetch_factor=20, placement=placement))
batch = next(iterator)
"""


@pytest.mark.parametrize("place", PLACES)
def test_a_script_may_end_while_a_pass_goes_on(place: str) -> None:
    """Its threads end before the interpreter does: one that is in torch by then would take the process down."""
    command = [sys.executable, "-W", "ignore", "-c", ENDS_IN_THE_MIDDLE, place]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_memory_that_a_consumer_kept_is_freed_when_it_is_dropped() -> None:
    """With `list(loader)` there are as many slabs as batches; the pool does not keep them."""
    loader = large_loader(HostPlacement())
    kept = list(loader)
    assert live()["slabs"] >= 8
    del kept
    for batch in loader:
        del batch
    assert live()["slabs"] <= 6
    assert torch.is_grad_enabled()
