"""The waits that order host, copies and computing, each with the proof that its absence would show."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator

import pytest
from torch import Tensor

from lightning_gnnopt.loading import DevicePlacement, SimulatedDevice
from lightning_gnnopt.loading.slabs import SlabPool

from .values import DEADLINE_S, Gate, SlowReader, only_one_slab, value_plan


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected() -> Iterator[None]:
    gc.freeze()  # there are so many of torch's and numba's that each collection would take half a second
    yield
    gc.unfreeze()


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


# ---- the three waits -------------------------------------------------------------------------------------------------


def computes_before_the_copy(device: SimulatedDevice, *, early: bool) -> list[set[float]]:
    """Read a batch whose copy is held up; if `early`, the copy goes on only after the kernel has run."""
    placement, reader, gate = DevicePlacement(device), SlowReader(device), Gate()
    device.copies.submit(gate)
    reader.read(placement.place(value_plan(7)).take())
    if early:
        device.synchronize()
    else:
        time.sleep(0.02)  # time enough to go too far
        assert reader.seen == []
    gate.open()
    device.synchronize()
    return reader.seen


def test_compute_waits_for_the_copy(device: SimulatedDevice) -> None:
    assert computes_before_the_copy(device, early=False) == [{7.0}]


def test_without_the_wait_for_the_copy_garbage_is_read(
    device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.current(), "wait", lambda event: None)
    (seen,) = computes_before_the_copy(device, early=True)
    assert 7.0 not in seen


def copies_before_the_kernel_ends(device: SimulatedDevice, *, early: bool) -> list[set[float]]:
    """Bring a second batch to the only slab while a kernel reads the first; if `early`, it arrives before the end."""
    placement, reader, gate = DevicePlacement(device), SlowReader(device), Gate()
    only_one_slab(placement._slabs)
    reader.read(placement.place(value_plan(1)).take(), gate=gate)
    device.copies.record().synchronize()  # it has arrived, and the copies' thread holds nothing of it
    second = placement.place(value_plan(2))  # the first is dropped already
    assert placement._slabs.num_slabs == 1
    assert second.span is not None
    if early:
        second.span[1].synchronize()
    else:
        time.sleep(0.02)
        assert not second.span[1].query()
    gate.open()
    reader.read(second.take())
    device.synchronize()
    return reader.seen


def test_the_copy_waits_for_the_consumer_of_what_was_there(device: SimulatedDevice) -> None:
    assert copies_before_the_kernel_ends(device, early=False) == [{1.0}, {2.0}]


def test_without_the_wait_for_the_consumer_its_batch_is_overwritten(
    device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.copies, "wait", lambda event: None)
    assert copies_before_the_kernel_ends(device, early=True) == [{1.0, 2.0}, {2.0}]


def writes_before_the_copy(device: SimulatedDevice, *, early: bool) -> list[set[float]]:
    """Write a second batch with only one slab of host memory while the first one's copy is held up."""
    placement, reader, gate = DevicePlacement(device), SlowReader(device), Gate()
    only_one_slab(placement._staging)
    device.copies.submit(gate)
    first = placement.place(value_plan(1))
    batches: list[list[Tensor]] = []
    writer = threading.Thread(target=lambda: batches.append(placement.place(value_plan(2)).take()))
    writer.start()
    writer.join(DEADLINE_S if early else 0.02)
    assert writer.is_alive() is not early
    gate.open()
    writer.join()
    for batch in (first.take(), *batches):
        reader.read(batch)
    device.synchronize()
    return reader.seen


def test_the_host_waits_for_the_copy_before_it_writes_again(device: SimulatedDevice) -> None:
    assert writes_before_the_copy(device, early=False) == [{1.0}, {2.0}]


def test_without_the_hosts_wait_the_copy_takes_what_was_written_later(
    device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_back = SlabPool.give_back
    monkeypatch.setattr(SlabPool, "give_back", lambda pool, slab, *, busy=None: give_back(pool, slab, busy=None))
    assert writes_before_the_copy(device, early=True) == [{2.0}, {2.0}]
