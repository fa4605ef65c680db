from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lightning_gnnopt.sampling import Topology
from lightning_gnnopt.sampling.edge_lookup import EdgeLookup
from lightning_gnnopt.sampling.negatives import MAX_TRIES, NodePool, negative_pairs, negative_targets

from . import reference
from .reference import SIGNIFICANCE, WORD, multigraphs, uniform_p_value

WORD_0 = np.uint64(0x1234)


def p_value(counts: Sequence[int], probability: Sequence[float]) -> float:
    """Pearson's test of given chances, over the cells that can occur."""
    observed, expected = np.asarray(counts, float), np.asarray(probability) * np.sum(counts)
    assert not observed[expected == 0].any()
    observed, expected = observed[expected > 0], expected[expected > 0]
    return float(chi2.sf(((observed - expected) ** 2 / expected).sum(), len(observed) - 1))


def draw_node(state: int, nodes: list[int], weight: list[float] | None) -> tuple[int, int]:
    """One of `nodes`, in proportion to the weights: inversion of the cumulative sum at a 53-bit uniform number."""
    if weight is None:
        place, state = reference.uniform_below(state, len(nodes))
        return nodes[place], state
    state = (state + reference.GOLDEN) % WORD
    sums = list(itertools.accumulate(weight[node] for node in nodes))
    aim = (reference.mix64(state) >> 11) / 2**53 * sums[-1]
    return next(node for node, total in zip(nodes, sums, strict=True) if total > aim), state


def existing(num_nodes: int, node_time: list[int] | None, time: list[int] | None, j: int) -> list[int]:
    """Nodes that exist at the time of draw `j`, the oldest first."""
    if node_time is None:
        return list(range(num_nodes))
    latest = max(node_time) if time is None else time[j % len(time)]
    return sorted((v for v in range(num_nodes) if node_time[v] <= latest), key=lambda v: node_time[v])


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_draws_equal_the_reference_bit_for_bit(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    edges = {(u, v) for u, v in edge_index.t().tolist()}
    node = st.integers(0, num_nodes - 1)
    links = data.draw(st.lists(st.tuples(node, node), min_size=1, max_size=5))
    word, amount = data.draw(st.integers(0, WORD - 1)), data.draw(st.integers(1, 3))
    per_node = {"min_size": num_nodes, "max_size": num_nodes}
    node_time = data.draw(st.none() | st.lists(st.integers(0, 5), **per_node))
    time = data.draw(
        st.none() | st.lists(st.integers(max(node_time or [0]), 9), min_size=len(links), max_size=len(links))
    )
    weights = [data.draw(st.none() | st.lists(st.floats(0.125, 9.0), **per_node)) for _ in range(2)]
    exclude = data.draw(st.booleans())

    graph = Topology.from_edge_index(edge_index, num_nodes)
    lookup = EdgeLookup(graph) if exclude else None
    times = None if node_time is None else np.array(node_time)
    pools = [NodePool(num_nodes, weight=weight, node_time=times) for weight in weights]
    options: dict[str, Any] = {"time": None if time is None else np.array(time), "lookup": lookup}
    size = amount * len(links)
    pairs = negative_pairs(np.uint64(word), size, *pools, **options)
    sources, targets = np.array(links).T
    others = negative_targets(np.uint64(word), sources, targets, amount, pools[1], **options)

    for j in range(size):
        nodes = existing(num_nodes, node_time, time, j)
        state = reference.mix64(word ^ j)
        for _ in range(MAX_TRIES if exclude else 1):
            source, state = draw_node(state, nodes, weights[0])
            target, state = draw_node(state, nodes, weights[1])
            if (source, target) not in edges:
                break
        assert (pairs[0][j], pairs[1][j]) == (source, target)
        state = reference.mix64(word ^ j)
        source, own = links[j % len(links)]
        for _ in range(MAX_TRIES if exclude else 1):
            target, state = draw_node(state, nodes, weights[1])
            if target != own and (source, target) not in edges:
                break
        assert others[j] == target


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_lookup_knows_the_edges(data: st.DataObject) -> None:
    edge_index, num_nodes = data.draw(multigraphs())
    graph = Topology.from_edge_index(edge_index, num_nodes)
    before = graph.indices.copy()
    edges = {(u, v) for u, v in edge_index.t().tolist()}
    pairs = list(itertools.product(range(num_nodes), repeat=2))
    lookup = EdgeLookup(graph)
    assert lookup.contains(*np.array(pairs).T).tolist() == [pair in edges for pair in pairs]
    assert np.array_equal(graph.indices, before)


def test_the_lookup_copies_only_what_is_not_sorted() -> None:
    ordered = Topology.from_edge_index(torch.tensor([[0, 2, 1, 2], [0, 0, 1, 2]]), 3)
    assert EdgeLookup(ordered).sources is ordered.indices
    mixed = Topology.from_edge_index(torch.tensor([[2, 0, 1, 2], [0, 0, 1, 2]]), 3)
    assert EdgeLookup(mixed).sources.tolist() == [0, 2, 1, 2]


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 1_000])
def test_both_ends_are_uniform_and_independent(num_nodes: int) -> None:
    """Significance 1e-4."""
    pool = NodePool(num_nodes)
    sources, targets = negative_pairs(WORD_0, 50_000, pool, pool)
    if num_nodes == 1:
        assert not sources.any()
        assert not targets.any()
        return
    assert uniform_p_value(np.bincount(sources, minlength=num_nodes)) > SIGNIFICANCE
    assert uniform_p_value(np.bincount(targets, minlength=num_nodes)) > SIGNIFICANCE
    cells = 5 if num_nodes > 5 else num_nodes
    both = (sources * cells // num_nodes) * cells + targets * cells // num_nodes
    share = np.bincount(np.arange(num_nodes) * cells // num_nodes) / num_nodes
    assert (
        p_value(np.bincount(both, minlength=cells**2).tolist(), np.outer(share, share).ravel().tolist()) > SIGNIFICANCE
    )


def test_nodes_are_drawn_by_weight() -> None:
    """Significance 1e-4; a weight of 0, at either end too, is never drawn."""
    weight = np.array([0.0, 3.0, 1.0, 0.0, 0.5, 1e-12, 5.5, 0.0])
    drawn = negative_targets(
        WORD_0, np.zeros(1, np.int64), np.zeros(1, np.int64), 60_000, NodePool(8, weight=torch.tensor(weight))
    )
    chances = np.where(weight > 1e-6, weight, 0)
    assert p_value(np.bincount(drawn, minlength=8).tolist(), (chances / chances.sum()).tolist()) > SIGNIFICANCE


@pytest.mark.parametrize("weighted", [False, True])
def test_only_nodes_that_exist_by_then_are_drawn(weighted: bool) -> None:
    """Every node of time up to the link's own, that time included, in proportion to its weight; significance 1e-4."""
    node_time, time = np.array([3, 0, 7, 3, 5]), np.array([0, 3, 5, 6, 9])
    weight = np.array([1.0, 2.0, 3.0, 4.0, 5.0]) if weighted else np.ones(5)
    pool = NodePool(5, weight=weight if weighted else None, node_time=node_time)
    zeros = np.zeros(5, np.int64)
    drawn = negative_targets(WORD_0, zeros, zeros, 10_000, pool, time=time).reshape(-1, 5)
    for link in range(5):
        chances = np.where(node_time <= time[link], weight, 0)
        counts = np.bincount(drawn[:, link], minlength=5).tolist()
        if np.count_nonzero(chances) == 1:
            assert counts == [0, 10_000, 0, 0, 0]
        else:
            assert p_value(counts, (chances / chances.sum()).tolist()) > SIGNIFICANCE


def test_without_edges_negatives_are_uniform_over_the_other_pairs() -> None:
    """Significance 1e-4."""
    num_nodes = 6
    edge_index = torch.tensor([[0, 1, 2, 3, 3, 5, 0, 0], [1, 0, 2, 4, 4, 5, 2, 3]])
    lookup, pool = EdgeLookup(Topology.from_edge_index(edge_index, num_nodes)), NodePool(num_nodes)
    edges = {(u, v) for u, v in edge_index.t().tolist()}
    free = [0.0 if pair in edges else 1.0 for pair in itertools.product(range(num_nodes), repeat=2)]

    sources, targets = negative_pairs(WORD_0, 60_000, pool, pool, lookup=lookup)
    counts = np.bincount(sources * num_nodes + targets, minlength=num_nodes**2)
    assert p_value(counts.tolist(), (np.array(free) / sum(free)).tolist()) > SIGNIFICANCE

    # from node 0, which leads to 1, 2, 3; node 5 is the link itself, which is not one of the graph's edges
    drawn = negative_targets(WORD_0, np.array([0]), np.array([5]), 20_000, pool, lookup=lookup)
    assert p_value(np.bincount(drawn, minlength=6).tolist(), [0.5, 0, 0, 0, 0.5, 0]) > SIGNIFICANCE


def test_a_node_joined_to_all_others_keeps_what_the_last_try_gives() -> None:
    num_nodes = 3
    every_pair = torch.tensor(list(itertools.product(range(num_nodes), repeat=2))).t()
    lookup, pool = EdgeLookup(Topology.from_edge_index(every_pair, num_nodes)), NodePool(num_nodes)
    sources, targets = negative_pairs(WORD_0, 3_000, pool, pool, lookup=lookup)
    assert uniform_p_value(np.bincount(3 * sources + targets, minlength=9)) > SIGNIFICANCE


def test_draws_are_a_function_of_the_word_and_the_place() -> None:
    pool = NodePool(1_000)
    words = [np.uint64(word) for word in range(40)]

    def draw(word: np.uint64) -> list[int]:
        return negative_pairs(word, 100, pool, pool)[0].tolist()

    alone = [draw(word) for word in words]
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, words)) == alone
    assert len({tuple(drawn) for drawn in alone}) == 40
    assert negative_pairs(words[3], 10, pool, pool)[0].tolist() == alone[3][:10]


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0], "must have the shape (3,), one number per node, but got (2,). HINT: in heterogeneous graphs"),
        ([[1.0], [2.0], [3.0]], "must have the shape (3,), one number per node, but got (3, 1)."),
        ([1.0, -2.0, 1.0], "must be finite, not negative and somewhere positive, but found -2.0 of node 1."),
        ([1.0, 1.0, float("nan")], "somewhere positive, but found nan of node 2."),
        ([0.0, 0.0, 0.0], "somewhere positive, but found zeros only. HINT: leave the weight away"),
    ],
)
def test_weights_that_are_no_distribution_are_refused(weight: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NodePool(3, weight=weight)


def test_times_at_which_there_is_no_node_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("`node_time` must hold one time per node (3), but got 2. HINT:")):
        NodePool(3, node_time=np.array([1, 2]))
    message = (
        "no node (of positive weight) exists at the time 1 of link 1. HINT: a link should not be older than its own"
    )
    for weight, times in ((None, [2, 3, 4]), ([0.0, 1.0, 1.0], [1, 3, 4])):
        pool = NodePool(3, weight=weight, node_time=np.array(times))
        with pytest.raises(ValueError, match=re.escape(message)):
            pool.counts(np.array([5, 1, 1]))
    with pytest.raises(ValueError, match=re.escape("no node (of positive weight) exists. HINT:")):
        NodePool(0).counts(None)
