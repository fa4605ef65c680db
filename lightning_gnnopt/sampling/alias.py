"""Alias tables: a draw in proportion to weights in constant time."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from lightning_gnnopt.sampling.rng import LOW_32

_ONE = 1 << 32
_32 = np.uint64(32)


@njit(nogil=True, cache=True)
def build_alias_tables(indptr: NDArray[np.int64], weight: NDArray[np.floating], table: NDArray[np.uint64]) -> None:
    """Build the alias table of each row.

    A row of ``d`` edges shares out ``d * 2**32`` units of mass in proportion to its weights, what rounding leaves to
    its heaviest edge. Integers make Vose's pairing exact: no column is left over, none gets more than its due.

    Args:
        indptr: Shape ``(N + 1,)``.
        weight: Positive weights, shape ``(E,)``.
        table: Output, shape ``(E,)``: the column's own share of its ``2**32`` units in the upper half, in the lower
            one the place in the row of the edge that the rest belongs to.
    """
    longest = np.int64(0)
    for v in range(len(indptr) - 1):
        longest = max(longest, indptr[v + 1] - indptr[v])
    mass, order = np.empty(longest, np.int64), np.empty(longest, np.int64)
    for v in range(len(indptr) - 1):
        first = indptr[v]
        degree = indptr[v + 1] - first
        if degree == 0:
            continue
        heaviest = 0
        for k in range(degree):
            if weight[first + k] > weight[first + heaviest]:
                heaviest = k
        # In units of the heaviest, no sum overflows.
        largest, total = np.float64(weight[first + heaviest]), 0.0
        for k in range(degree):
            total += np.float64(weight[first + k]) / largest
        scale, left = np.float64(degree) * _ONE / total, degree * _ONE
        for k in range(degree):
            mass[k] = np.int64(np.float64(weight[first + k]) / largest * scale)
            left -= mass[k]
        mass[heaviest] += left
        # Light columns from the front of `order`, the others from its back.
        light, heavy = 0, degree
        for k in range(degree):
            if mass[k] < _ONE:
                order[light] = k
                light += 1
            else:
                heavy -= 1
                order[heavy] = k
        while light > 0:  # then there is one with more than 2**32 units, for that is the mean
            light -= 1
            column, donor = order[light], order[heavy]
            table[first + column] = (np.uint64(mass[column]) << _32) | np.uint64(donor)
            mass[donor] -= _ONE - mass[column]
            if mass[donor] < _ONE:
                heavy += 1
                order[light] = donor
                light += 1
        for k in range(heavy, degree):
            table[first + order[k]] = np.uint64(order[k])


@njit(nogil=True, cache=True, inline="always")
def place_of(table: NDArray[np.uint64], first: np.uint64, column: np.uint64, word: np.uint64) -> np.uint64:
    """Take a column of the row's alias table, or its alias, by the lower half of the word that chose the column."""
    entry = table[first + column]
    own, alias = np.uint64((word & LOW_32) < (entry >> _32)), entry & LOW_32
    place: np.uint64 = alias + (column - alias) * own  # no branch: it would be guessed wrong
    return place
