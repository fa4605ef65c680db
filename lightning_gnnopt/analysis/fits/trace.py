"""A trace of who did what when, for Perfetto and Chrome."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gnnopt.evaluation.timeline import Span
    from lightning_gnnopt.loading.stage_log import StageSpan

TRAINING = "training process"
VALIDATION = "validation process"


@dataclass(frozen=True)
class TraceSpan:
    """Something that a thread did.

    Attributes:
        process: Name of its process.
        thread: Name of the thread.
        name: What it did.
        start_s: When it began, by `time.perf_counter`.
        end_s: When it ended.
        args: What else is shown with it; what JSON has no value for is shown as text.
    """

    process: str
    thread: str
    name: str
    start_s: float
    end_s: float
    args: Mapping[str, Any] = field(default_factory=dict)


def spans_of_stages(spans: Iterable[StageSpan]) -> list[TraceSpan]:
    """Turn what the loaders' threads did into spans of a trace."""
    return [
        TraceSpan(
            TRAINING,
            f"loader: {span.thread}",
            span.stage,
            span.start_s,
            span.end_s,
            {} if span.batch < 0 else {"batch": span.batch},
        )
        for span in spans
    ]


def spans_of_timeline(spans: Iterable[Span]) -> list[TraceSpan]:
    """Turn what `AsyncValidation` did into spans of a trace; validation is a process of its own."""
    shift_s = time.perf_counter() - time.monotonic()  # on Linux one clock, elsewhere not
    return [
        TraceSpan(
            VALIDATION if span.side == "validation" else TRAINING,
            span.side,
            span.what,
            span.start_s + shift_s,
            span.end_s + shift_s,
            {} if span.step is None else {"step": span.step},
        )
        for span in spans
    ]


def write_trace(spans: Sequence[TraceSpan], path: Path | str) -> Path:
    """Write spans as a JSON file in the Trace Event Format, with the earliest at 0.

    Spans of one thread that overlap without one being within the other get a lane more, named after it.

    Args:
        spans: The spans, in any order.
        path: The file; folders above it are made. A file that is there already is replaced once the new one is whole.

    Returns:
        The file.

    Raises:
        OSError: If it cannot be written.
        ValueError: If a span ends before it begins, or a time is not finite.
    """
    path = Path(path)
    lanes: defaultdict[tuple[str, str], list[TraceSpan]] = defaultdict(list)
    for span in spans:
        if not (math.isfinite(span.start_s) and math.isfinite(span.end_s)):
            raise ValueError(
                f"`start_s` and `end_s` must be finite, but {span.name!r} is from {span.start_s} to {span.end_s}."
                " HINT: leave out what has not ended."
            )
        if span.end_s < span.start_s:
            raise ValueError(
                f"`end_s` must not be before `start_s`, but {span.name!r} is from {span.start_s} to {span.end_s}."
                " HINT: take both from `time.perf_counter`."
            )
        lanes[span.process, span.thread].append(span)
    origin_s = min((span.start_s for span in spans), default=0.0)
    processes = {process: number for number, process in enumerate(sorted({process for process, _ in lanes}), start=1)}
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "process_name", "pid": number, "tid": 0, "args": {"name": process}}
        for process, number in processes.items()
    ]
    thread_number = 0
    for (process, thread), members in sorted(lanes.items()):
        pid = processes[process]
        for place, lane in enumerate(_nested(members), start=1):
            thread_number += 1
            name = thread if place == 1 else f"{thread} ({place})"
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": thread_number, "args": {"name": name}})
            events += [_complete_event(span, origin_s, pid, thread_number) for span in lane]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _complete_event(span: TraceSpan, origin_s: float, pid: int, tid: int) -> dict[str, Any]:
    # Perfetto rounds a start and a duration to nanoseconds, each by itself, and drops a span that overlaps the one
    # before by a single one: what is next to each other must be so in whole nanoseconds.
    start_ns, end_ns = (round((time_s - origin_s) * 1e9) for time_s in (span.start_s, span.end_s))
    return {
        "ph": "X",
        "name": span.name,
        "pid": pid,
        "tid": tid,
        "ts": _microseconds(start_ns),
        "dur": _microseconds(end_ns - start_ns),
        "args": {str(key): _shown(value) for key, value in span.args.items()},
    }


def _microseconds(ns: int) -> float:
    """Give nanoseconds in microseconds; they come back whether the reader rounds or, as older ones, cuts off."""
    us = ns / 1000
    return us if int(us * 1000) == ns else math.nextafter(us, math.inf)


def _shown(value: Any) -> Any:
    is_plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    return value if is_plain else str(value)


def _nested(spans: Iterable[TraceSpan]) -> list[list[TraceSpan]]:
    """Lay out spans in as few lanes as first fit finds, so that in each any two are apart or one within the other."""
    lanes: list[list[TraceSpan]] = []
    ends: list[list[float]] = []  # of each lane: where what is open ends, outermost first
    for span in sorted(spans, key=lambda span: (span.start_s, -span.end_s)):
        for lane, open_s in zip(lanes, ends, strict=True):
            while open_s and open_s[-1] <= span.start_s:
                open_s.pop()
            if not open_s or span.end_s <= open_s[-1]:
                lane.append(span)
                open_s.append(span.end_s)
                break
        else:
            lanes.append([span])
            ends.append([span.end_s])
    return lanes
