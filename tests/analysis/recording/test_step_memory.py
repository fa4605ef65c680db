from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_gnnopt.analysis.recording import step_memory as module
from lightning_gnnopt.analysis.recording.step_memory import CpuStepMemory, DeviceStepMemory, Stretch, step_memory
from lightning_gnnopt.memory import PeakMeter, record_events
from lightning_gnnopt.memory.peak_counters import AllocatorCounts

KIB = 1024


def test_stretches_hold_what_happens_between_the_marks_to_the_byte() -> None:
    memory = CpuStepMemory()
    memory.start()
    first = torch.empty(KIB, dtype=torch.uint8)
    memory.mark()
    second = torch.empty(4 * KIB, dtype=torch.uint8)
    del first
    torch.empty(2 * KIB, dtype=torch.uint8)
    memory.mark()
    memory.mark()
    del second
    assert memory.stop() == [
        Stretch(KIB, KIB, KIB),
        Stretch(6 * KIB, 3 * KIB, 6 * KIB),
        Stretch(4 * KIB, 0, 0),
        Stretch(4 * KIB, -4 * KIB, 0),
    ]


def test_marks_in_a_backward_pass_stand_where_they_were_made() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(100, 8), torch.randn(8, 8, requires_grad=True)
    memory = CpuStepMemory()
    memory.start()
    hidden = x @ weight
    out = hidden.exp()
    assert hidden.grad_fn is not None
    hidden.grad_fn.register_prehook(lambda _: memory.mark())
    memory.mark()
    out.sum().backward()
    forward, above, below = memory.stop()
    assert forward == Stretch(6400, 6400, 6400)
    # the sum and its gradient, the gradient of `exp`; then that of the weight
    assert above.allocated_bytes == 4 + 4 + 3200
    assert below.allocated_bytes == 256
    assert sum(stretch.live_bytes for stretch in (forward, above, below)) == 6400 + 256


def test_the_largest_stretch_is_the_peak_that_a_meter_measures() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.randn(500, 16)

    def step() -> None:
        model.zero_grad()
        model(x).square().sum().backward()

    with PeakMeter("cpu") as meter:
        step()
    model.zero_grad()  # the meter did not see the gradients go that were there before
    memory = CpuStepMemory()
    memory.start()
    for layer in model:
        layer.register_forward_pre_hook(lambda *_: memory.mark())
    step()
    stretches = memory.stop()
    assert len(stretches) == 4
    assert max(stretch.peak_bytes for stretch in stretches) == meter.peak.allocated_bytes


def test_events_that_were_lost_are_noticed() -> None:
    memory = CpuStepMemory()
    memory.start()
    memory.mark()
    memory._marks += 1  # one that left no events
    assert memory.stop() == []


def test_nobody_else_takes_marks_for_allocations() -> None:
    memory = CpuStepMemory()
    with PeakMeter("cpu") as meter, record_events("cpu", labelled=True) as recorder:
        memory.start()
        x = torch.ones(256)
        memory.mark()
        y = x.exp()
        memory.mark()
        stretches = memory.stop()
    assert stretches == [Stretch(KIB, KIB, KIB), Stretch(2 * KIB, KIB, KIB), Stretch(2 * KIB, 0, 0)]
    assert meter.peak.allocated_bytes == 2 * KIB
    assert recorder.events.tolist() == [KIB, KIB]
    assert [label.rpartition(" ")[2] for label in recorder.labels] == ["aten::ones", "aten::exp"]
    assert y.numel() == 256


def test_a_device_is_read_through_its_allocators_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [100, 100]  # now, and the peak since the last reset

    class Region:
        def peaks(self) -> tuple[int, ...]:
            return (held[1],)

    class Counter:
        def open(self) -> Region:
            held[1] = held[0]
            return Region()

    def grow(nbytes: int) -> None:
        held[0] += nbytes
        held[1] = max(held)

    monkeypatch.setattr(module, "allocator_peak", lambda device: Counter())
    monkeypatch.setattr(module, "allocator_counts", lambda device, which: AllocatorCounts(held[0], 0))
    memory = DeviceStepMemory(torch.device("cuda", 0))
    memory.start()
    grow(50)
    grow(-20)
    memory.mark()
    grow(200)
    grow(-210)
    memory.mark()
    assert memory.stop() == [Stretch(50, 30, 30), Stretch(230, -10, 0), Stretch(20, 0, 0)]


def test_what_a_device_has_allocated_is_a_sum_where_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    total = [1000]

    class Module:
        def memory_stats_as_nested_dict(self, device: torch.device) -> dict[str, dict[str, dict[str, int]]]:
            return {"allocated_bytes": {"all": {"allocated": total[0]}}}

    class Region:
        def peaks(self) -> tuple[int, ...]:
            return (100,)

    class Counter:
        def open(self) -> Region:
            return Region()

    monkeypatch.setattr(module, "allocator_of", lambda device: Module())
    monkeypatch.setattr(module, "allocator_peak", lambda device: Counter())
    monkeypatch.setattr(module, "allocator_counts", lambda device, which: AllocatorCounts(100, 0))
    memory = DeviceStepMemory(torch.device("cuda", 0))
    memory.start()
    total[0] += 500  # and as much was released
    memory.mark()
    assert memory.stop() == [Stretch(0, 0, 500), Stretch(0, 0, 0)]


def test_a_sentence_where_nothing_can_be_recorded() -> None:
    assert isinstance(step_memory(torch.device("cpu")), CpuStepMemory)
    with torch.autograd.profiler.profile():
        reason = step_memory(torch.device("cpu"))
    assert isinstance(reason, str)
    assert "another profiler runs in this thread" in reason
    assert step_memory(torch.device("mps")) == "mps reports no allocations"
