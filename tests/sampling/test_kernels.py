from __future__ import annotations

import os
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lightning_gnnopt.sampling.draws import draw_positions, draw_uniform
from lightning_gnnopt.sampling.kernels import coo_to_csc, gather, in_degrees_without_self_loops

from . import reference
from .reference import SIGNIFICANCE, uniform_p_value


def draw(degree: int, fanout: int, state: int, *, first: int = 0) -> list[int]:
    out = np.full(fanout + 2, -7, np.int64)
    draw_positions(*(np.uint64(value) for value in (degree, fanout, first, state, 1)), out)
    assert (out[0], out[-1]) == (-7, -7)
    return out[1:-1].tolist()


def draw_often(degree: int, fanout: int, times: int) -> NDArray[np.int64]:
    """Draw for `times` frontier nodes of the same `degree` in one call, as sampling does; shape ``(times, fanout)``."""
    colptr = np.empty(times + 1, np.int64)
    positions = np.empty(times * fanout, np.int32)
    cols = np.empty(times * fanout, np.int32)
    arguments = (np.array([0, degree]), np.zeros(times, np.int32), fanout, False, np.uint64(2024), np.int32(3))
    drawn = draw_uniform(*arguments, colptr, positions, cols)
    assert colptr.tolist() == list(range(0, drawn + 1, fanout))
    assert np.array_equal(cols, np.repeat(np.arange(3, times + 3), fanout))
    return positions.reshape(times, fanout)


@settings(deadline=None)
@given(st.data())
def test_drawn_positions_equal_the_reference(data: st.DataObject) -> None:
    degree = data.draw(st.integers(2, 200))
    fanout = data.draw(st.integers(1, degree - 1))
    state, first = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 2**40))

    drawn = draw(degree, fanout, state, first=first)

    assert drawn == [first + position for position in reference.draw_positions(degree, fanout, state)]
    assert len(set(drawn)) == fanout
    assert first <= min(drawn)
    assert max(drawn) < first + degree


@pytest.mark.parametrize(("degree", "fanout"), [(200_000, 600), (200_000, 700)])  # Floyd's draw, selection sampling
def test_large_draws_equal_the_reference(degree: int, fanout: int) -> None:
    assert draw(degree, fanout, state=3) == reference.draw_positions(degree, fanout, 3)


# Floyd's draw; the last by selection sampling
@pytest.mark.parametrize(("degree", "fanout"), [(2, 1), (3, 2), (5, 3), (12, 5), (36, 34)])
def test_every_subset_is_equally_likely(degree: int, fanout: int) -> None:
    """Stronger than fairness over single positions or over pairs: all subsets, at a significance of 1e-4."""
    subsets = dict.fromkeys(combinations(range(degree), fanout), 0)
    for row in np.sort(draw_often(degree, fanout, times=25 * max(comb(degree, fanout), 100))).tolist():
        subsets[tuple(row)] += 1
    assert uniform_p_value(list(subsets.values())) > SIGNIFICANCE


# Floyd's draw; the last two by selection sampling
@pytest.mark.parametrize(
    ("degree", "fanout"), [(2, 1), (12, 5), (40, 25), (17_481, 15), (40_000, 25), (2_000, 70), (50, 40)]
)
def test_every_position_is_equally_likely(degree: int, fanout: int) -> None:
    drawn = draw_often(degree, fanout, times=max(20 * degree // fanout, 2_000))
    counts = np.bincount(drawn.ravel(), minlength=degree)
    assert uniform_p_value(counts, population=degree, fanout=fanout) > SIGNIFICANCE


@pytest.mark.parametrize(("degree", "fanout"), [(12, 5), (60, 40)])
def test_every_pair_is_equally_likely(degree: int, fanout: int) -> None:
    drawn = draw_often(degree, fanout, times=20_000)
    member = np.zeros((len(drawn), degree))
    np.put_along_axis(member, drawn, 1, axis=1)
    observed = (member.T @ member)[np.triu_indices(degree, 1)] / len(drawn)
    expected = fanout * (fanout - 1) / (degree * (degree - 1))
    deviation = np.sqrt(expected * (1 - expected) / len(drawn))
    # Bonferroni over the pairs, at a significance below 1e-4: 5 deviations for 66 pairs, 5.6 for 1770
    assert np.abs(observed - expected).max() < {12: 5.0, 60: 5.6}[degree] * deviation


# Floyd's draw with an odd word at the end, and selection sampling, which reads more words than a node's stretch has
@pytest.mark.parametrize(("degree", "fanout"), [(12, 5), (6, 1), (50, 40)])
def test_a_node_draws_independently_of_the_node_before(degree: int, fanout: int) -> None:
    drawn = draw_often(degree, fanout, times=40_000)
    member = np.zeros((len(drawn), degree))
    np.put_along_axis(member, drawn, 1, axis=1)
    together = member[1:].T @ member[:-1] / (len(drawn) - 1)
    share = fanout / degree
    deviation = share * (1 - share) / np.sqrt(len(drawn) - 1)
    # Bonferroni over at most 2500 pairs of positions, at a significance below 1e-4
    assert np.abs(together - np.outer(member.mean(0), member.mean(0))).max() < 5.7 * deviation


@pytest.mark.parametrize(("degree", "fanout"), [(17_481, 15), (2_000, 70)])
def test_draws_of_neighbouring_keys_are_fair_together(degree: int, fanout: int) -> None:
    """Consecutive states, as consecutive batches may have them, and one draw for each."""
    drawn = [draw(degree, fanout, reference.mix64(state)) for state in range(20 * degree // fanout)]
    counts = np.bincount(np.ravel(drawn), minlength=degree)
    assert uniform_p_value(counts, population=degree, fanout=fanout) > SIGNIFICANCE


def test_csc_kernels_take_either_width() -> None:
    row, col = np.array([2, 0, 1, 1, 1]), np.array([1, 1, 0, 1, 2])
    for dtype in (np.int32, np.int64):
        indptr, indices, ids = np.zeros(5, np.int64), np.empty(5, dtype), np.empty(5, dtype)
        without_indptr, without_indices = np.zeros(5, np.int64), np.empty(5, dtype)
        coo_to_csc(row, col, without_indptr, without_indices)
        coo_to_csc(row, col, indptr, indices, ids)
        assert (without_indptr.tolist(), without_indices.tolist()) == (indptr.tolist(), indices.tolist())
        degrees = np.empty(4, np.int32)
        in_degrees_without_self_loops(indptr, indices, degrees)
        assert indptr.tolist() == [0, 1, 4, 5, 5]
        assert indices.tolist() == [1, 2, 0, 1, 1]
        assert ids.tolist() == [2, 0, 1, 3, 4]
        assert degrees.tolist() == [1, 2, 1, 0]


@pytest.mark.skipif(
    os.environ.get("NUMBA_BOUNDSCHECK") != "1", reason="kernels check no index; `make bounds` has them do"
)
def test_an_index_outside_an_array_is_noticed() -> None:
    """Without the check this would write beyond the array; that it raises says that the other tests ran checked."""
    two, outside = np.array([0, 1]), np.array([0, 7])
    with pytest.raises(IndexError, match="out of bounds"):
        coo_to_csc(two, outside, np.zeros(3, np.int64), np.empty(2, np.int32))
    with pytest.raises(IndexError, match="out of bounds"):
        gather(np.zeros(2, np.int32), outside)
