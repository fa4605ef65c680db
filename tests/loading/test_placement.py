"""Slabs of a placement on the simulated device, and that none of them is lost to an error."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightning_gnnopt.loading import DevicePlacement, HostPlacement, SimulatedDevice
from lightning_gnnopt.loading.plan import BatchPlan, Field, Part
from lightning_gnnopt.loading.slabs import Slab

from .values import Gate, SlowReader, numbers_in, only_one_slab, value_plan

MIB = 1 << 20


@pytest.fixture(autouse=True)
def _only_new_objects_are_collected() -> Iterator[None]:
    gc.freeze()  # there are so many of torch's and numba's that each collection would take half a second
    yield
    gc.unfreeze()


@pytest.fixture
def device() -> Iterator[SimulatedDevice]:
    with SimulatedDevice() as device:
        yield device


# ---- slabs -----------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_copy_into_one_slab(device: SimulatedDevice) -> None:
    placement = DevicePlacement(device)
    placed = placement.place(value_plan(3, numel=1000))
    batch = placed.take()
    device.synchronize()
    assert numbers_in(batch) == {3.0}
    assert [(tensor.dtype, tuple(tensor.shape)) for tensor in batch] == [
        (torch.float32, (1000,)),
        (torch.uint8, (7,)),
        (torch.int64, (500,)),
    ]
    # 4000 and 7 bytes, then 500 ids of 4 bytes, each begun at a multiple of 128; int64 does not travel
    assert device.copied_bytes == [4096 + 128 + 2000]
    assert (placed.copies, placed.moved_bytes) == (1, 4096 + 128 + 2000)
    first, small, last = (tensor.untyped_storage().data_ptr() for tensor in batch)
    assert first == last != small  # who keeps a small tensor does not keep the slab
    assert all(tensor.data_ptr() % 8 == 0 for tensor in batch)


def test_many_steps_ahead_of_the_device_no_batch_is_touched(device: SimulatedDevice) -> None:
    """The host may submit what it likes: kernels get addresses only, and every batch is dropped at once."""
    placement, reader, gate = DevicePlacement(device), SlowReader(device), Gate()
    placement.expect(6)
    device.compute(lambda bare: gate(), torch.ones(1))
    for i in range(8):  # as many as there are slabs: from then on the host would wait
        reader.read(placement.place(value_plan(i)).take())
    time.sleep(0.02)
    assert reader.seen == []
    gate.open()
    for i in range(8, 60):
        reader.read(placement.place(value_plan(i)).take(), seconds=0.001 * (i % 3))
    device.synchronize()
    assert reader.seen == [{float(i)} for i in range(60)]
    assert placement._slabs.num_slabs == placement._slabs.target == 8
    assert placement._staging.num_slabs <= placement._staging.target == 7


def sizes_of(num: int, seed: int = 0) -> list[int]:
    return torch.randint(100, 5000, (num,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_over_many_batches_of_varying_size_the_slabs_stay_few(device: SimulatedDevice) -> None:
    placement, reader = DevicePlacement(device), SlowReader(device)
    placement.expect(1)
    for i, numel in enumerate(sizes_of(50)):
        reader.read(placement.place(value_plan(i, numel=numel)).take())
        assert placement._slabs.num_slabs <= 3
        assert placement._staging.num_slabs <= 2
    device.synchronize()
    assert reader.seen == [{float(i)} for i in range(50)]


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_consumer_may_keep_all_batches(device: SimulatedDevice, where: str) -> None:
    placement = HostPlacement() if where == "host" else DevicePlacement(device)
    pool = placement._pool if isinstance(placement, HostPlacement) else placement._slabs
    numel = MIB // 2 if where == "host" else 1000
    kept = [placement.place(value_plan(i, numel=numel)).take() for i in range(12)]
    device.synchronize()
    gc.collect()  # takes no slab that is lent
    assert [numbers_in(batch) for batch in kept] == [{float(i)} for i in range(12)]
    assert pool.num_slabs == 12
    del kept
    placement.place(value_plan(0, numel=numel)).take()
    device.synchronize()
    assert pool.num_slabs <= pool.target <= 3


@pytest.mark.parametrize("where", ["host", "device"])
def test_one_tensor_keeps_the_slab_of_its_batch_until_autograd_is_done_with_it(
    device: SimulatedDevice, where: str
) -> None:
    """The batch is dropped before the backward pass, and others come in between."""
    placement = HostPlacement() if where == "host" else DevicePlacement(device)
    pool = placement._pool if isinstance(placement, HostPlacement) else placement._slabs
    numel = MIB // 2 if where == "host" else 1000
    weight = torch.ones(numel, requires_grad=True)
    batch = placement.place(value_plan(5, numel=numel)).take()
    device.synchronize()
    loss = (batch[0] * weight).sum()
    del batch
    for i in range(6, 12):
        placement.place(value_plan(i, numel=numel)).take()
        gc.collect()
    device.synchronize()
    device.copies.record().synchronize()
    lent = pool.num_slabs - pool.num_waiting
    assert lent == 1
    loss.backward()
    assert weight.grad is not None
    assert numbers_in([weight.grad]) == {5.0}
    del loss
    assert pool.num_slabs - pool.num_waiting == 0


@pytest.mark.parametrize("where", ["host", "device"])
def test_one_tensor_changed_in_place_leaves_what_autograd_saved_of_the_others(
    device: SimulatedDevice, where: str
) -> None:
    placement = HostPlacement() if where == "host" else DevicePlacement(device)
    rows = Part(torch.float32, (MIB // 2,), lambda out: out.fill_(3))
    first, second = placement.place(BatchPlan([Field(rows), Field(rows)], list, 1, 1)).take()
    device.synchronize()
    weight = torch.ones(MIB // 2, requires_grad=True)
    loss = (first * weight).sum()
    assert second.data_ptr() - first.data_ptr() == first.nbytes  # one slab
    second.add_(1)
    loss.backward()
    assert weight.grad is not None
    assert numbers_in([weight.grad]) == {3.0}


@pytest.mark.parametrize("where", ["host", "device"])
def test_slabs_that_evaluation_made_may_be_trained_on(device: SimulatedDevice, where: str) -> None:
    """Lightning evaluates in inference mode, whose tensors autograd refuses to save."""
    placement = HostPlacement() if where == "host" else DevicePlacement(device)
    numel = MIB // 2 if where == "host" else 1000
    weight = torch.ones(numel, requires_grad=True)
    with torch.inference_mode():
        for i in range(6):
            batch = placement.place(value_plan(i, numel=numel)).take()
            device.synchronize()
            assert numbers_in(batch) == {float(i)}
            del batch
    batch = placement.place(value_plan(7, numel=numel)).take()
    device.synchronize()
    assert not any(tensor.is_inference() for tensor in batch)
    (batch[0] * weight).sum().backward()
    assert weight.grad is not None
    assert numbers_in([weight.grad]) == {7.0}


def test_in_host_memory_small_tensors_do_not_keep_the_slab_and_large_ones_do() -> None:
    placement = HostPlacement()
    pool = placement._pool
    rows, few, ids = placement.place(value_plan(1, numel=MIB)).take()  # 4 MiB, a few bytes, 4 MiB
    assert few.untyped_storage().nbytes() == few.nbytes
    assert ids.data_ptr() - rows.data_ptr() == rows.nbytes
    assert (pool.num_slabs, pool.num_waiting) == (1, 0)
    assert pool.nbytes >= 8 * MIB
    del rows
    assert pool.num_waiting == 0
    del ids
    assert pool.num_waiting == 1
    assert numbers_in([few]) == {1.0}
    again = placement.place(value_plan(2, numel=MIB)).take()
    assert (pool.num_slabs, pool.num_waiting) == (1, 0)
    assert numbers_in([few]) == {1.0}
    assert numbers_in(again) == {2.0}


def test_small_batches_in_host_memory_need_no_slab() -> None:
    placement = HostPlacement()
    batch = placement.place(value_plan(1, numel=1000)).take()
    assert (numbers_in(batch), placement._pool.num_slabs) == ({1.0}, 0)


def test_trim_frees_what_waits(device: SimulatedDevice) -> None:
    placement = DevicePlacement(device)
    placement.place(value_plan(1)).take()
    device.synchronize()
    placement.trim()
    assert (placement._slabs.num_slabs, placement._staging.num_slabs) == (0, 0)
    batch = placement.place(value_plan(2)).take()
    device.synchronize()
    assert numbers_in(batch) == {2.0}


def test_an_empty_batch_is_brought_too(device: SimulatedDevice) -> None:
    for placement in (HostPlacement(), DevicePlacement(device)):
        assert placement.place(BatchPlan([], list, 0, 0)).take() == []
        none = Part(torch.float32, (0, 5), lambda out: None)
        (empty,) = placement.place(BatchPlan([Field(none)], list, 0, 0)).take()
        assert empty.shape == (0, 5)


# ---- errors ----------------------------------------------------------------------------------------------------------


class BrokenError(RuntimeError):
    """What went wrong on purpose."""


def _break(*args: Any, **kwargs: Any) -> Any:
    raise BrokenError("broken")


@pytest.mark.parametrize("stage", ["write", "device_memory", "submit"])
def test_no_slab_is_lost_to_an_error(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    placement, reader = DevicePlacement(device), SlowReader(device)
    for i in range(100):
        with monkeypatch.context() as patch:
            if stage == "device_memory":
                device.copies.record().synchronize()
                placement._slabs.trim()  # so that there is something to allocate
                patch.setattr(placement._slabs, "_allocate", _break)
            elif stage == "submit":
                patch.setattr(device.copies, "submit", _break)
            with pytest.raises(BrokenError):
                placement.place(value_plan(i, write=_break if stage == "write" else lambda value: None))
        gc.collect()
        reader.read(placement.place(value_plan(i)).take())
        assert placement._slabs.num_slabs <= 3
        assert placement._staging.num_slabs <= 2
    device.synchronize()
    assert reader.seen == [{float(i)} for i in range(100)]


def test_no_slab_is_lost_to_an_error_in_host_memory() -> None:
    placement = HostPlacement()
    for i in range(30):
        with pytest.raises(BrokenError):
            placement.place(value_plan(i, numel=MIB // 2, write=_break))
        gc.collect()
        assert numbers_in(placement.place(value_plan(i, numel=MIB // 2)).take()) == {float(i)}
        assert placement._pool.num_slabs <= 2


def test_an_interrupted_wait_leaves_the_slab_busy(device: SimulatedDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does without workers; the copy still reads the slab when the next batch is asked for."""
    placement, reader, gate = DevicePlacement(device), SlowReader(device), Gate()
    only_one_slab(placement._staging)
    device.copies.submit(gate)
    first = placement.place(value_plan(1))
    (slab,) = placement._staging.returned
    assert slab.busy is not None

    def interrupted() -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slab.busy, "synchronize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            placement.place(value_plan(2))
    timer = threading.Timer(0.02, gate.open)
    timer.start()
    third = placement.place(value_plan(3))  # waits for the gate
    for placed in (first, third):
        reader.read(placed.take())
    device.synchronize()
    timer.join()
    assert reader.seen == [{1.0}, {3.0}]


def test_an_error_on_the_device_is_raised_when_the_batch_is_taken() -> None:
    with SimulatedDevice() as device:
        placement = DevicePlacement(device)
        placed = placement.place(value_plan(1, unpack=_break), "batch 4 of epoch 2")
        device.copies.submit(lambda: None)
        with pytest.raises(BrokenError):
            device.copies.record().synchronize()
        with pytest.raises(BrokenError, match="broken") as caught:
            placed.take()
        assert caught.value.__notes__ == ["This happened while batch 4 of epoch 2 was unpacked on the device."]
        assert any(entry.name == "_break" for entry in caught.traceback)


def test_what_is_never_taken_returns(device: SimulatedDevice) -> None:
    placement, reader = DevicePlacement(device), SlowReader(device)
    for i in range(30):
        placement.place(value_plan(99))  # its copy may still run when the slab is written again
        reader.read(placement.place(value_plan(i)).take())
    device.synchronize()
    assert reader.seen == [{float(i)} for i in range(30)]
    assert placement._slabs.num_slabs <= 3


def test_many_threads_place_at_once() -> None:
    delays = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    with SimulatedDevice(copy_delay_s=lambda nbytes: 0.0005 * delays[nbytes % 400]) as device:
        placement = DevicePlacement(device)
        placement.expect(4)
        seen: dict[int, list[set[float]]] = {}

        def work(number: int) -> None:
            reader = SlowReader(device)
            for i in range(20):
                reader.read(placement.place(value_plan(10 * number + i % 10, numel=500 + 37 * i)).take())
            seen[number] = reader.seen

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device.synchronize()
    assert seen == {n: [{float(10 * n + i % 10)} for i in range(20)] for n in range(5)}


def test_a_slab_says_which_stream_reads_it(device: SimulatedDevice) -> None:
    placement = DevicePlacement(device)
    placed = placement.place(value_plan(1))
    slab = placed.slab
    assert isinstance(slab, Slab)
    assert slab.reader is None
    batch = placed.take()
    assert slab.reader is device.current()
    assert (placed.slab, placed.batch) == (None, None)
    del batch
    device.copies.record().synchronize()
    assert slab.reader is None
    assert slab.busy is not None
