"""The simulated device, on a clock that stands still: what it says of time is exact then."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_gnnopt.loading import SimulatedDevice
from lightning_gnnopt.loading import simulated as module

from .values import DEADLINE_S


def simulated_threads() -> list[str]:
    return sorted(t.name for t in threading.enumerate() if t.name.startswith("gnnopt-simulated"))


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> None:
    yield
    assert simulated_threads() == []


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stop the clock; what would have been slept is noted."""
    slept: list[float] = []
    clock = SimpleNamespace(perf_counter=lambda: 100.0, sleep=slept.append)
    monkeypatch.setattr(module, "time", clock)
    return slept


def test_a_stream_does_its_work_in_order() -> None:
    done: list[int] = []
    with SimulatedDevice() as device:
        for i in range(200):
            device.copies.submit(lambda i=i: done.append(i))
        device.copies.record().synchronize()
        assert done == list(range(200))


def test_the_host_goes_on_while_a_stream_works() -> None:
    gate, done = threading.Event(), []
    with SimulatedDevice() as device:
        device.compute(lambda x: done.append(gate.wait(DEADLINE_S)), torch.ones(1))
        event = device.current().record()
        assert not event.query()
        assert done == []
        gate.set()
        event.synchronize()
        assert event.query()
        assert done == [True]


def test_the_streams_work_at_the_same_time() -> None:
    meet, met = threading.Barrier(2), []
    with SimulatedDevice() as device:
        device.compute(lambda x: met.append(meet.wait(DEADLINE_S)), torch.ones(1))
        device.copies.submit(lambda: met.append(meet.wait(DEADLINE_S)))
        device.copies.record().synchronize()
        device.synchronize()
    assert sorted(met) == [0, 1]


def test_a_stream_waits_for_an_event_of_another_and_the_host_does_not() -> None:
    gate, done = threading.Event(), []
    with SimulatedDevice() as device:
        device.copies.submit(lambda: gate.wait(DEADLINE_S))
        device.copies.submit(lambda: done.append("copy"))
        device.current().wait(device.copies.record())
        device.compute(lambda x: done.append("kernel"), torch.ones(1))
        time.sleep(0.02)  # time enough to go too far
        assert done == []
        gate.set()
        device.synchronize()
        assert done == ["copy", "kernel"]


def test_copies_take_as_long_as_their_bytes(sleeps: list[float]) -> None:
    with SimulatedDevice(bytes_per_s=1000.0, copy_delay_s=lambda nbytes: 0.25 if nbytes > 300 else 0.0) as device:
        events = [device.copies.record()]
        for nbytes in (500, 250, 0):
            device.copies.submit(lambda: None, nbytes=nbytes)
            events.append(device.copies.record())
        events[-1].synchronize()
        assert [end.elapsed_s(start) for start, end in itertools.pairwise(events)] == [0.75, 0.25, 0.0]
        assert device.copied_bytes == [500, 250]
    assert sleeps == [0.75, 1.0, 1.0]  # until where the stream's own clock stands


def test_a_kernel_starts_when_what_it_waits_for_has_ended(sleeps: list[float]) -> None:
    with SimulatedDevice(bytes_per_s=100.0) as device:
        start = device.current().record()
        device.copies.submit(lambda: None, nbytes=200)
        device.current().wait(device.copies.record())
        device.compute(lambda x: None, torch.ones(1), seconds=0.5)
        end = device.current().record()
        end.synchronize()
        assert end.elapsed_s(start) == 2.5


def test_kernels_overlap_with_copies(sleeps: list[float]) -> None:
    with SimulatedDevice(bytes_per_s=100.0) as device:
        start = device.copies.record()
        device.compute(lambda x: None, torch.ones(1), seconds=1.5)
        device.copies.submit(lambda: None, nbytes=100)
        device.copies.wait(device.current().record())
        end = device.copies.record()
        end.synchronize()
        assert end.elapsed_s(start) == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (0,), (0, 4), ()])
def test_a_kernel_gets_the_same_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    seen: list[tuple[torch.dtype, tuple[int, ...]]] = []
    with SimulatedDevice() as device:
        device.compute(lambda bare: seen.append((bare.dtype, tuple(bare.shape))) or bare.fill_(1), tensor)
        device.synchronize()
    assert seen == [(dtype, shape)]
    assert bool((tensor == 1).all())


def test_a_kernel_keeps_nothing_alive() -> None:
    gate = threading.Event()
    array = np.zeros(8)
    tensor = torch.from_numpy(array)
    with SimulatedDevice() as device:
        before = sys.getrefcount(array)
        device.compute(lambda bare: gate.wait(DEADLINE_S), tensor)
        assert sys.getrefcount(array) == before
        gate.set()
        device.synchronize()


def test_an_error_is_seen_at_the_next_event_and_at_every_later_one() -> None:
    def fail() -> None:
        raise RuntimeError("in the kernel")

    with SimulatedDevice() as device:
        before = device.copies.record()
        device.copies.submit(fail)
        events = [device.copies.record(), device.copies.record()]
        for event in events:
            with pytest.raises(RuntimeError, match="in the kernel") as caught:
                event.synchronize()
            assert any(entry.name == "fail" for entry in caught.traceback)
            with pytest.raises(RuntimeError, match="in the kernel"):
                event.query()
        before.synchronize()
        device.synchronize()  # the other stream knows nothing of it


def test_new_memory_of_the_device_is_not_zero() -> None:
    with SimulatedDevice() as device:
        assert device.device_memory(5).tolist() == [255] * 5
        assert device.host_memory(5).shape == (5,)
        assert device.free_bytes() is None
        assert device.device_memory(0).shape == (0,)


def test_closing_finishes_what_was_submitted_and_ends_the_threads() -> None:
    done: list[int] = []
    device = SimulatedDevice()
    assert simulated_threads() == ["gnnopt-simulated-compute", "gnnopt-simulated-copies"]
    for i in range(5):
        device.compute(lambda x, i=i: done.append(i), torch.ones(1), seconds=0.001)
    device.close()
    assert done == list(range(5))


def test_the_host_may_be_the_one_that_computes() -> None:
    """Taking a batch waits for it then."""
    with SimulatedDevice(host_computes=True) as device:
        assert simulated_threads() == ["gnnopt-simulated-copies"]
        x = torch.zeros(4)
        gate = threading.Timer(0.02, lambda: None)
        gate.start()
        device.copies.submit(gate.join)
        device.copies.submit(lambda: x.fill_(3))
        device.current().wait(device.copies.record())
        assert x.tolist() == [3.0] * 4
        device.compute(lambda bare: bare.add_(1), x)
        assert x.tolist() == [4.0] * 4
        assert device.current().record().query()
