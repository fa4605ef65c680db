from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gnnopt.memory.cuda_events import read_trace
from lightning_gnnopt.memory.events import can_record, record_events


def entry(action: str, size: int, addr: int = 0, frames: Any = (), *, stream: int = 0) -> dict[str, Any]:
    """As `torch.cuda.memory._snapshot` documents them."""
    return {"action": action, "addr": addr, "size": size, "stream": stream, "frames": list(frames)}


TORCH = str(Path(torch.__file__).parent)
FRAMES = [
    {"filename": "??", "line": 0, "name": "at::empty"},
    {"filename": f"{TORCH}/nn/functional.py", "line": 5, "name": "linear"},
    {"filename": "/home/me/net.py", "line": 12, "name": "forward"},
    {"filename": "/home/me/train.py", "line": 3, "name": "main"},
]
TRACE = [
    entry("segment_alloc", 2 * 2**20, 1000),
    entry("alloc", 1, 1000, FRAMES),
    entry("alloc", 512, 1512),
    entry("alloc", 1025, 2024),
    entry("free_requested", 1025, 2024),
    entry("snapshot", 0),
    entry("alloc", 700, 5000),  # before the block above can be used again, as another stream still reads it
    entry("free_completed", 1025, 2024),
    {"action": "oom", "size": 2**40, "stream": 0, "device_free": 5, "frames": []},
    entry("free_requested", 1, 1000, FRAMES),
    entry("free_completed", 1, 1000, FRAMES),
    entry("segment_free", 2 * 2**20, 1000),
]
REQUESTED = [1, 512, 1025, -1025, 700, -1]
ROUNDED = [512, 512, 1536, -1536, 1024, -512]


class History:
    """Stands for `torch.cuda.memory`'s history: records what `work` puts into `trace`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.enabled = False
        self.traces: list[list[dict[str, Any]]] = [[], []]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        self.stream = 0
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=self.stream))
        monkeypatch.setattr(torch._C, "_cuda_isHistoryEnabled", lambda: self.enabled, raising=False)
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", self.record)
        monkeypatch.setattr(torch.cuda.memory, "_snapshot", lambda: {"segments": [], "device_traces": self.traces})

    def record(self, enabled: str | None = "all", context: str | None = "all", stacks: str = "all") -> None:
        self.enabled = enabled is not None
        self.calls.append((enabled, context) if enabled else (enabled,))
        if not enabled:
            self.traces = [[], []]


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> History:
    return History(monkeypatch)


def test_a_release_counts_when_it_is_asked_for() -> None:
    read = read_trace(TRACE)
    assert read.requested == REQUESTED
    assert read.rounded == ROUNDED
    assert read.labels == []


def test_labels_name_the_innermost_line_outside_torch() -> None:
    assert read_trace(TRACE, labelled=True).labels == [
        "forward (net.py:12)",
        "python",
        "python",
        "python",
        "python",
        "forward (net.py:12)",
    ]


SIDE = 0x7F00AA00
MIXED = [
    entry("alloc", 1000, 10),
    entry("alloc", 8000, 20, stream=SIDE),
    entry("free_requested", 700, 30),  # both of before the recording
    entry("free_requested", 900, 40, stream=SIDE),
    entry("free_requested", 8000, 20, stream=SIDE),
    entry("free_completed", 8000, 20, stream=SIDE),
    entry("alloc", 600, 20),  # the address is used anew, by the other stream
    entry("alloc", 5000, 50, FRAMES, stream=SIDE),
    entry("free_requested", 600, 20),
    entry("free_requested", 1000, 10),
]


def test_one_streams_blocks() -> None:
    assert read_trace(MIXED, stream=0).requested == [1000, -700, 600, -600, -1000]
    assert read_trace(MIXED, stream=0).rounded == [1024, -1024, 1024, -1024, -1024]
    assert read_trace(MIXED, stream=SIDE).requested == [8000, -900, -8000, 5000]
    assert read_trace(MIXED, stream=SIDE, labelled=True).labels == ["python"] * 3 + ["forward (net.py:12)"]
    assert read_trace(MIXED, stream=1).requested == []
    assert len(read_trace(MIXED).requested) == len(read_trace(MIXED, stream=None).requested) == 9


def test_a_release_belongs_to_the_stream_of_its_allocation() -> None:
    trace = [entry("alloc", 1000, 10, stream=SIDE), entry("free_requested", 1000, 10, stream=0)]
    assert read_trace(trace, stream=0).requested == []
    assert read_trace(trace, stream=SIDE).requested == [1000, -1000]


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 2), st.integers(0, 9), st.booleans()), max_size=40))
def test_what_others_allocate_between_changes_nothing(program: list[tuple[int, int, int, bool]]) -> None:
    """Addresses are handed out anew at once, to whichever stream comes next."""
    free, live, trace = list(range(50)), [], []  # type: ignore[var-annotated]
    alone: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for size, stream, which, releases in program:
        if releases and live:
            addr, size, stream = live.pop(which % len(live))
            trace.append(entry("free_requested", size, addr, stream=stream))
            trace.append(entry("free_completed", size, addr, stream=stream))
            free.insert(0, addr)
            alone[stream].append(-size)
        else:
            live.append((free.pop(0), size, stream))
            trace.append(entry("alloc", size, live[-1][0], stream=stream))
            alone[stream].append(size)
    assert {stream: read_trace(trace, stream=stream).requested for stream in alone} == alone


def test_the_recording_threads_stream_is_read(history: History) -> None:
    with record_events("cuda:0") as recorder:
        history.traces[0] += MIXED
    assert recorder.requested.tolist() == [1000, -700, 600, -600, -1000]
    history.stream = SIDE
    with record_events("cuda:0") as recorder:
        history.traces[0] += MIXED
    assert recorder.requested.tolist() == [8000, -900, -8000, 5000]


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_the_history_of_one_device_is_read(history: History, device: str, index: int) -> None:
    assert can_record(device)
    with record_events(device) as recorder:
        history.traces[index] += TRACE
        history.traces[1 - index].append(entry("alloc", 9999))
        assert not can_record(device)
    assert recorder.events.tolist() == ROUNDED
    assert recorder.requested.tolist() == REQUESTED
    assert recorder.peak_bytes == 2560
    assert history.calls == [("all", None), (None,)]


def test_lines_are_recorded_only_if_asked_for(history: History) -> None:
    with record_events("cuda:0", labelled=True) as recorder:
        history.traces[0] += TRACE
    assert recorder.labels[0] == "forward (net.py:12)"
    assert history.calls == [("all", "alloc"), (None,)]


def test_an_exception_ends_the_recording(history: History) -> None:
    def run_out() -> None:
        history.traces[0] += TRACE
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError), record_events("cuda:0") as recorder:
        run_out()
    assert recorder.events.tolist() == ROUNDED
    assert not history.enabled


def test_a_users_own_history_is_left_alone(history: History) -> None:
    history.record("all")
    assert not can_record("cuda")
    with (
        pytest.raises(
            RuntimeError, match=r"on cuda cannot be recorded now: .* history is being recorded already\. HINT"
        ),
        record_events("cuda"),
    ):
        pass
    assert history.enabled


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    never: Callable[[], bool] = lambda: False  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_available", never)
    assert not can_record("cuda")
    with pytest.raises(RuntimeError, match=r"torch finds no CUDA device\. HINT"), record_events("cuda:0"):
        pass


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device_live_bytes_are_the_allocators() -> None:
    before = torch.cuda.memory_allocated()
    with record_events("cuda") as recorder:
        kept = [torch.ones(n, device="cuda") for n in (1, 100, 1000, 2**20)]
        del kept[1]
    assert recorder.events.sum() == torch.cuda.memory_allocated() - before
    assert recorder.requested[:4].tolist() == [4, 400, 4000, 4 * 2**20]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_real_device_side_streams_are_left_out() -> None:
    side = torch.cuda.Stream()
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    with record_events("cuda") as recorder:
        kept = torch.ones(1000, device="cuda")
        with torch.cuda.stream(side):
            other = torch.ones(7, device="cuda")
    assert recorder.requested.tolist() == [kept.nbytes]
    assert torch.cuda.memory_stats()["requested_bytes.all.current"] - before == kept.nbytes + other.nbytes
