"""Which devices have streams, and what ours ask of torch's: a fake module stands for `torch.cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_gnnopt.loading.cuda_streams import CudaStreams
from lightning_gnnopt.loading.streams import streams_of


@pytest.mark.parametrize("device", ["cpu", "meta", "mps", "cpu:0", torch.device("cpu")])
def test_no_streams_of_ours(device: str | torch.device) -> None:
    assert streams_of(device) is None


class FakeCuda:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.made_streams: list[str] = []
        fake = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing
                self.time_ms = 0.0

            def record(self, stream: str) -> None:
                fake.log.append(("record", stream))

            def query(self) -> bool:
                return True

            def synchronize(self) -> None:
                fake.log.append("synchronize")

            def elapsed_time(self, end: Event) -> float:
                return end.time_ms - self.time_ms

        self.Event = Event

    def current_device(self) -> int:
        return 3

    def Stream(self, *, device: torch.device) -> Any:  # noqa: N802
        assert device == torch.device("cuda", 3)
        self.made_streams.append(f"side {len(self.made_streams)}")
        return FakeStream(self, self.made_streams[-1])

    def current_stream(self, device: torch.device) -> Any:
        assert device == torch.device("cuda", 3)
        return FakeStream(self, "current")

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(("enter", stream.name))
        yield
        self.log.append(("exit", stream.name))

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        self.log.append(("device", device))
        yield
        self.log.append("device before")

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        return 1000, 5000

    def memory_reserved(self, device: torch.device) -> int:
        return 300

    def memory_allocated(self, device: torch.device) -> int:
        return 120


class FakeStream:
    def __init__(self, module: FakeCuda, name: str) -> None:
        self._module, self.name = module, name

    def wait_event(self, event: Any) -> None:
        self._module.log.append(("wait", self.name, event))


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(torch, "get_device_module", lambda device: fake)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return fake


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_one_side_stream_for_ever(cuda: FakeCuda, device: str) -> None:
    streams = streams_of(device)
    assert isinstance(streams, CudaStreams)
    assert streams.device == torch.device("cuda", 3)
    copies = streams.copies
    for _ in range(5):
        streams.current().record()
        streams.copies.submit(lambda: None)
    assert streams.copies is copies
    assert cuda.made_streams == ["side 0"]


def test_work_is_submitted_to_its_stream(cuda: FakeCuda) -> None:
    streams = CudaStreams(torch.device("cuda"))
    streams.copies.submit(lambda: cuda.log.append("work"), nbytes=7)
    assert cuda.log == [("enter", "side 0"), "work", ("exit", "side 0")]


def test_a_thread_works_on_the_streams_device(cuda: FakeCuda) -> None:
    streams = CudaStreams(torch.device("cuda:3"))
    with streams.active():
        cuda.log.append("work")
    assert cuda.log == [("device", torch.device("cuda:3")), "work", "device before"]


def test_a_stream_that_reads_is_told_to_the_allocator(cuda: FakeCuda) -> None:
    streams, told = CudaStreams(torch.device("cuda")), []
    stream = streams.current()
    stream.reads(SimpleNamespace(record_stream=lambda stream: told.append(stream.name)))
    assert told == ["current"]


def test_memory_is_allocated_for_the_side_stream(cuda: FakeCuda) -> None:
    streams = CudaStreams(torch.device("cuda"))
    streams.device = torch.device("cpu")  # there is no other
    memory = streams.device_memory(64)
    assert (memory.dtype, memory.shape) == (torch.uint8, (64,))
    assert cuda.log == [("enter", "side 0"), ("exit", "side 0")]


def test_host_memory_is_pinned(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    streams, asked = CudaStreams(torch.device("cuda")), []
    monkeypatch.setattr(torch, "empty", lambda *size, **options: asked.append((size, options)))
    streams.host_memory(64)
    assert asked == [((64,), {"dtype": torch.uint8, "device": "cpu", "pin_memory": True})]


def test_events_order_streams(cuda: FakeCuda) -> None:
    streams = CudaStreams(torch.device("cuda"))
    start, end = streams.copies.record(), streams.copies.record()
    streams.current().wait(end)
    assert [entry[0] for entry in cuda.log] == ["record", "record", "wait"]
    assert cuda.log[-1] == ("wait", "current", end.event)
    start.event.time_ms, end.event.time_ms = 250.0, 1750.0
    assert end.elapsed_s(start) == 1.5  # torch counts milliseconds
    assert end.query() is True
    end.synchronize()
    assert cuda.log[-1] == "synchronize"


def test_free_memory_is_the_drivers_and_what_the_allocator_keeps_idle(cuda: FakeCuda) -> None:
    assert CudaStreams(torch.device("cuda")).free_bytes() == 1000 + 300 - 120
