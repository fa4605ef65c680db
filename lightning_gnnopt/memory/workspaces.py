"""Workspaces of kernels, blocks that the very next event releases: found in recordings, and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MANY_MORE = 1.1
_SURE = 3


def with_common_workspaces(streams: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
    """Give all streams the same workspaces, blocks that the very next event releases, if that is where they differ.

    Of those between two other events only the largest matters to the peak; a probe that did without has one of 0 bytes.
    Without a workspace in it, a block may look like one itself: then it counts as one, together with what is in it.
    """
    for nested in (False, True):
        split = [_without_workspaces(stream.tolist(), nested=nested) for stream in map(np.asarray, streams)]
        lengths = [len(rest) for rest, _, _ in split]
        usual = max(set(lengths), key=lengths.count)
        like = np.sign(split[lengths.index(usual)][0])
        for place, (rest, _, num_doubtful) in enumerate(split):
            for kept in range(num_doubtful if len(rest) == usual - 2 else 0):
                again = _without_workspaces(np.asarray(streams[place]).tolist(), nested=nested, kept=kept)
                if np.array_equal(np.sign(again[0]), like):
                    split[place] = again
                    break
        if all(len(rest) == usual for rest, _, _ in split):
            break
    else:
        return list(streams)
    used = np.flatnonzero(np.max([heights for _, heights, _ in split], axis=0))
    return [
        np.insert(rest, np.repeat(used, 2), np.stack([heights[used], -heights[used]], axis=1).ravel())
        for rest, heights, _ in split
    ]


def _without_workspaces(
    stream: list[int], *, nested: bool = False, kept: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Take workspaces out of a stream.

    Args:
        stream: Signed bytes.
        nested: Whether a block is one, too, if nothing but workspaces comes between its two events.
        kept: Which of the doubtful workspaces is none.

    Returns:
        What stays, ``T'`` events; how large workspaces are before each of these, and after the last, shape
        ``(T' + 1,)``; how many are doubtful: beside them is a block of the same size, which may be what is released.
    """
    rest: list[int] = []
    heights: list[int] = [0]
    in_use: Counter[int] = Counter()
    previous = num_doubtful = 0
    for size in stream:
        is_workspace = bool(rest) and 0 < rest[-1] == -size and (nested or previous == rest[-1])
        if is_workspace and in_use[-size] > 1:
            is_workspace = num_doubtful != kept
            num_doubtful += 1
        if is_workspace:
            rest.pop()
            inside = heights.pop()
            heights[-1] = max(heights[-1], inside - size)
        else:
            rest.append(size)
            heights.append(0)
        in_use[abs(size)] += 1 if size > 0 else -1
        previous = size
    return np.array(rest, np.int64), np.array(heights, np.int64), num_doubtful


def find_workspaces(events: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find allocations that the very next event releases in all probes, and these releases; shape ``(T,)``."""
    found = np.zeros(events.shape[1], np.bool_)
    is_pair = (events[:, :-1] >= 0) & (events[:, 1:] == -events[:, :-1])
    released = is_pair.all(axis=0) & (events[:, :-1].max(axis=0, initial=0) > 0)
    found[:-1] |= released
    found[1:] |= released
    return found


def bound_workspace(
    matrix: NDArray[np.float64], sizes: NDArray[np.float64], names: Sequence[str]
) -> NDArray[np.float64]:
    """Bound the sizes of a workspace from above by an affine function, shape ``(P + 1,)``.

    They grow, not always steadily, with some number of rows: the nodes, or the edges, of the first so many hops, or the
    links. Kernels compute block by block, so that a row costs the less the more there are. If the two largest probes
    have many more rows than all others, a row beyond costs what one costs between these two, often nothing: the bound
    holds for all rows that it may be. Where some probes have a block without the workspace in it, the rows are those
    that its size is a multiple of.

    Small probes alone show less. Then the rows are taken to be those that leave least unexplained at a probe's least
    bytes per row, with twice that as the constant.
    """
    *small, second, largest = np.argsort(matrix.sum(axis=1), kind="stable")
    candidates: list[tuple[int, float, float, list[int]]] = []  # multiples among the probes, constant, slope, features
    guess, least, has_many = np.zeros(len(names) + 1), np.inf, True
    for kind in ("nodes_", "edges_", "labels"):
        places = [1 + place for place, name in enumerate(names) if name.startswith(kind)]
        for end in range(1, len(places) + 1):
            rows = matrix[:, places[:end]].sum(axis=1)
            if (rows <= 0).any():
                continue
            has_many &= rows[largest] >= _MANY_MORE * rows[second] >= _MANY_MORE**2 * rows[small].max(initial=0)
            slope = max(0.0, (sizes[largest] - sizes[second]) / max(1.0, rows[largest] - rows[second]))
            left = sizes - slope * rows
            if left.min() > -1 and left.max() < left[[second, largest]].max() + 1:
                multiples = int((left < 1).sum()) if slope else 0
                candidates.append((multiples, left.max(), slope, places[:end]))
            slope = (sizes / rows)[sizes > 0].min()
            above = (sizes - slope * rows).max()
            if above < least:
                least, guess = above, np.zeros(len(names) + 1)
                guess[0], guess[places[:end]] = 2 * above, slope
    if not has_many or not candidates:
        guess[0] = guess[0] if np.isfinite(least) else 2 * sizes.max()
        return guess
    bound = np.zeros(len(names) + 1)
    most = max(multiples for multiples, *_ in candidates)
    for multiples, constant, slope, places in candidates:
        if multiples == most or most < _SURE:
            bound[0] = max(bound[0], constant)
            bound[places] = np.maximum(bound[places], slope)
    return bound
