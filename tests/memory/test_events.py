from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gnnopt.memory import cpu_events
from lightning_gnnopt.memory.events import can_record, record_events

NEEDS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def step(x: Tensor) -> None:
    with torch.profiler.record_function("net"):
        with torch.profiler.record_function("convs.0"):
            h = x.index_select(0, torch.arange(3))
        loss = h.sigmoid().sum()
    loss.backward()


def test_events_in_order() -> None:
    with record_events("cpu") as recorder:
        x = torch.ones(10)
        y = x[2:].neg()
        x.add_(x)
        z = torch.empty(0)
        del x
    assert recorder.events.tolist() == [40, 32, -40]
    assert recorder.events.dtype == "int64"
    assert recorder.requested.tolist() == [40, 32, -40]
    assert recorder.labels == []
    assert recorder.peak_bytes == 72
    assert (y.numel(), z.numel()) == (8, 0)


def test_no_events() -> None:
    with record_events("cpu") as recorder:
        pass
    assert recorder.events.shape == (0,)
    assert recorder.peak_bytes == 0


def test_labels_name_scopes_and_operators() -> None:
    x = torch.ones(5, 100, requires_grad=True)
    with record_events("cpu", labelled=True) as recorder:
        step(x)
    assert len(recorder.labels) == len(recorder.events)
    where = list(zip(recorder.events.tolist(), recorder.labels, strict=True))
    assert where[:2] == [(24, "net > convs.0 > aten::arange"), (1200, "net > convs.0 > aten::index_select")]
    assert (1200, "net > aten::sigmoid") in where
    assert (4, "net > aten::sum") in where
    assert (1200, "SigmoidBackward0 > aten::sigmoid_backward") in where
    assert (2000, "IndexSelectBackward0 > aten::new_zeros") in where
    assert (-24, "IndexSelectBackward0") in where  # the saved ids
    assert where[-2:] == [(-1200, "python"), (-4, "python")]  # `h` and `loss`, as the function ends


def test_a_release_between_operators_is_its_scopes() -> None:
    with record_events("cpu", labelled=True) as recorder:
        with torch.profiler.record_function("net"):
            a, b = torch.ones(1), torch.ones(2)
            del a
        del b
    assert recorder.events.tolist() == [4, 8, -4, -8]
    assert recorder.labels == ["net > aten::ones", "net > aten::ones", "net", "python"]


def test_labels_do_not_change_the_events() -> None:
    x = torch.ones(5, 100, requires_grad=True)
    streams = []
    for labelled in (False, True, False):
        x.grad = None
        with record_events("cpu", labelled=labelled) as recorder:
            step(x)
        streams.append(recorder.events.tolist())
    assert streams[0] == streams[1] == streams[2]


def test_scopes_survive_a_recording_within() -> None:
    with record_events("cpu", labelled=True) as outer, torch.profiler.record_function("before"):
        a = torch.ones(1)
        with record_events("cpu") as inner:
            b = torch.ones(2)
        c = torch.ones(3)
    assert outer.labels == ["before > aten::ones"] * 3
    assert (outer.events.tolist(), inner.events.tolist(), inner.labels) == ([4, 8, 12], [8], [])
    assert a.numel() + b.numel() + c.numel() == 6


def test_operators_cost_nothing_without_labels_and_are_told_of_again_afterwards() -> None:
    with record_events("cpu"):
        torch.ones(1)
    with record_events("cpu", labelled=True) as recorder:
        torch.ones(1)
    assert recorder.labels[0] == "aten::ones"


def test_events_are_there_after_an_exception() -> None:
    with pytest.raises(IndexError), record_events("cpu") as recorder:
        torch.ones(10)[10]
    assert recorder.events.tolist()[:1] == [40]
    assert not torch.autograd._profiler_enabled()


def test_reading_too_early() -> None:
    with (
        record_events("cpu") as recorder,
        pytest.raises(RuntimeError, match="Events can be read once the recording has ended"),
    ):
        _ = recorder.events


def test_not_beside_another_profiler_of_the_thread() -> None:
    results: dict[str, Any] = {}

    def elsewhere() -> None:
        results["can"] = can_record("cpu")
        with record_events("cpu") as recorder:
            torch.ones(10)
        results["events"] = recorder.events.tolist()

    assert can_record("cpu")
    with torch.autograd.profiler_legacy.profile():
        assert not can_record("cpu")
        with (
            pytest.raises(RuntimeError, match=r"on cpu cannot be recorded now: another profiler runs .* HINT: record"),
            record_events("cpu"),
        ):
            pass
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert results == {"can": True, "events": [40, -40]}
    with record_events("cpu"):
        assert can_record("cpu")  # ours nest


def test_devices_without_events() -> None:
    assert not can_record("mps")
    with pytest.raises(RuntimeError, match=r"torch reports no allocations on mps\. HINT"), record_events("mps"):
        pass


@torch.jit.script
def handed_on(x: Tensor) -> Tensor:
    future = torch.jit.fork(torch.neg, x)
    return torch.jit.wait(future)


def test_work_handed_to_another_thread_is_in_its_place() -> None:
    x = torch.ones(1000)
    handed_on(x)
    with record_events("cpu") as recorder:
        a = torch.ones(10)
        y = handed_on(x)
        del a
        del y
    assert recorder.events.tolist() == [40, 4000, -40, -4000]


def test_releases_of_unknown_blocks_are_not_reported_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    unknown = [torch.ones(10) for _ in range(2500)]  # torch tells of one in a thousand
    with record_events("cpu") as recorder:
        unknown.clear()
    assert capfd.readouterr().err == ""
    assert recorder.events.min(initial=0) <= 0
    level = cpu_events._quiet._level
    assert level is None or level.value == cpu_events._quiet._before


@NEEDS_FORK
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_go_on_recording() -> None:
    with record_events("cpu") as recorder:
        pid = os.fork()
        if pid == 0:
            stopped = not torch.autograd._profiler_enabled() and not cpu_events.thread_log._listeners
            os._exit(0 if stopped else 1)
        _, status = os.waitpid(pid, 0)
        torch.ones(10)
    assert os.waitstatus_to_exitcode(status) == 0
    assert recorder.events.tolist() == [40, -40]


def test_without_the_light_profiler_the_other_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(5, 100, requires_grad=True)
    step(x)
    x.grad = None
    with record_events("cpu", labelled=True) as light:
        step(x)
    x.grad = None
    monkeypatch.setattr(cpu_events, "_LIGHT", False)
    monkeypatch.setattr(cpu_events.thread_log, "_backend", cpu_events._Kineto())
    others: list[bool] = []
    with record_events("cpu", labelled=True) as other:
        step(x)
        thread = threading.Thread(target=lambda: others.append(can_record("cpu")))
        thread.start()
        thread.join()
    assert other.events.tolist() == light.events.tolist()
    assert other.labels == light.labels
    assert others == [False]  # one thread at a time
    assert can_record("cpu")
