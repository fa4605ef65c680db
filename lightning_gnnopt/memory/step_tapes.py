"""Learn a step's memory from its allocations on tiny batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.features import FeatureReader
from lightning_gnnopt.memory.probe_batches import probe_batches
from lightning_gnnopt.memory.prober import Recorded, StepProber
from lightning_gnnopt.memory.tape import AllocationTape, TapeError, solve_tape

_LARGE_PROBES = 2  # products in fewer bits than 32 have workspaces on the CPU that tiny batches do not show
_SPARE_PROBES = 2


class StepTapes(NamedTuple):
    """What the allocations of a stage's steps depend on.

    Attributes:
        reader: Reads what they depend on, ``P`` features.
        tapes: The tape of each kind of step; its features may be more than the reader's.
        pieces: The peak of each kind of step: a maximum of these affine functions of the reader's features, each of
            shape ``(K, P + 1)``.
        probes: The batches that were tried.
        recorded: What was seen.
    """

    reader: FeatureReader
    tapes: dict[str, AllocationTape]
    pieces: dict[str, NDArray[np.float64]]
    probes: list[Any]
    recorded: Recorded


def solve_step(base: Any, prober: StepProber, *, accumulate: bool = False, round_to: int = 1) -> StepTapes:
    """Record a step on thinned copies of a small batch, and solve each allocation.

    Args:
        base: The batch.
        prober: Runs and records the stage's step.
        accumulate: Whether to record the steps of a window of several batches, too.
        round_to: See :func:`solve_tape`.

    Returns:
        The tapes.

    Raises:
        TapeError: If there is no tape: the step does other things on other batches.
    """
    solved = None
    try:
        solved = _solve(base, prober, accumulate, round_to, padded=False)
    except TapeError as error:
        if error.reason != "residual":
            raise
    if solved is None:  # an aggregation that pads its neighbourhoods, perhaps
        solved = _solve(base, prober, accumulate, round_to, padded=True)
    reader, tapes, probes, recorded = solved
    used = {name for tape in tapes.values() for name in tape.used_features}
    slim = FeatureReader(base, loops=any(name.startswith("loops") for name in used), padded="padded" in used)
    columns = np.concatenate([[0], 1 + reader.columns(slim.names)])
    pieces = {kind: tape.pieces()[:, columns] for kind, tape in tapes.items()}
    return StepTapes(slim, tapes, pieces, probes, recorded)


def _solve(
    base: Any, prober: StepProber, accumulate: bool, round_to: int, *, padded: bool
) -> tuple[FeatureReader, dict[str, AllocationTape], list[Any], Recorded]:
    reader = FeatureReader(base, loops=True, padded=padded)
    probes = probe_batches(base, len(reader.names) + 1 + _SPARE_PROBES, large=_LARGE_PROBES if prober.is_narrow else 0)
    features = np.stack([reader(probe) for probe in probes])
    absent = [name for name, column in zip(reader.names, features.T, strict=True) if not column.any()]
    recorded = prober.record(probes, accumulate=accumulate)
    tapes: dict[str, AllocationTape] = {}
    for kind, streams in recorded.streams.items():
        alike = _alike(streams, len(reader.names) + 2)
        chosen = [streams[place] for place in alike]
        tapes[kind] = solve_tape(chosen, features[alike], reader.names, round_to=round_to, absent=absent)
    return reader, tapes, probes, recorded


def _alike(streams: Sequence[NDArray[np.int64]], least: int) -> list[int]:
    """Choose the probes with as many events as most have, if they are enough: a rare shape may lack an operator."""
    lengths = [len(stream) for stream in streams]
    usual = max(set(lengths), key=lengths.count)
    alike = [place for place, length in enumerate(lengths) if length == usual]
    return alike if len(alike) >= least else list(range(len(streams)))
