"""A trace of who did what when, for Perfetto and Chrome."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_gnnopt.evaluation.timeline import Timeline
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
        args: What else is shown with it.
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


def spans_of_timeline(timeline: Timeline) -> list[TraceSpan]:
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
        for span in timeline.spans
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
        ValueError: If a span ends before it begins.
    """
    path = Path(path)
    origin_s = min((span.start_s for span in spans), default=0.0)
    lanes: defaultdict[tuple[str, str], list[TraceSpan]] = defaultdict(list)
    for span in spans:
        if span.end_s < span.start_s:
            raise ValueError(
                f"`end_s` must not be before `start_s`, but {span.name!r} is from {span.start_s} to {span.end_s}."
                " HINT: take both from `time.perf_counter`."
            )
        lanes[span.process, span.thread].append(span)
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
            events += [
                {
                    "ph": "X",
                    "name": span.name,
                    "pid": pid,
                    "tid": thread_number,
                    "ts": (span.start_s - origin_s) * 1e6,
                    "dur": (span.end_s - span.start_s) * 1e6,
                    "args": dict(span.args),
                }
                for span in lane
            ]
    text = json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, ensure_ascii=False, default=str)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


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
