"""The linear algebra of an allocation tape: sizes solved to the byte, and the running sums that can be the peak."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lightning_gnnopt.memory.workspaces import bound_workspace, find_workspaces, with_common_workspaces

Reason = Literal["structure", "rank", "residual", "holdout"]

_UNIT = 1 / 8  # of bytes per node or edge, since bits can be packed; exact in floating point
_TOLERANCE = 1e-11
_RANK_TOLERANCE = 1e-9
_NUM_SHAPES = 256


class TapeError(ValueError):
    """A step whose allocations cannot be told from the features.

    Args:
        reason: ``"structure"`` if the events differ between the probes, ``"rank"`` if the probes cannot tell features
            apart, ``"residual"`` if a size is no affine function of the features, ``"holdout"`` if it seemed to be one
            until the probe that was held out.
        message: The sentence for the user.
        event: Place of the first event concerned; None if it is not about one.
        columns: Names of the features concerned.
    """

    def __init__(self, reason: Reason, message: str, *, event: int | None = None, columns: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reason: Reason = reason
        self.event = event
        self.columns = tuple(columns)


def stack_streams(streams: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Put the probes' events side by side, shape ``(S, T)``.

    Raises:
        TapeError: If the numbers of events differ, or the signs of one.
    """
    lengths = [len(stream) for stream in streams]
    if len(set(lengths)) > 1:
        streams = with_common_workspaces(streams)
        lengths = [len(stream) for stream in streams]
    shortest = min(lengths)
    events = np.array([np.asarray(stream)[:shortest] for stream in streams], np.int64).reshape(len(streams), shortest)
    signs = np.sign(events)  # 0 where a probe did without a workspace
    differs = np.flatnonzero((signs.max(axis=0, initial=-1) > 0) & (signs.min(axis=0, initial=1) < 0))
    if len(differs) or max(lengths) > shortest:
        event = int(differs[0]) if len(differs) else shortest
        raise TapeError(
            "structure",
            f"Every probe must allocate and release in the same order, but the probes logged {shortest} to"
            f" {max(lengths)} events, and event {event} is not the same in all."
            " HINT: the step's operations depend on the data or on the shape of the batch; predict from samples.",
            event=event,
        )
    return events


def check_rank(matrix: NDArray[np.float64], names: Sequence[str]) -> None:
    """Check that no column follows from the others.

    Args:
        matrix: Constant and features of the probes that are fitted, shape ``(S, P + 1)``.
        names: Names of the ``P`` features.

    Raises:
        TapeError: If there are too few probes, or columns that depend on each other; it names these.
    """
    num_probes, num_columns = matrix.shape
    if num_probes < num_columns:
        raise TapeError(
            "rank",
            f"{num_columns - 1} features need at least {num_columns + 1} probes, one of which is held out, but got"
            f" {num_probes + 1}. HINT: add probes.",
            columns=names,
        )
    _, singular, right = np.linalg.svd(matrix / _scales(matrix), full_matrices=False)
    lost = right[singular <= singular[0] * _RANK_TOLERANCE]
    if not len(lost):
        return
    involved = np.flatnonzero(np.abs(lost).max(axis=0) > _RANK_TOLERANCE)
    groups: dict[str, list[str]] = {"always 0": [], "always the same": [], "not independent of each other": []}
    for column in involved[involved > 0]:
        values = matrix[:, column]
        is_varied = bool((values != values[0]).any())
        groups[list(groups)[2 if is_varied else 1 if values[0] else 0]].append(names[column - 1])
    found = "; ".join(f"{', '.join(group)}: {what}" for what, group in groups.items() if group)
    columns = [name for group in groups.values() for name in group]
    raise TapeError(
        "rank",
        f"The probes must tell the features apart, without the one that is held out, but they have {found}."
        " HINT: vary seeds and fan-outs more, or name features that are always 0 in `absent`.",
        columns=columns,
    )


def solve_events(
    events: NDArray[np.int64], matrix: NDArray[np.float64], names: Sequence[str], *, holdout: int
) -> NDArray[np.float64]:
    """Solve each event's signed size as an affine function of the features, without a byte of error.

    Least squares on columns scaled to 1, then coefficients rounded to eighths of a byte.

    A kernel's workspace, which is released by the very next event, may grow in steps (oneDNN's with the rows of a
    product in bfloat16). One whose size is not affine is bounded from above instead. The peak is exact all the same
    wherever such a workspace is not part of it.

    Args:
        events: Signed bytes, shape ``(S, T)``.
        matrix: Constant and features, shape ``(S, P + 1)``; its rank is ``P + 1`` without the row `holdout`.
        names: Names of the ``P`` features.
        holdout: The probe that is only predicted.

    Returns:
        Coefficients of shape ``(T, P + 1)``, the constant first.

    Raises:
        TapeError: If a size is not reproduced on a probe.
    """
    fitted = np.arange(len(events)) != holdout
    scales = _scales(matrix)
    solution = np.linalg.lstsq(matrix[fitted] / scales, events[fitted].astype(np.float64), rcond=None)[0]
    solution = (solution / scales[:, None]).T
    slopes = np.round(solution[:, 1:] / _UNIT) * _UNIT
    # The constant is what is left, the same in all probes if the slopes are right: free of the error that a fit far
    # from 0 makes there.
    constants = events[fitted][0] - slopes @ matrix[fitted][0, 1:]
    coefficients: NDArray[np.float64] = np.column_stack([constants, slopes])
    exact = (matrix[fitted] @ coefficients.T == events[fitted]).all(axis=0)
    passing = find_workspaces(events) & ~(exact & (matrix[holdout] @ coefficients.T == events[holdout]))
    for start in np.flatnonzero(passing & (events.max(axis=0) > 0)):
        coefficients[start] = bound_workspace(matrix, events[:, start].astype(np.float64), names)
        coefficients[start + 1] = -coefficients[start]
    exact |= passing
    if not exact.all():
        event = int(np.flatnonzero(~exact)[0])
        sizes = np.abs(events[:, event])
        error = np.abs(matrix[fitted] @ solution[event] - events[fitted, event]).max()
        raise TapeError(
            "residual",
            f"Every size must be an affine function of {', '.join(names)}, but event {event} of {events.shape[1]},"
            f" {sizes.min():,} to {sizes.max():,} bytes, is not: off by up to {error:,.2f} bytes."
            " HINT: a feature is missing, such as self loops or padded rows, or sizes depend on the data.",
            event=event,
        )
    predicted = coefficients @ matrix[holdout]
    wrong = np.flatnonzero((predicted != events[holdout]) & ~passing)
    if len(wrong):
        event = int(wrong[0])
        raise TapeError(
            "holdout",
            f"The probe that was held out must be predicted to the byte, but event {event} has"
            f" {abs(events[holdout, event]):,} bytes instead of {abs(predicted[event]):,.2f}."
            " HINT: a feature is missing, or sizes depend on the data.",
            event=event,
        )
    return coefficients


def pair_events(events: NDArray[np.float64], signs: NDArray[np.int8]) -> NDArray[np.int64]:
    """Find each release's allocation, the latest of that size still in use; -1 for allocations and where none is."""
    in_use: defaultdict[bytes, list[int]] = defaultdict(list)
    allocation_of = np.full(len(events), -1, np.int64)
    sizes = events * signs[:, None] + 0.0  # no -0.0, which has other bytes than 0.0
    for event, sign in enumerate(signs):
        candidates = in_use[sizes[event].tobytes()]
        if sign > 0:
            candidates.append(event)
        elif candidates:
            allocation_of[event] = candidates.pop()
    return allocation_of


def common_divisor(coefficients: NDArray[np.float64], round_to: int) -> int:
    """Find what every size that these coefficients give is a multiple of."""
    if (coefficients % 1).any():
        return 1
    return math.gcd(round_to, *coefficients.astype(np.int64).tolist())


def reachable(rows: NDArray[np.float64], upper: NDArray[np.float64] | None = None) -> NDArray[np.int64]:
    """Find the affine functions that are the largest of all somewhere, with features from 0 to `upper`.

    A row that another one bounds coefficient by coefficient is out, then one that a convex combination of the others
    bounds: by linear programming's duality these are all rows that are nowhere above the others' maximum (Boyd and
    Vandenberghe, Convex Optimization, 2004, section 5.8).

    Args:
        rows: Affine functions ``[c, a_1..a_P]``, shape ``(K, P + 1)``.
        upper: Largest value of each feature, shape ``(P,)``, infinity where there is none; None for no bounds.

    Returns:
        Places of the rows to keep, in ascending order; of equal rows the first.
    """
    candidates = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    kept = candidates[_undominated(rows[candidates])]
    bounds = np.full(rows.shape[1] - 1, np.inf) if upper is None else np.asarray(upper, np.float64)
    sure = set(_largest_at_samples(rows[kept], bounds).tolist())
    needed = list(range(len(kept)))
    for row in range(len(kept)):
        if row not in sure:
            others = [other for other in needed if other != row]
            if _is_bounded(rows[kept[row]], rows[kept[others]], bounds):
                needed = others
    return kept[needed]


def _undominated(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows that no other one bounds in every coefficient; no two are equal."""
    kept: list[int] = []
    # Largest sum first: a row can only be bounded by one before it.
    for row in np.argsort(-rows.sum(axis=1), kind="stable"):
        if not (rows[kept] >= rows[row]).all(axis=1).any():
            kept.append(int(row))
    return np.sort(np.array(kept, np.int64))


def _largest_at_samples(rows: NDArray[np.float64], upper: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows found to be the only largest one at some features: these need no proof."""
    generator = np.random.default_rng(0)
    features = 10 ** generator.uniform(0, 6, (_NUM_SHAPES, len(upper)))
    features[generator.random(features.shape) < 0.3] = 0
    values = np.minimum(features, upper) @ rows[:, 1:].T + rows[:, 0]
    if len(rows) == 1:
        return np.zeros(1, np.int64)
    best = np.partition(values, -2, axis=1)[:, -2:]
    alone = best[:, 1] - best[:, 0] > _TOLERANCE * np.abs(best[:, 1])
    return np.unique(values.argmax(axis=1)[alone])


def _is_bounded(row: NDArray[np.float64], others: NDArray[np.float64], upper: NDArray[np.float64]) -> bool:
    """Tell whether a convex combination of the others is at least `row` at all features from 0 to `upper`."""
    if not len(others):
        return False
    # For weights w >= 0 that sum to 1, w @ others - row must be >= 0 in every slope, or made so by a price m >= 0
    # that is paid at the upper bound: find w, m and slack >= 0 that solve this as equations.
    slope_scales = np.maximum(np.abs(others[:, 1:]).max(axis=0), np.abs(row[1:]))
    scales = np.concatenate([[max(np.abs(others[:, 0]).max(), abs(row[0]))], slope_scales])
    bounded = np.flatnonzero(np.isfinite(upper))
    prices = np.zeros((len(row), len(bounded)))
    prices[1 + bounded, np.arange(len(bounded))] = 1
    prices[0] = -upper[bounded]
    scales[0] = max(scales[0], (upper[bounded] * slope_scales[bounded]).max(initial=0))
    scales[scales == 0] = 1
    prices /= scales[:, None]
    price_scales = np.abs(prices).max(axis=0, initial=0)
    equations = np.block(
        [
            [(others / scales).T, prices / np.where(price_scales > 0, price_scales, 1), -np.eye(len(row))],
            [np.ones((1, len(others))), np.zeros((1, len(bounded) + len(row)))],
        ]
    )
    try:
        _, residual = nnls(equations, np.append(row / scales, 1.0))
    except RuntimeError:  # too many iterations: a row too many does no harm
        return False
    return bool(residual < _TOLERANCE)


def _scales(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    scales: NDArray[np.float64] = np.abs(matrix).max(axis=0)
    scales[scales == 0] = 1
    return scales
