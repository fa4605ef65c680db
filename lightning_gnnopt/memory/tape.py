"""An exact prediction of a step's memory, from its allocations on a few tiny batches."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lightning_gnnopt.memory.tape_solving import (
    TapeError,
    check_rank,
    common_divisor,
    pair_events,
    reachable,
    solve_events,
    stack_streams,
)

__all__ = ["AllocationTape", "TapeError", "solve_tape"]


def solve_tape(
    streams: Sequence[NDArray[np.int64]],
    features: ArrayLike,
    names: Sequence[str],
    *,
    round_to: int = 1,
    absent: Sequence[str] = (),
) -> AllocationTape:
    """Work out what each allocation and release of a step depends on.

    The largest probe is held out and must be predicted to the byte by the others.

    Args:
        streams: The events of the same step on ``S`` batches, int64 arrays of signed bytes.
        features: What the batches were, whole numbers of shape ``(S, P)``.
        names: What the features are.
        round_to: Round each block up to a multiple of so many bytes in predictions: 512 for CUDA's allocator, whose
            history tells the bytes that were asked for.
        absent: Names of features that are 0 in all batches there will ever be.

    Returns:
        The tape, exact for any batch whose step has the same events.

    Raises:
        TapeError: If the events differ between probes, the features cannot be told apart, or a size is not an affine
            function of them.
        ValueError: If the arguments do not fit together.
    """
    matrix = np.asarray(features, np.float64)
    if matrix.shape != (len(streams), len(names)) or not len(streams):
        raise ValueError(
            f"`features` must have a row for each stream and a column for each name, ({len(streams)}, {len(names)}),"
            f" but its shape is {matrix.shape}. HINT: pass one row per probe."
        )
    unknown = sorted(set(absent) - set(names))
    if unknown:
        raise ValueError(f"`absent` must name features, but got {', '.join(unknown)}. HINT: choose from {list(names)}.")
    is_absent = np.array([name in absent for name in names], np.bool_)
    if matrix[:, is_absent].any():
        there = [name for name in absent if matrix[:, list(names).index(name)].any()]
        raise ValueError(
            f"Features in `absent` must be 0 in all probes, but {', '.join(there)} is not. HINT: leave it out there."
        )
    events = stack_streams(streams)
    present = [name for name in names if name not in absent]
    matrix_1P = np.column_stack([np.ones(len(streams)), matrix[:, ~is_absent]])
    holdout = int(matrix.sum(axis=1).argmax())
    check_rank(np.delete(matrix_1P, holdout, axis=0), present)
    coefficients = np.zeros((events.shape[1], len(names) + 1))
    coefficients[:, np.append(True, ~is_absent)] = solve_events(events, matrix_1P, present, holdout=holdout)
    return AllocationTape(
        coefficients, signs=np.sign(events.sum(axis=0)), names=names, round_to=round_to, absent=absent
    )


class AllocationTape:
    """The allocations and releases of a step in order, their sizes as functions of the batch's features.

    Args:
        events: Signed sizes as affine functions ``[c, a_1..a_P]``, shape ``(T, P + 1)``, in bytes.
        signs: 1 for each allocation and -1 for each release, shape ``(T,)``.
        names: What the ``P`` features are.
        round_to: Round each block up to a multiple of so many bytes.
        absent: Names of features that must be 0.

    Attributes:
        events: As passed, float64.
        signs: As passed, int8.
        names: As passed.
        round_to: As passed.
        absent: As passed.

    Raises:
        ValueError: If `round_to` is not positive or the shapes do not fit.

    Examples:
        >>> tape = solve_tape([[8 * n, 4 * n + 100, -8 * n] for n in (5, 9, 30)], [[5], [9], [30]], ["nodes_0"])
        >>> tape.peak([1000]), tape.final([1000])
        (12100, 4100)
        >>> tape.pieces().tolist()
        [[0.0, 0.0], [100.0, 12.0]]
    """

    def __init__(
        self,
        events: ArrayLike,
        *,
        signs: ArrayLike,
        names: Sequence[str],
        round_to: int = 1,
        absent: Sequence[str] = (),
    ) -> None:
        self.events: NDArray[np.float64] = np.array(events, np.float64)
        self.signs: NDArray[np.int8] = np.array(signs, np.int8)
        self.names = tuple(names)
        self.round_to = round_to
        self.absent = tuple(absent)
        if round_to < 1:
            raise ValueError(f"`round_to` must be at least 1 byte, but got {round_to}. HINT: 1 does not round.")
        if self.events.shape != (len(self.signs), len(self.names) + 1):
            raise ValueError(
                f"`events` must have a sign, a constant and {len(self.names)} coefficients each, but its shape is"
                f" {self.events.shape}, and there are {len(self.signs)} signs. HINT: use `solve_tape`."
            )
        self._absent_places = np.array([self.names.index(name) for name in self.absent], np.int64)
        self._allocation_of = pair_events(self.events, self.signs)
        self._pieces = self.pieces() if round_to == 1 else None

    @property
    def used_features(self) -> tuple[str, ...]:
        """Names of the features that a size depends on; the others need not be counted."""
        return tuple(name for name, slopes in zip(self.names, self.events.T[1:], strict=True) if slopes.any())

    def pieces(self, *, upper: ArrayLike | None = None) -> NDArray[np.float64]:
        """Reduce the tape to the running sums that can be the peak.

        The peak growth in bytes is ``max(c + a @ features)`` over the rows, exactly; if blocks are rounded, at most
        that, since each block in use then counts with the most that rounding can add to it.

        Args:
            upper: Largest value of each feature, shape ``(P,)``, to keep fewer rows; None for no bounds.

        Returns:
            Rows ``[c, a_1..a_P]``, shape ``(K, P + 1)``. The first one is 0: memory is never less than at the start.
        """
        present = np.append(True, ~np.isin(self.names, self.absent))
        sums = np.vstack([np.zeros(self.events.shape[1]), np.cumsum(self._bounds(), axis=0)])
        places = reachable(sums[:, present], None if upper is None else np.asarray(upper)[present[1:]])
        rows: NDArray[np.float64] = sums[np.concatenate([[0], places[places > 0]])]
        return rows

    def peak(self, features: ArrayLike) -> int:
        """Predict the peak growth of a step in bytes, from features of shape ``(P,)``.

        Raises:
            ValueError: If a feature is not 0 that was said to be absent.
        """
        row = self._row(features)
        if self._pieces is not None:
            return math.ceil(float((self._pieces[:, 1:] @ row + self._pieces[:, 0]).max()))
        return int(np.cumsum(self._sizes(row)).max(initial=0))

    def final(self, features: ArrayLike) -> int:
        """Predict what a step leaves behind in bytes, less what it releases of the time before.

        Raises:
            ValueError: If a feature is not 0 that was said to be absent.
        """
        return int(self._sizes(self._row(features)).sum())

    def explain(self, features: ArrayLike, labels: Sequence[str] | None = None) -> list[tuple[str, int]]:
        """List the blocks that make the peak.

        A release belongs to the latest block in use whose size is the same function of the features. Where there is
        none, it is of a block from before the step, and counts negative.

        Args:
            features: Of the batch, shape ``(P,)``.
            labels: What to call each of the ``T`` events; None calls them by their number and size.

        Returns:
            Labels and bytes, the largest first; the bytes sum to the peak.

        Raises:
            ValueError: If a feature is not 0 that was said to be absent, or there is not a label for each event.
        """
        if labels is not None and len(labels) != len(self.events):
            raise ValueError(
                f"`labels` must have one for each of {len(self.events)} events, but has {len(labels)}."
                " HINT: leave it out to call blocks by their size."
            )
        sizes = self._sizes(self._row(features))
        end = int(np.argmax(np.append(0, np.cumsum(sizes))))
        allocations = self._allocation_of[:end]
        is_live = (allocations < 0) & (sizes[:end] != 0)
        is_live[allocations[allocations >= 0]] = False
        live = np.flatnonzero(is_live).tolist()
        blocks = [(self._formula(event) if labels is None else labels[event], int(sizes[event])) for event in live]
        return sorted(blocks, key=lambda block: -block[1])

    def trace(self, features: ArrayLike) -> list[tuple[int, int]]:
        """Write out the blocks of steps that follow each other, for a simulation of the allocator.

        A release of a block from before the step takes the oldest block of the same size that earlier steps left
        behind; failing that, one that is allocated at the very start.

        Args:
            features: Of the batches, shape ``(B, P)``.

        Returns:
            Pairs of block id and signed bytes, not rounded; see :func:`simulate`.

        Raises:
            ValueError: If a feature is not 0 that was said to be absent.
        """
        numbers = itertools.count()
        before: list[tuple[int, int]] = []
        trace: list[tuple[int, int]] = []
        left: defaultdict[int, deque[int]] = defaultdict(deque)
        for row in np.atleast_2d(np.asarray(features, np.float64)):
            sizes = self._requests(self._row(row)).astype(np.int64).tolist()
            in_use: dict[int, int] = {}
            for event, size in enumerate(sizes):
                allocation = int(self._allocation_of[event])
                if self.signs[event] > 0:
                    block = in_use[event] = next(numbers)
                elif allocation >= 0:
                    block = in_use.pop(allocation)
                elif left[-size]:
                    block = left[-size].popleft()
                else:
                    block = next(numbers)
                    before.append((block, -size))
                trace.append((block, size))
            for event, block in in_use.items():
                left[sizes[event]].append(block)
        return before + trace

    def to_state(self) -> dict[str, Any]:
        """Return the tape as tensors and plain types, loadable with ``weights_only=True``."""
        return {
            "events": torch.from_numpy(self.events.copy()),
            "signs": torch.from_numpy(self.signs.copy()),
            "names": list(self.names),
            "round_to": self.round_to,
            "absent": list(self.absent),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AllocationTape:
        """Rebuild a tape from :meth:`to_state`."""
        arrays = {name: state[name].numpy() for name in ("events", "signs")}
        return cls(**{**state, **arrays})

    def _row(self, features: ArrayLike) -> NDArray[np.float64]:
        row = np.asarray(features, np.float64)
        if len(self._absent_places) and row[self._absent_places].any():
            there = [self.names[place] for place in self._absent_places if row[place]]
            raise ValueError(
                f"{', '.join(there)} must be 0, as it was when the tape was made, but is not in this batch."
                " HINT: make a tape with probes that have some, and without `absent`."
            )
        return row

    def _requests(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.events[:, 1:] @ row + self.events[:, 0]

    def _sizes(self, row: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes = self._requests(row)
        if self.round_to > 1:
            sizes = np.copysign(np.ceil(np.abs(sizes) / self.round_to) * self.round_to, sizes)
        return sizes

    def _bounds(self) -> NDArray[np.float64]:
        """Affine functions that the rounded events of each block, taken together, never exceed."""
        if self.round_to == 1:
            return self.events
        bounds = self.events.copy()
        for event, allocation in enumerate(self._allocation_of):
            if allocation >= 0:
                bounds[event] = -bounds[allocation]
            elif not self.events[event, 1:].any():
                bounds[event, 0] = self._sizes(np.zeros(len(self.names)))[event]
            elif self.signs[event] > 0:
                bounds[event, 0] += self.round_to - common_divisor(self.events[event], self.round_to)
        return bounds

    def _formula(self, event: int) -> str:
        constant, *slopes = self.events[event] * self.signs[event]
        terms = [f"{slope:,.12g} x {name}" for slope, name in zip(slopes, self.names, strict=True) if slope]
        if constant or not terms:
            terms.append(f"{constant:,.12g}")
        what = "allocation" if self.signs[event] > 0 else "release of a block from before,"
        return f"{what} {event}: " + " + ".join(terms).replace("+ -", "- ")
