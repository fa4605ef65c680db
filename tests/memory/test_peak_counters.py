from __future__ import annotations

import gc

import torch

from lightning_gnnopt.memory.peak_counters import SharedPeak, allocator_peak
from tests.memory.fake_cuda import FakeCuda


class Counter:
    def __init__(self) -> None:
        self.now = self.peak = 0
        self.shared = SharedPeak(lambda: (self.peak,), self.reset)

    def reset(self) -> None:
        self.peak = self.now

    def to(self, value: int) -> None:
        self.now, self.peak = value, max(self.peak, value)


def test_an_inner_region_leaves_the_outer_its_peak() -> None:
    counter = Counter()
    outer = counter.shared.open()
    counter.to(100)
    counter.to(10)
    inner = counter.shared.open()
    counter.to(50)
    counter.to(0)
    assert (inner.peaks(), outer.peaks()) == ((50,), (100,))


def test_a_peak_in_the_inner_region_is_the_outer_ones_too() -> None:
    counter = Counter()
    outer = counter.shared.open()
    counter.to(10)
    inner = counter.shared.open()
    counter.to(70)
    counter.to(0)
    del inner
    third = counter.shared.open()
    assert (third.peaks(), outer.peaks()) == ((0,), (70,))


def test_a_region_ends_when_nobody_holds_it() -> None:
    counter = Counter()
    region = counter.shared.open()
    assert len(counter.shared._regions) == 1
    del region
    gc.collect()
    assert len(counter.shared._regions) == 0


def test_a_device_without_a_number_is_the_current_one(fake_cuda: FakeCuda) -> None:
    assert allocator_peak(torch.device("cuda")) is allocator_peak(torch.device("cuda:0"))
    assert allocator_peak(torch.device("cuda:1")) is not allocator_peak(torch.device("cuda:0"))
