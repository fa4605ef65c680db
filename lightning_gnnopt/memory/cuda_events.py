"""What torch's caching allocator for CUDA has done, from the history it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROUNDING_BYTES = 512
_TORCH = str(Path(torch.__file__).parent)
_SIGNS = {"alloc": 1, "free_requested": -1}


class CudaEvents(NamedTuple):
    """Allocations and releases in the order they happened.

    Attributes:
        requested: Signed bytes that were asked for.
        rounded: The same in whole blocks of 512 bytes.
        labels: The line of Python that asked for each block, or empty.
    """

    requested: list[int]
    rounded: list[int]
    labels: list[str]


def obstacle() -> str | None:
    """Say why the history cannot be recorded now; None if it can."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device. HINT: measure on the device that trains."
    if not hasattr(torch.cuda.memory, "_record_memory_history"):
        return "this version of torch keeps no history of its allocator. HINT: use torch 2.6 or later."
    if torch._C._cuda_isHistoryEnabled():
        return (
            "the allocator's history is being recorded already."
            " HINT: end it with `torch.cuda.memory._record_memory_history(None)`, or record once at a time."
        )
    return None


def start(*, labelled: bool) -> None:
    """Begin to record, on all devices and for all threads of the process."""
    torch.cuda.memory._record_memory_history("all", context="alloc" if labelled else None, stacks="python")


def stop(device: torch.device, *, labelled: bool) -> CudaEvents:
    """End the recording and read what happened on `device`, on the stream that this thread computes on.

    Autograd runs backward on the streams of forward. What other threads allocate, such as a loader's that copy batches
    on a stream of their own, is left out; so is what the step itself does on further streams.
    """
    index = torch.cuda.current_device() if device.index is None else device.index
    stream = torch.cuda.current_stream(device).cuda_stream
    try:
        traces = torch.cuda.memory._snapshot()["device_traces"]
    finally:
        torch.cuda.memory._record_memory_history(None)  # clears it as well
    return read_trace(traces[index] if index < len(traces) else [], labelled=labelled, stream=stream)


def read_trace(trace: Iterable[Mapping[str, Any]], *, labelled: bool = False, stream: int | None = None) -> CudaEvents:
    """Read one device's trace.

    A release counts at ``free_requested``: there `memory_allocated` falls. ``free_completed`` comes later for a block
    that another stream still used, and says when the block can be reused; ``requested_bytes`` of
    `torch.cuda.memory_stats` falls only there. A trace holds sizes as they were asked for, which ``requested_bytes``
    counts, too. What `memory_allocated` counts is rounded up to 512 bytes, and may be more by what a cached block of
    the large pool is too large, up to 1 MiB, where splitting it would leave too little; a trace does not tell that.

    Args:
        trace: Entries of ``torch.cuda.memory._snapshot()["device_traces"][index]``.
        labelled: Whether to read where each block was asked for.
        stream: Number of the stream (`torch.cuda.Stream.cuda_stream`) whose blocks count, None for all. A release
            belongs to the stream of its allocation.

    Returns:
        The events.
    """
    streams: dict[int, int] = {}  # of the blocks in use, by address
    requested: list[int] = []
    labels: list[str] = []
    for entry in trace:
        sign = _SIGNS.get(entry["action"])
        if sign is None:
            continue
        if sign > 0:
            of_block = streams[entry["addr"]] = entry["stream"]
        else:  # of a block from before the trace, the entry's own is the only one that is known
            of_block = streams.pop(entry["addr"], entry["stream"])
        if stream is None or of_block == stream:
            requested.append(sign * int(entry["size"]))
            if labelled:
                labels.append(_label(entry.get("frames", ())))
    return CudaEvents(requested, [_rounded(size) for size in requested], labels)


def _rounded(size: int) -> int:
    blocks = max(-(-abs(size) // ROUNDING_BYTES), 1) * ROUNDING_BYTES
    return blocks if size >= 0 else -blocks


def _label(frames: Sequence[Mapping[str, Any]]) -> str:
    """Name the innermost line outside torch."""
    for frame in frames:
        if not frame["filename"].startswith(_TORCH) and frame["filename"] != "??":
            return f"{frame['name']} ({Path(frame['filename']).name}:{frame['line']})"
    return "python"
