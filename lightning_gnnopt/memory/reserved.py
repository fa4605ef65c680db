"""How much a CUDA card must be able to give for a step, beside what the step asks for."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from lightning_gnnopt.memory.cuda_allocator import AllocatorResult, simulate
from lightning_gnnopt.memory.footprint import Footprint
from lightning_gnnopt.memory.held import stored_bytes
from lightning_gnnopt.memory.reserved_settings import AllocatorSettings
from lightning_gnnopt.memory.tape import AllocationTape

_MOST_ROWS = 8
_MOST_EVENTS = 80_000  # to be simulated in about 0.2 s
_RUNS_PER_ROW = 32  # steps that are simulated for each row: two in ten runs together, three in four alone
_TOLERANCE = 0.01
_SMALLER = 0.75
_SLACK = 9 / 8  # a loader's buffers are an eighth larger than the largest batch so far
_COPIES = "copies"
Event = tuple[Hashable, int, Hashable]


@dataclass(frozen=True, kw_only=True)
class Reserve:
    """How much of a card steps take, as multiples of the bytes that are predicted for them.

    Attributes:
        factor: So many times what is predicted lets a step pass, at least 1.
        bound: What the allocator's counters would have said: see :class:`ReservedFactor`; at least `factor`.
        reason: Why nothing was simulated; empty if it was.
    """

    factor: float = 1.0
    bound: float = 1.0
    reason: str = ""


def needed_bytes(
    trace: Sequence[tuple[Hashable, int] | Event],
    *,
    settings: AllocatorSettings | None = None,
    tolerance: float = _TOLERANCE,
    unlimited: AllocatorResult | None = None,
) -> int:
    """Find the smallest card on which a trace does not run out of memory, by bisection.

    Memory that a warm cache holds and nobody uses does not count: a full card gets it back.

    Args:
        trace: See :func:`~lightning_gnnopt.memory.cuda_allocator.simulate`.
        settings: How the allocator is set up; None for torch's defaults.
        tolerance: The result may be larger by so much, relative to the largest sum of requests.
        unlimited: The result on a card without a limit, if it is known.

    Returns:
        The bytes that the card must be able to give; the trace passes with them.
    """
    options = (settings or AllocatorSettings()).options
    free = unlimited or simulate(trace, **options)
    low, high = free.peak_allocated_bytes - 1, free.peak_reserved_bytes

    def passes(limit_bytes: int) -> bool:
        return simulate(trace, limit_bytes=limit_bytes, **options).out_of_memory_at is None

    guess = free.peak_allocated_bytes + free.peak_unreleasable_bytes  # mostly enough, and far less
    if low < guess < high:
        low, high = (low, guess) if passes(guess) else (guess, high)
    step = max(1, math.floor(tolerance * free.peak_requested_bytes))
    while high - low > step:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return high


def simulate_reserve(
    tape: AllocationTape,
    footprint: Footprint,
    rows: ArrayLike,
    *,
    blocks: Sequence[int] = (),
    budget_bytes: int | None = None,
    settings: AllocatorSettings | None = None,
) -> Reserve:
    """Simulate how many bytes a card must be able to give for each byte that a footprint predicts.

    Each of some batches is first made as large as the largest of them, and no larger than the budget lets it be, which
    is what control does: small ones say little, as the segments' own size weighs more on them. Then they run twice one
    after the other, and each twice after a smaller one. The factor is the largest of what these runs need, over what is
    predicted for the batch. The model comes first, optimizer state at the end of the first step, in between what that
    left. Batches that wait lie in segments of a stream of their own, as a loader's threads allocate them.

    At most 8 batches are simulated, evenly chosen; fewer if steps have more than 312 events, so that it takes about
    0.2 s with up to some thousand. The bisection ends within a hundredth of what is asked for, above what is needed.

    Args:
        tape: Of the costliest kind of step.
        footprint: Predicts the bytes; its `reserved_factor` does not count.
        rows: Features of batches as the footprint reads them, shape ``(B, P)``.
        blocks: Bytes of the model's tensors: see :func:`model_blocks`. What else is held comes in blocks like these.
        budget_bytes: What batches will be made to fit; None for no limit.
        settings: How the allocator is set up; None reads it.

    Returns:
        The factor, 1 with a reason where there are no segments to simulate.
    """
    settings = AllocatorSettings.read() if settings is None else settings
    if settings.backend != "native":
        return Reserve(reason=f"the backend {settings.backend!r} keeps its memory in pools of the driver")
    chosen = _spread(np.atleast_2d(np.asarray(rows, np.float64)), len(tape.events))
    if not chosen.size:
        return Reserve(reason="no batch was looked at")
    chosen = _as_large_as_the_largest(chosen, footprint, budget_bytes)
    before = [np.floor(_SMALLER * row) for row in np.roll(chosen, 1, axis=0)]
    runs = [np.concatenate([chosen, chosen]), *(np.stack(run) for run in zip(before, chosen, chosen, strict=True))]
    factor = bound = 1.0
    for run in runs:
        predicted = max(footprint.predict(row) for row in run)
        if predicted <= 0:
            continue
        trace = _trace(tape, footprint, run, blocks)
        free = simulate(trace, **settings.options)
        seen = free.peak_reserved_bytes
        if not settings.expandable_segments:
            seen = min(seen, free.peak_allocated_bytes + free.peak_unreleasable_bytes)
        bound = max(bound, seen / predicted)
        limit = math.floor(factor * predicted)
        if simulate(trace, limit_bytes=limit, **settings.options).out_of_memory_at is not None:
            factor = max(factor, needed_bytes(trace, settings=settings, unlimited=free) / predicted)
    return Reserve(factor=factor, bound=max(bound, factor))


def model_blocks(pl_module: nn.Module, device: torch.device) -> list[int]:
    """List the bytes of each of a model's parameters and buffers on a device; shared memory counts once."""
    there = [t for t in [*pl_module.parameters(), *pl_module.buffers()] if t.device.type == device.type]
    places = {
        (tensor.untyped_storage().data_ptr() or id(tensor)) if tensor.layout == torch.strided else id(tensor): tensor
        for tensor in there
    }
    return [nbytes for nbytes in map(stored_bytes, places.values()) if nbytes]


def _spread(rows: NDArray[np.float64], num_events: int) -> NDArray[np.float64]:
    """Choose as many rows as can be simulated in time, from first to last."""
    most = min(_MOST_ROWS, max(1, _MOST_EVENTS // (_RUNS_PER_ROW * max(1, num_events))))
    if len(rows) <= most:
        return rows
    chosen: NDArray[np.float64] = rows[np.linspace(0, len(rows) - 1, most).astype(int)]
    return chosen


def _as_large_as_the_largest(
    rows: NDArray[np.float64], footprint: Footprint, budget_bytes: int | None
) -> NDArray[np.float64]:
    predicted = np.array([footprint.predict(row) for row in rows])
    target = predicted.max() if budget_bytes is None else min(predicted.max(), budget_bytes)
    held = footprint.held_bytes
    shares = (target - held) / np.maximum(predicted - held, 1)  # about: most of it grows with the batch
    scaled: NDArray[np.float64] = np.floor(rows * np.maximum(shares, 0)[:, None])
    return scaled


def _trace(tape: AllocationTape, footprint: Footprint, rows: NDArray[np.float64], blocks: Sequence[int]) -> list[Event]:
    """Write out what is held, the batches, and a step on each row."""
    columns = {name: place for place, name in enumerate(footprint.reader.names)}
    features = np.zeros((len(rows), len(tape.names)))
    for place, name in enumerate(tape.names):
        if name in columns:  # the footprint reads no others, as no size depends on them
            features[:, place] = rows[:, columns[name]]
    events = tape.trace(features)
    num_before = len(events) - len(rows) * len(tape.events)
    before, steps = events[:num_before], np.array_split(np.arange(num_before, len(events)), len(rows))
    trace: list[Event] = [(("model", place), size, None) for place, size in enumerate(blocks)]
    trace += [(block, size, None) for block, size in before]
    batches = [max(0, math.ceil(footprint.batch_bytes(row))) for row in rows]
    num_waiting, largest = footprint.ahead.batches, max(batches)
    if num_waiting and footprint.ahead.max_bytes is not None:
        num_waiting = min(num_waiting, int(footprint.ahead.max_bytes // max(1, largest)))
    if footprint.ahead.batches:
        buffer = math.ceil(_SLACK * largest)
        trace += [(("buffer", place), buffer, _COPIES) for place in range(1 + num_waiting)]
    rest = footprint.held_bytes - sum(blocks) - sum(size for _, size in before)
    for number, (batch, step) in enumerate(zip(batches, steps, strict=True)):
        if not footprint.ahead.batches:
            trace.append((("batch", number), batch, None))
        trace += [(*events[place], None) for place in step]
        if not footprint.ahead.batches:
            trace.append((("batch", number), -batch, None))
        if number == 0:
            trace += [(("state", place), size, None) for place, size in enumerate(_like(blocks, rest))]
    return trace


def _like(blocks: Sequence[int], nbytes: int) -> list[int]:
    """Divide bytes into blocks of about the same sizes, as an optimizer's state has them, as often as is needed."""
    if nbytes <= 0:
        return []
    total = sum(blocks)
    if not total:
        return [nbytes]
    copies = max(1, round(nbytes / total))
    return [max(1, round(size * nbytes / (total * copies))) for _ in range(copies) for size in blocks]
