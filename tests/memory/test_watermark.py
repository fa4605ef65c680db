from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from lightning_gnnopt.memory import peak_counters
from lightning_gnnopt.memory.meter import PeakMeter
from lightning_gnnopt.memory.watermark import Watermark
from tests.memory.fake_cuda import FakeCuda

BALLAST = 256 * 2**20
NEEDS_RESET = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="only Linux resets a process's high-water mark"
)


def test_peak_holds_what_was_freed_before_the_end() -> None:
    watermark = Watermark("cpu")
    watermark.start()
    before = watermark.stop()
    ballast = torch.ones(BALLAST // 4)
    del ballast
    assert watermark.stop() - before >= 0.9 * BALLAST


@NEEDS_RESET
def test_start_forgets_an_earlier_peak() -> None:
    watermark = Watermark("cpu")
    watermark.start()
    ballast = torch.ones(BALLAST // 4)
    del ballast
    with_ballast = watermark.stop()
    watermark.start()
    assert with_ballast - watermark.stop() >= 0.9 * BALLAST


def test_accelerator_asks_the_caching_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, torch.device]] = []

    def reset(device: torch.device) -> None:
        calls.append(("reset", device))

    def peak(device: torch.device) -> int:
        calls.append(("peak", device))
        return 12345

    module = SimpleNamespace(reset_peak_memory_stats=reset, max_memory_allocated=peak)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    watermark = Watermark("cuda:1")
    watermark.start()
    assert watermark.stop() == 12345
    device = torch.device("cuda", 1)
    assert calls == [("reset", device), ("peak", device)]
    assert watermark.source == "allocated on cuda:1"


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_without_proc_the_mark_of_the_whole_process_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, unit: int
) -> None:
    monkeypatch.setattr(peak_counters, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(peak_counters, "_CLEAR_REFS", tmp_path / "clear_refs")
    monkeypatch.setattr(peak_counters.sys, "platform", platform)
    monkeypatch.setattr(peak_counters.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=10**12))
    watermark = Watermark("cpu")
    watermark.start()
    assert watermark.stop() == 10**12 * unit  # more than the process can really hold


def test_a_mark_that_may_not_be_reset_is_still_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    locked = SimpleNamespace(exists=lambda: True, write_text=_refuse)
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t    2048 kB\n")
    monkeypatch.setattr(peak_counters, "_CLEAR_REFS", locked)
    monkeypatch.setattr(peak_counters, "_STATUS", status)
    watermark = Watermark("cpu")
    watermark.start()
    assert watermark.stop() == 2 * 2**20


def test_the_mark_is_reset_and_read_as_proc_documents_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status, clear_refs = tmp_path / "status", tmp_path / "clear_refs"
    status.write_text("Name:\tpython\nVmPeak:\t  999999 kB\nVmHWM:\t  123456 kB\nVmRSS:\t  1000 kB\n")
    clear_refs.write_text("")
    monkeypatch.setattr(peak_counters, "_STATUS", status)
    monkeypatch.setattr(peak_counters, "_CLEAR_REFS", clear_refs)
    watermark = Watermark("cpu")
    watermark.start()
    assert clear_refs.read_text() == "5"  # "reset the peak resident set size", proc(5)
    assert watermark.stop() == 123456 * 1024


def test_a_status_without_the_mark_is_no_dead_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    status = tmp_path / "status"  # as gVisor's
    status.write_text("Name:\tpython\nVmRSS:\t  1000 kB\n")
    monkeypatch.setattr(peak_counters, "_STATUS", status)
    monkeypatch.setattr(peak_counters, "_CLEAR_REFS", tmp_path / "clear_refs")
    monkeypatch.setattr(peak_counters.resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=0))
    rss_bytes = psutil.Process().memory_info().rss
    assert Watermark("cpu").stop() == pytest.approx(rss_bytes, rel=0.1)  # never below what is held now


def test_where_the_allocator_keeps_no_peak_the_process_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on MPS: `torch.mps` counts what is allocated now and nothing else."""
    module = SimpleNamespace(current_allocated_memory=lambda: 1)
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    watermark = Watermark("mps")
    watermark.start()
    before = watermark.stop()
    ballast = torch.ones(BALLAST // 4)
    del ballast
    assert watermark.stop() - before >= 0.9 * BALLAST
    assert watermark.source == "resident set of the process"


def _refuse(text: str) -> None:
    raise PermissionError


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_counts_allocated_bytes() -> None:
    watermark = Watermark("cuda")
    watermark.start()
    before = watermark.stop()
    ballast = torch.ones(2**20, device="cuda")
    del ballast
    assert watermark.stop() - before == 4 * 2**20


def test_a_meter_within_the_run_does_not_take_the_peak_away(fake_cuda: FakeCuda) -> None:
    watermark = Watermark("cuda:0")
    watermark.start()
    fake_cuda.allocate(1000)
    fake_cuda.release(900)
    with PeakMeter("cuda:0") as meter:
        fake_cuda.allocate(200)
        fake_cuda.release(200)
    assert meter.peak.allocated_bytes == 200
    assert watermark.stop() == 1000
    watermark.start()
    assert watermark.stop() == 100
