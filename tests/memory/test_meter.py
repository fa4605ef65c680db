from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_gnnopt.memory import peak_counters
from lightning_gnnopt.memory.events import record_events
from lightning_gnnopt.memory.meter import Peak, PeakMeter
from tests.memory.fake_cuda import FakeCuda


def peak_of(function: Callable[[], Any]) -> int:
    with PeakMeter("cpu") as meter:
        function()
    return meter.peak.allocated_bytes


def test_nothing() -> None:
    with PeakMeter("cpu") as meter:
        pass
    assert meter.peak == Peak(allocated_bytes=0, held_bytes=None, reserved_bytes=None, resident_bytes=None)


def test_views_cost_nothing() -> None:
    x = torch.ones(100, 10)
    assert peak_of(lambda: x[2:].t().reshape(2, -1)[:, :3].unsqueeze(0)) == 8 * 98 * 5  # reshape copies a transpose
    assert peak_of(lambda: x[2:].t().view(10, 98).detach().unsqueeze(0).expand(7, -1, -1)) == 0


def test_temporaries_count_while_they_live() -> None:
    assert peak_of(lambda: torch.ones(1000).neg().neg()) == 3 * 4000 - 4000  # the first is gone before the third
    assert peak_of(lambda: [torch.ones(n) for n in (10, 20, 30)]) == 4 * 60


def test_in_place_costs_nothing_more() -> None:
    assert peak_of(lambda: torch.ones(1000).neg_().abs_().clamp_(0, 1)) == 4000


def test_dtypes_and_empty_tensors() -> None:
    assert peak_of(lambda: [torch.empty(3, dtype=torch.bool), torch.empty(5, dtype=torch.bfloat16)]) == 3 + 10
    assert peak_of(lambda: torch.empty(0, 7)) == 0


def test_a_storage_that_grows() -> None:
    def grow() -> None:
        x = torch.ones(100)
        x.resize_(1000)  # the old storage is copied into the new one

    assert peak_of(grow) == 400 + 4000


def test_backward() -> None:
    x = torch.ones(1000, requires_grad=True)
    # Forward: the output of sigmoid, which is saved, and the sum; backward: the loss's gradient and x's.
    assert peak_of(lambda: x.sigmoid().sum().backward()) == 4000 + 4 + 4 + 4000
    assert x.grad is not None
    x.grad = None
    # `neg` saves nothing, so its output is gone before backward begins.
    assert peak_of(lambda: x.neg().sum().backward()) == 4 + 4 + 4000


def test_peak_is_the_growth_over_the_start() -> None:
    with record_events("cpu"):  # so that the release of `held` is known
        held = [torch.ones(1000)]
    with PeakMeter("cpu") as meter:
        held.clear()
        x = torch.ones(1500)
    assert meter.peak.allocated_bytes == 6000 - 4000
    assert x.shape == (1500,)
    with PeakMeter("cpu") as meter:
        del x
    assert meter.peak.allocated_bytes == 0


def test_an_exception_ends_the_region() -> None:
    meter = PeakMeter("cpu")
    with pytest.raises(IndexError), meter:
        torch.ones(10)[10]
    assert meter.peak.allocated_bytes == 40
    assert peak_of(lambda: torch.ones(5)) == 20


def test_what_could_not_be_allocated_is_not_counted() -> None:
    def too_much() -> None:
        torch.ones(10)
        with pytest.raises(RuntimeError, match="memory"):
            torch.empty(2**50, dtype=torch.uint8)

    assert peak_of(too_much) == 40


def test_three_deep() -> None:
    with PeakMeter("cpu") as outer:
        x = torch.ones(100)
        with PeakMeter("cpu") as middle:
            y = torch.ones(10)
            with PeakMeter("cpu") as inner:
                del x, y  # released here, allocated outside
                z = torch.ones(30)
            w = torch.ones(40)
        del z, w
        v = torch.ones(101)
    assert inner.peak.allocated_bytes == 0  # -440 + 120
    assert middle.peak.allocated_bytes == 40  # 40, -400, -280, -120
    assert outer.peak.allocated_bytes == 440  # 400, 440, ..., 280, then 0 and 404
    assert v.numel() == 101


def test_regions_that_overlap() -> None:
    first, second = PeakMeter("cpu"), PeakMeter("cpu")
    first.start()
    x = torch.ones(100)
    second.start()
    y = torch.ones(50)
    assert first.stop().allocated_bytes == 600
    del x, y
    z = torch.ones(200)
    assert second.stop().allocated_bytes == 400  # 200, -400, 400
    assert z.numel() == 200


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("arrxoc"), st.integers(0, 9)), max_size=40))
def test_any_program_with_any_regions(program: list[tuple[str, int]]) -> None:
    """Against a plain counter; all is allocated within a region, since only then a release is known."""
    live, blocks, regions = 0, [], []  # type: ignore[var-annotated]
    with PeakMeter("cpu") as whole:
        highest = 0
        for action, number in program:
            if action == "a":
                blocks.append(torch.empty(1 + number, dtype=torch.int64))
                live += 8 * (1 + number)
            elif action in "rx" and blocks:
                block = blocks.pop(number % len(blocks))
                live -= block.nbytes
                del block
            elif action == "o":
                meter = PeakMeter("cpu")
                meter.start()
                regions.append([meter, live, live])
            elif action == "c" and regions:
                meter, begin, reached = regions.pop(number % len(regions))
                assert meter.stop().allocated_bytes == reached - begin
            highest = max(highest, live)
            for region in regions:
                region[2] = max(region[2], live)
        for meter, begin, reached in regions:
            assert meter.stop().allocated_bytes == reached - begin
    assert whole.peak.allocated_bytes == highest


def test_threads_do_not_mix() -> None:
    both_run, peaks = threading.Barrier(2, timeout=20), {}

    def work(size: int) -> None:
        with PeakMeter("cpu") as meter:
            for _ in range(20):
                both_run.wait()
                x = torch.ones(size)
                both_run.wait()
                del x
        peaks[size] = meter.peak.allocated_bytes

    threads = [threading.Thread(target=work, args=(size,)) for size in (100, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert peaks == {100: 400, 3000: 12000}


def test_a_generator_left_open() -> None:
    def numbers() -> Iterator[int]:
        with PeakMeter("cpu") as meter:
            meters.append(meter)
            x = torch.ones(10)
            yield 1
            del x

    meters: list[PeakMeter] = []
    generator = numbers()
    next(generator)
    assert peak_of(lambda: torch.ones(25)) == 100
    generator.close()
    assert meters[0].peak.allocated_bytes == 140  # it lasted until then
    assert not torch.autograd._profiler_enabled()


def test_another_thread_cannot_end_a_region() -> None:
    meter, errors = PeakMeter("cpu"), []

    def stop() -> None:
        try:
            meter.stop()
        except RuntimeError as error:
            errors.append(str(error))

    def begin_and_let_another_end() -> None:
        meter.start()
        region = meter._region
        thread = threading.Thread(target=stop)
        thread.start()
        thread.join()
        assert region is not None
        region.close()  # so that tests that follow find no recording

    thread = threading.Thread(target=begin_and_let_another_end)
    thread.start()
    thread.join()
    (message,) = errors
    assert message.startswith("A recording must end in the thread in which it began")


def test_mistakes() -> None:
    meter = PeakMeter("cpu")
    with pytest.raises(RuntimeError, match=r"not measuring\. HINT"):
        meter.stop()
    with pytest.raises(RuntimeError, match=r"`peak` is known once a region has ended\. HINT"):
        _ = meter.peak
    with meter:
        with pytest.raises(RuntimeError, match="measuring already"):
            meter.start()
        with pytest.raises(RuntimeError, match="`peak` is known"):
            _ = meter.peak
    assert meter.peak.allocated_bytes == 0


def test_beside_a_profiler_of_torch() -> None:
    with (
        torch.autograd.profiler_legacy.profile(),
        pytest.raises(RuntimeError, match=r"cannot be measured now: another profiler runs in this thread\. HINT"),
    ):
        PeakMeter("cpu").start()


def test_a_device_that_keeps_no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(current_allocated_memory=int))
    with pytest.raises(ValueError, match=r"`device` must be the CPU or .* but is 'mps'\. HINT: `Watermark`"):
        PeakMeter("mps")


def test_resident_set_is_the_processs(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    status, clear_refs = tmp_path / "status", tmp_path / "clear_refs"
    clear_refs.write_text("")
    status.write_text("VmHWM:\t  500 kB\n")
    monkeypatch.setattr(peak_counters, "_STATUS", status)
    monkeypatch.setattr(peak_counters, "_CLEAR_REFS", clear_refs)
    with PeakMeter("cpu", resident=True) as outer:
        status.write_text("VmHWM:\t  900 kB\n")
        with PeakMeter("cpu", resident=True) as inner:
            assert clear_refs.read_text() == "5"
            status.write_text("VmHWM:\t  700 kB\n")
    assert (inner.peak.resident_bytes, outer.peak.resident_bytes) == (700 * 1024, 900 * 1024)


def test_resident_set_holds_a_ballast() -> None:
    with PeakMeter("cpu", resident=True) as meter:
        ballast = torch.ones(2**24)
    assert meter.peak.resident_bytes is not None
    assert meter.peak.resident_bytes > meter.peak.allocated_bytes == ballast.nbytes


def test_on_an_accelerator_regions_nest(fake_cuda: FakeCuda) -> None:
    fake_cuda.allocate(1000)
    with PeakMeter("cuda:0") as outer:
        fake_cuda.allocate(600)
        fake_cuda.release(500)
        fake_cuda.empty_cache()
        with PeakMeter("cuda:0") as inner:
            fake_cuda.allocate(50)
            fake_cuda.release(150)
    assert inner.peak == Peak(allocated_bytes=50, held_bytes=1100, reserved_bytes=1150)
    assert outer.peak == Peak(allocated_bytes=600, held_bytes=1000, reserved_bytes=1600)


def test_on_an_accelerator_only_releases(fake_cuda: FakeCuda) -> None:
    fake_cuda.allocate(1000)
    with PeakMeter("cuda") as meter:
        fake_cuda.release(400)
    assert meter.peak == Peak(allocated_bytes=0, held_bytes=1000, reserved_bytes=1000)


class FakeStats(FakeCuda):
    """Keeps the counters that `torch.cuda.memory_stats` documents."""

    def __init__(self) -> None:
        super().__init__()
        self.names = ("allocated_bytes", "reserved_bytes", "requested_bytes", "inactive_split_bytes")
        self.now = dict.fromkeys(self.names, 0)
        self.most = dict(self.now)
        self.reads = 0

    def add(self, **changes: int) -> None:
        for name, change in changes.items():
            self.now[name] += change
            self.most[name] = max(self.most[name], self.now[name])

    def reset_peak_memory_stats(self, device: torch.device) -> None:
        self.most = dict(self.now)

    def memory_stats_as_nested_dict(self, device: torch.device) -> dict[str, Any]:
        self.reads += 1
        counters = {
            name: {
                "all": {"current": self.now[name], "peak": self.most[name]},
                "small_pool": {"current": 10**9, "peak": 10**9},
            }
            for name in self.names
        }
        return {**counters, "num_ooms": 0}


@pytest.fixture
def fake_stats(monkeypatch: pytest.MonkeyPatch) -> FakeStats:
    fake = FakeStats()
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    return fake


def test_the_allocators_four_numbers(fake_stats: FakeStats) -> None:
    fake_stats.add(allocated_bytes=1024, requested_bytes=900, reserved_bytes=4096, inactive_split_bytes=700)
    with PeakMeter("cuda:0") as outer:
        fake_stats.add(allocated_bytes=2048, requested_bytes=1500)
        fake_stats.add(inactive_split_bytes=-600)
        with PeakMeter("cuda:0") as inner:
            fake_stats.add(allocated_bytes=-2560, requested_bytes=-2000, inactive_split_bytes=1000)
            fake_stats.add(allocated_bytes=512, requested_bytes=3, reserved_bytes=4096)
        fake_stats.add(inactive_split_bytes=200)
    assert inner.peak == Peak(
        allocated_bytes=0,
        requested_bytes=0,
        held_bytes=3072,
        held_requested_bytes=2400,
        reserved_bytes=8192,
        unreleasable_bytes=1100,
    )
    assert outer.peak == Peak(
        allocated_bytes=2048,
        requested_bytes=1500,
        held_bytes=1024,
        held_requested_bytes=900,
        reserved_bytes=8192,
        unreleasable_bytes=1300,
    )
    assert (outer.peak.start_bytes, outer.peak.growth_bytes) == (900, 1500)


def test_counters_are_read_few_times(fake_stats: FakeStats) -> None:
    with PeakMeter("cuda:0"):
        pass
    assert fake_stats.reads == 2  # at the start and at the end


def test_an_allocator_that_counts_no_requests(fake_stats: FakeStats) -> None:
    """`cudaMallocAsync` leaves them at 0."""
    fake_stats.add(allocated_bytes=1000, reserved_bytes=4096)
    with PeakMeter("cuda") as meter:
        fake_stats.add(allocated_bytes=500)
    assert meter.peak == Peak(allocated_bytes=500, held_bytes=1000, reserved_bytes=4096)
    assert (meter.peak.start_bytes, meter.peak.growth_bytes) == (1000, 500)


def test_before_the_devices_first_use_there_is_nothing(fake_stats: FakeStats, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_stats, "memory_stats_as_nested_dict", lambda device: {})
    with PeakMeter("cuda") as meter:
        pass
    assert meter.peak == Peak(
        allocated_bytes=0,
        requested_bytes=0,
        held_bytes=0,
        held_requested_bytes=0,
        reserved_bytes=0,
        unreleasable_bytes=0,
    )


def test_on_the_cpu_predictions_are_of_the_same_number() -> None:
    with PeakMeter("cpu") as meter:
        torch.ones(10)
    assert (meter.peak.growth_bytes, meter.peak.start_bytes) == (40, None)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_blocks() -> None:
    with PeakMeter("cuda") as meter:
        x = torch.ones(1, device="cuda")
        y = torch.ones(2**20, device="cuda")
        del x, y
    assert meter.peak.allocated_bytes == 512 + 4 * 2**20
    assert meter.peak.requested_bytes == 4 + 4 * 2**20
    assert meter.peak.unreleasable_bytes is not None
