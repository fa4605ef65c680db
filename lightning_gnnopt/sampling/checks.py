"""Checks of ids that kernels would trust: one pass over the arrays, no copies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def id_range(row: NDArray[np.integer], col: NDArray[np.integer]) -> tuple[np.int64, np.int64]:
    """Find the lowest id (or 0, if that is lower) and the highest (or -1, if there is none) of arrays of one length."""
    lowest, highest = np.int64(0), np.int64(-1)
    for e in range(len(col)):
        u, v = np.int64(row[e]), np.int64(col[e])
        lowest = min(lowest, u, v)
        highest = max(highest, u, v)
    return lowest, highest


@njit(nogil=True, cache=True)
def first_outside(ids: NDArray[np.integer], num_nodes: int) -> int:
    """Find the place of the first id that is not in ``0 .. num_nodes - 1``; -1 if all are."""
    for i in range(len(ids)):
        # As an unsigned number a negative id is a huge one.
        if np.uint64(np.int64(ids[i])) >= np.uint64(num_nodes):
            return i
    return -1


@njit(nogil=True, cache=True)
def first_decrease(numbers: NDArray[np.integer]) -> int:
    """Find the place of the first number that is lower than the one before it; -1 if there is none."""
    for i in range(1, len(numbers)):
        if numbers[i] < numbers[i - 1]:
            return i
    return -1


def check_integers(array: NDArray[Any], name: str, hint: str) -> None:
    """Refuse what is not a one-dimensional array of integers.

    Raises:
        ValueError: As said.
    """
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"`{name}` must be a one-dimensional array of integers, but got {array.dtype} of shape {array.shape}."
            f" HINT: {hint}"
        )


def check_csc(indptr: NDArray[np.integer], indices: NDArray[np.integer]) -> None:
    """Refuse compressed sparse columns that a kernel cannot trust.

    Args:
        indptr: Integers of shape ``(N + 1,)``.
        indices: Integers of shape ``(E,)``.

    Raises:
        ValueError: If `indptr` does not start at 0, decreases or does not end at ``E``, or an id is not a node.
    """
    num_nodes = len(indptr) - 1
    if num_nodes < 0 or indptr[0] != 0 or indptr[-1] != len(indices):
        found = "it is empty" if num_nodes < 0 else f"goes from {indptr[0]:,} to {indptr[-1]:,}"
        raise ValueError(
            f"`indptr` must go from 0 to the number of edges, {len(indices):,}, but {found}."
            " HINT: `indices[indptr[v]:indptr[v + 1]]` are the in-neighbours of `v`; N nodes need N + 1 entries."
        )
    place = int(first_decrease(indptr))
    if place >= 0:
        raise ValueError(
            f"`indptr` must never decrease, but entry {place:,} is {indptr[place]:,} after {indptr[place - 1]:,}."
            " HINT: it is the running sum of the nodes' in-degrees."
        )
    place = int(first_outside(indices, num_nodes))
    if place >= 0:
        raise ValueError(
            f"`indices` must hold node ids from 0 to {num_nodes - 1:,} ({num_nodes:,} nodes), but entry {place:,} is"
            f" {indices[place]:,}. HINT: `indptr` has one entry more than there are nodes; give isolated nodes theirs."
        )


def checked_seeds(seeds: Any, num_nodes: int) -> NDArray[np.integer]:
    """Take node ids as they come and refuse those that cannot be sampled.

    Args:
        seeds: Array, tensor or list of integers, shape ``(B,)``.
        num_nodes: Number of nodes of the graph.

    Returns:
        The seeds as an array of their own type, without a copy where they are one or lie in a tensor.

    Raises:
        ValueError: If they are not a one-dimensional array of integers, there is none, or one is not a node.
    """
    array: NDArray[Any] = seeds.detach().cpu().numpy() if hasattr(seeds, "detach") else np.asarray(seeds)
    if array.ndim == 1 and array.size == 0:
        raise ValueError("`seeds` must hold at least one node, but it is empty. HINT: check the split's mask.")
    check_integers(array, "seeds", "`mask.nonzero()` gives the ids that a mask marks, `ids.ravel()` makes them flat.")
    # Two types of id are enough for the kernel; a compiled version of each other one would be a wait for nothing.
    ids = array if array.dtype.type in (np.int32, np.int64) and array.flags.c_contiguous else array.astype(np.int64)
    # Of few seeds numpy finds this without letting go of the GIL, as a kernel does.
    if int(ids.min()) < 0 or int(ids.max()) >= num_nodes:
        place = int(first_outside(ids, num_nodes))
        raise ValueError(
            f"`seeds` must be node ids from 0 to {num_nodes - 1:,}, but found {array[place]:,}."
            " HINT: seeds are global ids of the graph that is sampled."
        )
    return array
