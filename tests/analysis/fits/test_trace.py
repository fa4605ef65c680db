from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gnnopt import AsyncValidation, GNNProfiler, GraphDataModule, NodeClassifier
from lightning_gnnopt.analysis.fits.trace import TraceSpan, _nested, spans_of_stages, spans_of_timeline, write_trace
from lightning_gnnopt.analysis.recording.labels import Label
from lightning_gnnopt.analysis.recording.session import HostSpan
from lightning_gnnopt.analysis.recording.step_spans import spans_of_steps
from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.evaluation.timeline import Timeline
from lightning_gnnopt.loading.stage_log import StageSpan


def read(path: Path) -> tuple[list[dict[str, Any]], dict[tuple[int, int], tuple[str, str]]]:
    """The complete events of a trace, and process and thread by their numbers."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert {event["ph"] for event in events} <= {"M", "X"}
    processes = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    threads = {
        (event["pid"], event["tid"]): (processes[event["pid"]], event["args"]["name"])
        for event in events
        if event["name"] == "thread_name"
    }
    return [event for event in events if event["ph"] == "X"], threads


def test_spans_become_events_in_microseconds_from_the_first(tmp_path: Path) -> None:
    spans = [
        TraceSpan("b", "loop", "später", 10.5, 12.0, {"batch": 3}),
        TraceSpan("a", "loop", "first", 10.0, 10.25),
        TraceSpan("a", "other", "none", 11.0, 11.0),
    ]
    path = write_trace(spans, tmp_path / "deep" / "trace.json")
    events, threads = read(path)
    found = {
        event["name"]: (*threads[event["pid"], event["tid"]], event["ts"], event["dur"], event["args"])
        for event in events
    }
    assert found == {
        "später": ("b", "loop", 500_000.0, 1_500_000.0, {"batch": 3}),
        "first": ("a", "loop", 0.0, 250_000.0, {}),
        "none": ("a", "other", 1_000_000.0, 0.0, {}),
    }
    assert [path.name for path in path.parent.iterdir()] == ["trace.json"]


def test_numbers_of_processes_and_threads_do_not_depend_on_the_order_of_spans(tmp_path: Path) -> None:
    spans = [TraceSpan(process, thread, "x", 1.0, 2.0) for process in ("b", "ä", "a") for thread in ("2", "1")]
    there = write_trace(spans, tmp_path / "there.json")
    back = write_trace(spans[::-1], tmp_path / "back.json")
    assert there.read_bytes() == back.read_bytes()
    events = json.loads(there.read_text(encoding="utf-8"))
    assert set(events) == {"traceEvents", "displayTimeUnit"}
    assert events["displayTimeUnit"] == "ms"
    found, threads = read(there)
    assert [(event["pid"], event["tid"]) for event in found] == [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (3, 6)]
    assert list(threads.values()) == [("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("ä", "1"), ("ä", "2")]


@given(
    origin=st.floats(0, 1e6),
    lengths=st.lists(st.floats(0, 1e-3), min_size=1, max_size=20),
    before=st.floats(0, 10),
)
def test_what_adjoins_does_so_for_readers_that_count_whole_nanoseconds(
    origin: float, lengths: list[float], before: float
) -> None:
    times = [origin + before]
    for length in lengths:
        times.append(times[-1] + length)
    spans = [TraceSpan("p", "t", "whole", times[0], times[-1]), TraceSpan("p", "u", "first", origin, origin)]
    spans += [TraceSpan("p", "t", "part", start, end) for start, end in pairwise(times)]
    with TemporaryDirectory() as folder:
        events, _ = read(write_trace(spans, Path(folder) / "trace.json"))
    for in_ns in (lambda us: int(us * 1000), lambda us: round(us * 1000)):
        (whole,) = ((in_ns(e["ts"]), in_ns(e["ts"]) + in_ns(e["dur"])) for e in events if e["name"] == "whole")
        parts = sorted((in_ns(e["ts"]), in_ns(e["ts"]) + in_ns(e["dur"])) for e in events if e["name"] == "part")
        assert (parts[0][0], parts[-1][1]) == whole
        assert all(end == start for (_, end), (start, _) in pairwise(parts))


def test_what_json_has_no_value_for_is_shown_as_text(tmp_path: Path) -> None:
    args = {"loss": float("nan"), "lr": 0.5, "path": Path("a"), "is_last": True, "none": None, 3: float("-inf")}
    text = write_trace([TraceSpan("p", "t", "x\udc80", 0, 1, args)], tmp_path / "trace.json").read_text(
        encoding="utf-8"
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    (event,) = (event for event in json.loads(text, parse_constant=refuse)["traceEvents"] if event["ph"] == "X")
    assert event["args"] == {"loss": "nan", "lr": 0.5, "path": "a", "is_last": True, "none": None, "3": "-inf"}
    assert event["name"] == "x\udc80"  # of a file's name that is no UTF-8


@pytest.mark.parametrize(("start_s", "end_s"), [(float("nan"), 1.0), (0.0, float("inf")), (0.0, float("nan"))])
def test_a_time_that_is_not_finite_is_refused(tmp_path: Path, start_s: float, end_s: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"must be finite, but 'x' is from {start_s} to {end_s}.")):
        write_trace([TraceSpan("p", "t", "y", 0, 1), TraceSpan("p", "t", "x", start_s, end_s)], tmp_path / "trace.json")
    assert list(tmp_path.iterdir()) == []


def test_no_spans_are_a_trace_too(tmp_path: Path) -> None:
    assert read(write_trace([], tmp_path / "trace.json")) == ([], {})


def test_what_overlaps_without_nesting_gets_a_lane_more(tmp_path: Path) -> None:
    spans = [
        TraceSpan("p", "t", "outer", 0, 10),
        TraceSpan("p", "t", "inner", 2, 4),
        TraceSpan("p", "t", "innermost", 2, 3),
        TraceSpan("p", "t", "across", 5, 12),
        TraceSpan("p", "t", "next", 10, 11),
    ]
    events, threads = read(write_trace(spans, tmp_path / "trace.json"))
    lanes = {event["name"]: threads[event["pid"], event["tid"]][1] for event in events}
    assert lanes == {"outer": "t", "inner": "t", "innermost": "t", "across": "t (2)", "next": "t"}


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12))
def test_in_a_lane_any_two_are_apart_or_one_is_within_the_other(found: list[tuple[int, int]]) -> None:
    spans = [TraceSpan("p", "t", str(place), start, start + length) for place, (start, length) in enumerate(found)]
    lanes = _nested(spans)
    assert sorted(span.name for lane in lanes for span in lane) == sorted(span.name for span in spans)
    for lane in lanes:
        for place, one in enumerate(lane):
            for other in lane[place + 1 :]:
                apart = one.end_s <= other.start_s or other.end_s <= one.start_s
                within = (one.start_s <= other.start_s and other.end_s <= one.end_s) or (
                    other.start_s <= one.start_s and one.end_s <= other.end_s
                )
                assert apart or within


def test_a_span_that_ends_before_it_begins_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("`end_s` must not be before `start_s`, but 'x' is from 2 to 1.")):
        write_trace([TraceSpan("p", "t", "x", 2, 1)], tmp_path / "trace.json")


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "trace.json"
    target.mkdir()
    with pytest.raises(OSError, match=r"trace\.json"):
        write_trace([], target)
    assert list(tmp_path.iterdir()) == [target]


def test_what_the_loaders_did() -> None:
    spans = [StageSpan("sample", 4, "worker-0", 1.0, 2.0), StageSpan("wait", -1, "MainThread", 2.0, 3.0)]
    assert spans_of_stages(spans) == [
        TraceSpan("training process", "loader: worker-0", "sample", 1.0, 2.0, {"batch": 4}),
        TraceSpan("training process", "loader: MainThread", "wait", 2.0, 3.0, {}),
    ]


def test_what_validation_did_is_on_the_same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = Timeline()
    timeline.record("training", "epoch 0", 100.0, 101.0)
    timeline.record("validation", "step 8", 101.0, 103.0, step=8)
    monkeypatch.setattr(time, "monotonic", lambda: 150.0)
    monkeypatch.setattr(time, "perf_counter", lambda: 170.0)
    assert spans_of_timeline(timeline.spans) == [
        TraceSpan("training process", "training", "epoch 0", 120.0, 121.0, {}),
        TraceSpan("validation process", "validation", "step 8", 121.0, 123.0, {"step": 8}),
    ]


def test_what_a_step_did() -> None:
    spans = [
        HostSpan(Label("wait"), 3, 0.0, 1.0),
        HostSpan(Label("forward", "convs.0", "vertex"), 3, 1.0, 2.0),
        HostSpan(Label("backward", "convs.0", "edge", "gather"), 3, 2.0, 4.0),
    ]
    assert [(span.name, span.start_s, span.end_s, span.args) for span in spans_of_steps(spans)] == [
        ("wait", 0.0, 1.0, {"batch": 3}),
        ("forward: convs.0 vertex", 1.0, 2.0, {"batch": 3}),
        ("backward: convs.0 gather", 2.0, 4.0, {"batch": 3}),
    ]


def test_a_fit_with_workers_and_a_validation_process_is_in_one_trace(tmp_path: Path) -> None:
    datamodule = GraphDataModule(load_dataset("digits-knn"), num_neighbors=[4, 4], batch_size=256, num_workers=2)
    model = NodeClassifier("gcn", in_channels=64, out_channels=10, hidden_channels=8)
    profiler = GNNProfiler(skip_batches=0, memory_every=0, trace_batches=3)
    trainer = L.Trainer(
        profiler=profiler, max_epochs=2, logger=False, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, callbacks=[AsyncValidation(monitor="val/acc", dirpath=tmp_path)],
    )  # fmt: skip
    trainer.fit(model, datamodule)
    events, threads = read(profiler.write_trace(tmp_path / "trace.json"))
    by_thread: dict[tuple[str, str], set[str]] = {}
    for event in events:
        by_thread.setdefault(threads[event["pid"], event["tid"]], set()).add(event["name"])
    steps = by_thread["training process", "training: steps"]
    assert {"wait", "forward: net.convs.0 message", "backward: net.convs.1 aggregate", "optimizer"} <= steps
    assert {event["args"]["batch"] for event in events if event["name"] == "optimizer"} == {0, 1, 2}
    workers = [names for (_, thread), names in by_thread.items() if thread.startswith("loader: gnnopt")]
    assert {"sample", "plan", "slice"} <= set.union(*workers)
    assert by_thread["validation process", "validation"]
    assert min(event["ts"] for event in events) == 0
