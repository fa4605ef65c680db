from __future__ import annotations

import itertools
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from lightning_gnnopt.sampling.weighted import WeightedDraw, build_alias_tables

from .reference import (
    GOLDEN,
    SIGNIFICANCE,
    WORD,
    bounded,
    in_edges,
    mix64,
    multigraphs,
    random_graph,
    star,
    state_of,
    uniform_p_value,
)

UNITS = 2**32
KEY = np.uint64(2024)


def successive_sampling(weights: list[float], size: int) -> dict[int, float]:
    """The chance of every set (a bit mask) that `size` draws can give, each in proportion to the weights left."""
    chances = {0: 1.0}
    for _ in range(size):
        after: dict[int, float] = {}
        for taken, chance in chances.items():
            left = [i for i in range(len(weights)) if not taken >> i & 1 and weights[i] > 0]
            total = sum(weights[i] for i in left)
            for i in left:
                after[taken | 1 << i] = after.get(taken | 1 << i, 0.0) + chance * weights[i] / total
        chances = after
    return chances


def draw_often(weights: Any, size: int, times: int, *, replace: bool = False, key: np.uint64 = KEY) -> NDArray[Any]:
    """Draw for node 0 of a star at many places of one hop; shape ``(times, size)``."""
    draw = WeightedDraw(star(len(weights)), np.asarray(weights), replace=replace)
    drawn = draw(np.zeros(times, np.int32), size, key, time=None)
    assert drawn.colptr.tolist() == list(range(0, size * times + 1, size))
    return drawn.positions.reshape(times, size)


def fit_p_value(observed: Any, expected: Any) -> float:
    """Pearson's test, the cells that expect less than five pooled."""
    observed, expected = np.asarray(observed, float), np.asarray(expected, float)
    small = expected < 5
    if small.any():
        observed = np.append(observed[~small], observed[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1))


HEAVY_TAIL = [1e6, 1e3, 30.0, 4.0, 2.0, 1.0, 0.5]


# by alias table; by one pass over the row; by table until too many draws were in vain, then by a pass
@pytest.mark.parametrize(
    ("weights", "size"),
    [
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 3),
        ([1, 1, 1, 1, 50, 50, 0, 0, 200, 3, 3, 3], 4),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], 8),
        (HEAVY_TAIL, 2),
        (HEAVY_TAIL, 4),
        ([1e9, 1.0, 2.0, 3.0, 4.0, 5.0], 3),
    ],
)
def test_sets_are_as_likely_as_successive_sampling_makes_them(weights: list[float], size: int) -> None:
    """All sets, and the chances of single edges and of pairs, against an enumeration; significance 1e-4."""
    times = 200_000
    exact = successive_sampling(weights, size)
    assert sum(exact.values()) == pytest.approx(1)
    sets = (1 << draw_often(weights, size, times).astype(np.int64)).sum(axis=1)
    assert set(sets.tolist()) <= set(exact)
    counts = np.bincount(sets, minlength=2 ** len(weights))

    assert fit_p_value([counts[taken] for taken in exact], [times * p for p in exact.values()]) > SIGNIFICANCE

    groups = [*itertools.combinations(range(len(weights)), 1), *itertools.combinations(range(len(weights)), 2)]
    for group in groups:
        mask = sum(1 << i for i in group)
        chance = sum(p for taken, p in exact.items() if taken & mask == mask)
        found = counts[[taken for taken in range(len(counts)) if taken & mask == mask]].sum()
        deviation = np.sqrt(times * chance * max(1 - chance, 0))
        if deviation < 3:  # all but impossible, or all but certain
            assert abs(found - times * chance) < 20
        else:
            assert abs(found - times * chance) < deviation * norm.isf(SIGNIFICANCE / 2 / len(groups))


@pytest.mark.parametrize("size", [3, 20, 40, 90])
def test_equal_weights_draw_uniformly(size: int) -> None:
    """By table (3, 20) and by a pass over the row (40, 90); significance 1e-4."""
    drawn = draw_often(np.full(100, 0.3), size, 20_000)
    assert uniform_p_value(np.bincount(drawn.ravel()), population=100, fanout=size) > SIGNIFICANCE


@pytest.mark.parametrize("ratio", [1e9, 1e300])
def test_one_edge_that_outweighs_all_others_is_drawn_and_leaves_them_equally_likely(ratio: float) -> None:
    """A table alone would draw the heavy edge a billion times before another; significance 1e-4."""
    weights = np.full(1_000, 1 / np.sqrt(ratio))
    weights[17] = np.sqrt(ratio)
    drawn = draw_often(weights, 5, 5_000)
    assert (drawn == 17).sum(axis=1).tolist() == [1] * 5_000
    counts = np.delete(np.bincount(drawn.ravel(), minlength=1_000), 17)
    assert uniform_p_value(counts, population=999, fanout=4) > SIGNIFICANCE


def test_a_large_fan_out_follows_the_weights() -> None:
    """Of 50 edges of weight 1 and 50 of weight w, 60 are drawn; compared with a simulation by cumulated weights."""
    weights = np.repeat([1.0, 4.0], 50)
    drawn = draw_often(weights, 60, 4_000)
    rng = np.random.default_rng(0)
    simulated = []
    for _ in range(2_000):
        left, heavy = [50, 50], 0
        for _ in range(60):
            pick = int(rng.random() < 4 * left[1] / (left[0] + 4 * left[1]))
            left[pick] -= 1
            heavy += pick
        simulated.append(heavy)
    found = (drawn >= 50).sum(axis=1)
    error = np.sqrt(found.var() / len(found) + np.var(simulated) / len(simulated))
    assert abs(found.mean() - np.mean(simulated)) < norm.isf(SIGNIFICANCE / 2) * error
    assert found.std() == pytest.approx(np.std(simulated), rel=0.1)


def test_with_replacement_each_draw_follows_the_weights() -> None:
    """Single draws, and two of one node against each other; significance 1e-4."""
    weights, times = np.array([0.0, 1.0, 2.0, 3.0, 0.0, 94.0]), 100_000
    drawn = draw_often(weights, 2, times, replace=True)
    chances = weights / weights.sum()
    counts = np.bincount(drawn.ravel(), minlength=6)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert fit_p_value(counts[weights > 0], 2 * times * chances[weights > 0]) > SIGNIFICANCE
    pairs = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36)
    expected = np.outer(chances, chances).ravel()
    assert fit_p_value(pairs[expected > 0], times * expected[expected > 0]) > SIGNIFICANCE


@pytest.mark.parametrize("size", [3, 10**9, 2**40])
def test_a_fan_out_above_all_degrees_takes_every_weighted_edge(size: int) -> None:
    draw = WeightedDraw(star(4), np.array([1.0, 0.0, 2.0, 3.0]))
    drawn = draw(np.array([0, 1], np.int32), size, KEY, time=None)
    assert (drawn.positions.tolist(), drawn.colptr.tolist()) == ([0, 2, 3], [0, 3, 3])


def test_the_coin_is_the_lower_half_of_the_word_that_gives_the_column() -> None:
    """An alias table in plain Python, its thresholds at the coins themselves: at one, the other edge is drawn."""
    draw, places = WeightedDraw(star(4), np.ones(4), replace=True), range(200)
    for threshold_is_coin in (True, False):
        expected = []
        for place in places:
            word = mix64((state_of(int(KEY), place, 1, replace=True) + GOLDEN) % WORD)
            column, coin = bounded(word >> 32, 4, word), word % UNITS
            threshold = coin if threshold_is_coin else coin + 1
            draw._table[:] = [(threshold << 32) + (k + 1) % 4 for k in range(4)]
            drawn = draw(np.zeros(place + 1, np.int32), 1, KEY, time=None).positions[place]
            expected.append((column + 1) % 4 if threshold_is_coin else column)
            assert drawn == expected[-1]
        assert set(expected) == {0, 1, 2, 3}


positive = st.floats(min_value=0, max_value=1e308, exclude_min=True, allow_subnormal=True)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.lists(st.one_of(positive, st.sampled_from([1.0, 1e-9, 1e9])), max_size=40), min_size=1, max_size=4))
def test_alias_tables_hold_the_weights_to_32_bits(rows: list[list[float]]) -> None:
    """Shares summed in integers, wanted ones in fractions: the bound is the one the docstring states."""
    indptr = np.cumsum([0] + [len(row) for row in rows])
    table = np.empty(indptr[-1], np.uint64)
    build_alias_tables(indptr, np.array([w for row in rows for w in row], np.float64), table)
    for row, first in zip(rows, indptr.tolist(), strict=False):
        units = [0] * len(row)
        for column, entry in enumerate(table[first : first + len(row)].tolist()):
            own, other = divmod(entry, UNITS)
            units[column] += own
            units[other] += UNITS - own
        total = sum(map(Fraction, row))
        errors = [Fraction(mine, UNITS * len(row)) - Fraction(w) / total for mine, w in zip(units, row, strict=True)]
        assert sum(map(abs, errors), Fraction(0)) / 2 <= Fraction(1, 2**32) + Fraction(len(row), 2**53)


edge_weights = st.one_of(st.sampled_from([0.0, 0.0, 1.0, 1e-300, 1e9, 1e300]), st.floats(0, 10, width=32))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_what_every_draw_promises(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    num_edges = edge_index.shape[1]
    weights = data.draw(st.lists(edge_weights, min_size=num_edges, max_size=num_edges))
    dtype = data.draw(st.sampled_from([np.float64, np.float32])) if max(weights, default=0) < 1e30 else np.float64
    fanout, replace = data.draw(st.sampled_from([-1, 1, 2, 3, 5])), data.draw(st.booleans())
    frontier = np.array(data.draw(st.lists(st.integers(0, num_nodes - 1), min_size=1, max_size=8)), np.int32)
    graph = Topology.from_edge_index(edge_index, num_nodes, edge_ids=True)
    weights = np.array(weights, dtype)

    draw = WeightedDraw(graph, weights[graph.edge_ids], replace=replace)
    drawn = draw(frontier, fanout, np.uint64(data.draw(st.integers(0, 99))), time=None)

    assert drawn.positions.dtype == np.int32
    assert drawn.edge_norm is None
    incoming = in_edges(edge_index, num_nodes)
    for place, node in enumerate(frontier):
        mine = graph.edge_ids[drawn.positions[drawn.colptr[place] : drawn.colptr[place + 1]]].tolist()
        available = [number for _, number in incoming[node] if weights[number] > 0]
        assert set(mine) <= set(available)
        if fanout == -1 or (len(available) <= fanout and not replace):
            assert mine == available
        else:
            assert len(mine) == (fanout if available else 0)
            assert replace or len(set(mine)) == fanout


def test_a_batch_leaves_out_edges_without_weight() -> None:
    """`edge_weight` is in the order of `edge_index`: here every third of its edges has none."""
    edge_index = random_graph(100, 2_000)
    weights = torch.rand(2_000, generator=torch.Generator().manual_seed(0))
    weights[::3] = 0
    graph = Topology.from_edge_index(edge_index, 100, edge_ids=True)
    everything = NeighborSampler(graph, [-1], edge_weight=weights).sample(np.arange(100), SampleKey(0))
    assert sorted(graph.edge_ids[everything.positions].tolist()) == [e for e in range(2_000) if e % 3]
    sampler = NeighborSampler(graph, [4, 4], edge_weight=weights)
    batch = sampler.sample(np.arange(10), SampleKey(0))
    edge_ids = graph.edge_ids[batch.positions]
    assert (edge_ids % 3 > 0).all()
    assert edge_index[:, edge_ids].tolist() == [batch.n_id[batch.row].tolist(), batch.n_id[batch.col].tolist()]
    assert batch.num_sampled_edges == [4 * nodes for nodes in batch.num_sampled_nodes[:2]]
    same = NeighborSampler(graph, [4, 4], edge_weight=weights.numpy()).sample(np.arange(10), SampleKey(0))
    assert np.array_equal(same.positions, batch.positions)


def test_the_heavier_edge_of_each_node_is_in_the_batch() -> None:
    """A wrong order of the weights would show."""
    edge_index = random_graph(50, 1_000)
    weights = np.ones(1_000)
    heavy = [numbers[3][1] for numbers in in_edges(edge_index, 50)]
    weights[heavy] = 1e12
    graph = Topology.from_edge_index(edge_index, 50, edge_ids=True)
    batch = NeighborSampler(graph, [1], edge_weight=weights).sample(np.arange(50), SampleKey(1))
    assert graph.edge_ids[batch.positions].tolist() == heavy


@pytest.mark.parametrize("weights", [[1, 2, 3], [True, True, True], [1.0, 2.0, 3.0]])
@pytest.mark.parametrize("dtype", [None, np.float16, np.float32, np.uint8])
def test_weights_of_any_type(weights: list[Any], dtype: Any) -> None:
    given_, plain = np.array(weights, dtype), np.array(weights, np.float64)
    assert np.array_equal(draw_often(given_, 2, 500), draw_often(plain, 2, 500))


def test_many_threads_at_once_draw_the_same_bits() -> None:
    edge_index = random_graph(500, 20_000)
    weights = np.exp(3 * np.random.default_rng(0).standard_normal(20_000))
    graph = Topology.from_edge_index(edge_index, 500, edge_ids=True)
    sampler = NeighborSampler(graph, [10, 35], edge_weight=weights)
    keys = [SampleKey(3, batch=i) for i in range(32)]
    alone = [sampler.sample(np.arange(32), key).positions for key in keys]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: sampler.sample(np.arange(32), key).positions, keys))
    assert all(np.array_equal(*pair) for pair in zip(alone, together, strict=True))
    assert len({tuple(positions.tolist()) for positions in alone}) == 32
    copy = pickle.loads(pickle.dumps(sampler))
    assert np.array_equal(copy.sample(np.arange(32), keys[5]).positions, alone[5])


def test_a_graph_without_edges_draws_nothing() -> None:
    graph = Topology.from_edge_index(torch.empty((2, 0), dtype=torch.long), num_nodes=3)
    for replace in (False, True):
        drawn = WeightedDraw(graph, np.empty(0), replace=replace)(np.array([2, 0]), 5, KEY, time=None)
        assert (drawn.positions.tolist(), drawn.colptr.tolist()) == ([], [0, 0, 0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            [1.0, 2.0],
            "`edge_weight` must hold one number for each of the graph's 3 edges, but got float64 of shape (2,).",
        ),
        (
            [[1.0], [2.0], [3.0]],
            "but got float64 of shape (3, 1). HINT: a column of edge features is `edge_attr[:, k]`.",
        ),
        (["a", "b", "c"], "edges, but got <U1 of shape (3,)."),
        (
            [1.0, -2.0, -3.0],
            "must be finite and not negative, but found -2.0 (2 such weights). HINT: only ratios count;",
        ),
        ([1.0, np.nan, 1.0], "must be finite and not negative, but found nan (1 such weights)."),
        ([1.0, 1.0, np.inf], "must be finite and not negative, but found inf (1 such weights)."),
        ([1, 1, -1], "must be finite and not negative, but found -1.0 (1 such weights)."),
    ],
)
def test_weights_that_are_none_are_refused(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        WeightedDraw(star(3), np.array(weights))


def test_the_order_of_edge_index_must_be_known() -> None:
    message = (
        "`edge_weight` is in the order of `edge_index`, which the topology does not know."
        " HINT: build it with `Topology.from_edge_index(..., edge_ids=True)`."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        NeighborSampler(star(3), [2], edge_weight=np.ones(3))
    graph = Topology.from_edge_index(random_graph(5, 9), 5, edge_ids=True)
    message = "`edge_weight` must hold one number for each of the graph's 9 edges, but its shape is (8,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        NeighborSampler(graph, [2], edge_weight=torch.ones(8))
