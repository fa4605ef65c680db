from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import binomtest

from lightning_gnnopt.datasets import load_dataset
from lightning_gnnopt.loading.hotness import (
    best_hit_rate,
    degree_scores,
    hit_rate,
    hot_nodes,
    inclusion_probabilities,
    presample_scores,
)
from lightning_gnnopt.loading.seeds import SeedOrder
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology
from tests.sampling.reference import SIGNIFICANCE, multigraphs, random_graph

Edges = list[tuple[int, int]]  # (source, destination)


def topology_of(edges: Edges, num_nodes: int) -> Topology:
    """The edges by destination, then source; edge ``e`` of the sorted list is at place ``e`` of the CSC order."""
    edges = sorted(edges, key=lambda edge: edge[::-1])
    return Topology.from_edge_index(torch.tensor(edges, dtype=torch.long).reshape(-1, 2).t(), num_nodes, edge_ids=True)


def finds(sources: list[int], weights: list[float], fanout: int, *, replace: bool) -> dict[frozenset[int], float]:
    """The chance of every set of sources that one node's draw can find, by going through all ordered draws."""
    left = [i for i in range(len(sources)) if weights[i] > 0]
    if fanout == -1 or not left or (fanout >= len(left) and not replace):
        return {frozenset(sources[i] for i in left): 1.0}
    chances: dict[frozenset[int], float] = {}
    for draws in itertools.product(left, repeat=fanout) if replace else itertools.permutations(left, fanout):
        chance, total = 1.0, sum(weights[i] for i in left)
        for i in draws:
            chance *= weights[i] / total
            total -= 0 if replace else weights[i]
        found = frozenset(sources[i] for i in draws)
        chances[found] = chances.get(found, 0.0) + chance
    return chances


def exact_inclusion(
    edges: Edges,
    seed_probability: Sequence[float],
    fanouts: Sequence[int],
    *,
    replace: bool = False,
    weights: Sequence[float] | None = None,
) -> list[float]:
    """Go through all sets of independent seeds and all that each node's draw can find; a node is expanded once."""
    n = len(seed_probability)
    edges = sorted(edges, key=lambda edge: edge[::-1])
    weights = [1.0] * len(edges) if weights is None else list(weights)
    sources = [[u for u, to in edges if to == v] for v in range(n)]
    of_node = [[w for w, (_, to) in zip(weights, edges, strict=True) if to == v] for v in range(n)]
    states: Counter[tuple[frozenset[int], frozenset[int]]] = Counter()
    for flags in itertools.product([0, 1], repeat=n):
        seeds = frozenset(v for v in range(n) if flags[v])
        chance = np.prod([p if flag else 1 - p for p, flag in zip(seed_probability, flags, strict=True)])
        if chance:
            states[seeds, seeds] = float(chance)
    for fanout in fanouts:
        after: Counter[tuple[frozenset[int], frozenset[int]]] = Counter()
        for (present, frontier), chance in states.items():
            found: Counter[frozenset[int]] = Counter({frozenset(): chance})
            for v in frontier:
                joined: Counter[frozenset[int]] = Counter()
                for new, part in finds(sources[v], of_node[v], fanout, replace=replace).items():
                    for old, whole in found.items():
                        joined[old | new] += whole * part
                found = joined
            for new, part in found.items():
                after[present | new, new - present] += part
        states = after
    return [sum(chance for (present, _), chance in states.items() if v in present) for v in range(n)]


@st.composite
def polytrees(draw: st.DrawFn) -> tuple[Edges, list[float]]:
    """Forests when directions are ignored, with parallel edges and self loops, and a seed's chance for each node."""
    n = draw(st.integers(1, 6))
    edges: Edges = []
    for v in range(1, n):
        other = draw(st.integers(-1, v - 1))  # -1 starts another tree
        if other >= 0:
            edge = draw(st.sampled_from([(v, other), (other, v)]))
            edges += [edge] * draw(st.sampled_from([1, 1, 1, 2]))
    edges += [(v, v) for v in draw(st.lists(st.integers(0, n - 1), max_size=2))]
    return edges, draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=n, max_size=n))


FANOUTS = st.lists(st.sampled_from([-1, 1, 2, 3]), min_size=1, max_size=3)


@settings(deadline=None, max_examples=40)
@given(polytrees(), FANOUTS, st.booleans())
def test_inclusion_is_exact_on_forests(graph: tuple[Edges, list[float]], fanouts: list[int], replace: bool) -> None:
    edges, chances = graph
    scores = inclusion_probabilities(topology_of(edges, len(chances)), np.array(chances), fanouts, replace=replace)
    assert scores.dtype == np.float64
    assert scores.tolist() == pytest.approx(exact_inclusion(edges, chances, fanouts, replace=replace), abs=1e-12)


@settings(deadline=None, max_examples=30)
@given(polytrees(), FANOUTS, st.data())
def test_weighted_inclusion_is_exact_on_forests_with_replacement(
    graph: tuple[Edges, list[float]], fanouts: list[int], data: st.DataObject
) -> None:
    edges, chances = graph
    weight = st.sampled_from([0.0, 0.5, 1.0, 7.0])
    weights = data.draw(st.lists(weight, min_size=len(edges), max_size=len(edges)))
    scores = inclusion_probabilities(
        topology_of(edges, len(chances)), np.array(chances), fanouts, replace=True, edge_weight=np.array(weights)
    )
    exact = exact_inclusion(edges, chances, fanouts, replace=True, weights=weights)
    assert scores.tolist() == pytest.approx(exact, abs=1e-12)


def test_weighted_inclusion_without_replacement() -> None:
    weights = [5.0, 3.0, 1.0, 1.0, 0.0]
    star = [(leaf, 0) for leaf in range(1, 6)]
    chances = [0.4, 0.0, 0.0, 0.0, 0.0, 0.0]
    graph = topology_of(star, 6)

    # The two draws are taken for independent: 0.4 * (1 - (1 - 5 / 10)**2) = 0.3 for the first leaf.
    scores = inclusion_probabilities(graph, np.array(chances), [2], edge_weight=np.array(weights, np.float32))
    assert scores.tolist() == pytest.approx([0.4, 0.3, 0.204, 0.076, 0.076, 0.0])
    assert (scores <= np.array(exact_inclusion(star, chances, [2], weights=weights)) + 1e-12).all()

    # Four edges have a weight: all of them are taken, by 4 as by -1.
    for fanout in (4, -1):
        scores = inclusion_probabilities(graph, np.array(chances), [fanout], edge_weight=np.array(weights))
        assert scores.tolist() == pytest.approx([0.4, 0.4, 0.4, 0.4, 0.4, 0.0])


@pytest.mark.parametrize(("fanouts", "reaches"), [([-1], {0, 1}), ([1, 5], {0, 1, 2}), ([1, -1, 1], {0, 1, 2, 3})])
def test_inclusion_on_a_path(fanouts: list[int], reaches: set[int]) -> None:
    """Messages flow 4 -> 3 -> 2 -> 1 -> 0, so a node is there if one of the next few is a seed."""
    p = np.array([0.5, 0.1, 0.0, 0.2, 0.3])
    scores = inclusion_probabilities(topology_of([(v + 1, v) for v in range(4)], 5), p, fanouts)
    expected = [1 - np.prod([1 - p[v - step] for step in reaches if v - step >= 0]) for v in range(5)]
    assert scores.tolist() == pytest.approx(expected)


def test_parallel_edges_apart_from_each_other_count_as_independent() -> None:
    graph = Topology.from_csc([0, 3, 3, 3], [1, 2, 1])
    assert not graph.rows_sorted
    scores = inclusion_probabilities(graph, np.array([0.6, 0.0, 0.0]), [1])
    assert scores.tolist() == pytest.approx([0.6, 1 - (1 - 0.2) ** 2, 0.2])


def breadth_first(edge_index: Any, num_nodes: int, hops: int) -> NDArray[np.bool_]:
    """Entry ``(v, u)``: whether a message from ``u`` reaches ``v`` within so many hops."""
    step = np.eye(num_nodes, dtype=bool)
    step[edge_index[1], edge_index[0]] = True
    return np.linalg.matrix_power(step.astype(np.int64), hops) > 0


@settings(deadline=None, max_examples=50)
@given(multigraphs(), st.integers(1, 3), st.data())
def test_inclusion_of_all_in_neighbours(graph: tuple[Any, int], hops: int, data: st.DataObject) -> None:
    """Exact for certain seeds on any graph; else never below the exact chance, by Harris's inequality."""
    edge_index, n = graph
    topology = Topology.from_edge_index(edge_index, n)
    reach = breadth_first(edge_index.numpy(), n, hops)

    certain = np.array(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=n, max_size=n)))
    scores = inclusion_probabilities(topology, certain, [-1] * hops)
    assert scores.tolist() == reach[certain == 1].any(axis=0).astype(float).tolist()

    p = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    exact = 1 - np.prod(np.where(reach, 1 - p[:, None], 1.0), axis=0)
    scores = inclusion_probabilities(topology, p, [-1] * hops)
    assert (scores >= exact - 1e-12).all()
    assert (scores <= 1).all()


def test_a_node_counts_the_nodes_it_found_itself() -> None:
    """What the docstring warns of: both nodes of a pair are there in 3 of 4 cases, the estimate is 7/8."""
    pair = [(0, 1), (1, 0)]
    assert exact_inclusion(pair, [0.5, 0.5], [-1, -1]) == [0.75, 0.75]
    scores = inclusion_probabilities(topology_of(pair, 2), np.array([0.5, 0.5]), [-1, -1])
    assert scores.tolist() == pytest.approx([0.875, 0.875])


@pytest.mark.parametrize("mode", ["uniform", "replace", "weighted"])
def test_inclusion_agrees_with_the_sampler(mode: str) -> None:
    """Binomial tests of the nodes of 5,000 batches; a right formula fails one in 10,000 times."""
    edges: Edges = [(1, 0), (2, 0), (3, 0), (3, 0), (4, 1), (5, 1), (6, 1), (7, 4), (8, 4), (9, 7), (10, 3), (11, 3)]
    edges += [(4, 4), (0, 12), (0, 13)]  # a self loop; 0 may be found from two sides
    p = np.array([0.2, 0.0, 0.3, 0.5, 0.1] + [0.0] * 7 + [0.4, 0.3, 0.1])
    graph, fanouts = topology_of(edges, 15), [2, 1, 2]
    replace = mode != "uniform"
    weight = np.random.default_rng(5).uniform(0.1, 3, graph.num_edges) if mode == "weighted" else None
    scores = inclusion_probabilities(graph, p, fanouts, replace=replace, edge_weight=weight)

    by_edge = None
    if weight is not None:
        by_edge = np.empty_like(weight)
        by_edge[graph.edge_ids] = weight
    sampler = NeighborSampler(graph, fanouts, replace=replace, edge_weight=by_edge)
    times, rng = 5_000, np.random.default_rng(17)
    seeds = [np.flatnonzero(rng.random(15) < p) for _ in range(times)]
    batches = (sampler.sample(s, SampleKey(3, batch=i)).n_id for i, s in enumerate(seeds) if len(s))
    counts = presample_scores(batches, 15)

    unsure = [v for v in range(15) if 0 < scores[v] < 1]
    assert len(unsure) == 15
    p_values = [binomtest(int(counts[v]), times, scores[v]).pvalue for v in unsure]
    assert min(p_values) * len(unsure) > SIGNIFICANCE


def test_inclusion_without_edges_or_seeds() -> None:
    lonely = Topology.from_csc([0, 0, 0, 0], [])
    assert inclusion_probabilities(lonely, np.array([0.0, 0.25, 1.0]), [5, 5]).tolist() == pytest.approx(
        [0.0, 0.25, 1.0]
    )
    graph = Topology.from_edge_index(random_graph(20, 100), 20)
    assert inclusion_probabilities(graph, np.zeros(20), [-1, 3]).tolist() == [0.0] * 20
    assert inclusion_probabilities(Topology.from_csc([0], []), np.zeros(0), [3]).tolist() == []
    weightless = inclusion_probabilities(graph, np.full(20, 0.5), [-1], edge_weight=np.zeros(100, np.int64))
    assert weightless.tolist() == pytest.approx([0.5] * 20)


def test_the_seed_probability_is_left_as_it_was() -> None:
    graph, p = Topology.from_edge_index(random_graph(20, 100), 20), np.full(20, 0.1)
    inclusion_probabilities(graph, p, [2, 2])
    assert p.tolist() == [0.1] * 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"seed_probability": np.zeros(3)},
            "`seed_probability` must hold a chance from 0 to 1 for each of the graph's 4",
        ),
        ({"seed_probability": np.array([0, 0, 0, 1.5])}, "got shape (4,) with values from 0 to 1.5. HINT"),
        ({"seed_probability": np.array([0, np.nan, 0, 0])}, "got shape (4,) with values from nan to nan. HINT"),
        ({"num_neighbors": [3, 0]}, "`num_neighbors` must hold integers that are positive or -1"),
        ({"edge_weight": np.ones(2)}, "each of the graph's 3 edges, but got float64 of shape (2,). HINT"),
        ({"edge_weight": np.array([1.0, -2.0, 0.0])}, "got values from -2 to 1. HINT"),
        ({"edge_weight": np.array([1.0, np.inf, 0.0])}, "got values from 0 to inf. HINT"),
    ],
)
def test_inclusion_refuses(arguments: dict[str, Any], message: str) -> None:
    star = Topology.from_csc([0, 3, 3, 3, 3], [1, 2, 3])
    with pytest.raises(ValueError, match=re.escape(message)):
        inclusion_probabilities(star, **{"seed_probability": np.zeros(4), "num_neighbors": [2], **arguments})


@settings(deadline=None)
@given(multigraphs())
def test_degree_scores_count_out_edges(graph: tuple[Any, int]) -> None:
    edge_index, n = graph
    counted = Counter(edge_index[0].tolist())
    scores = degree_scores(Topology.from_edge_index(edge_index, n))
    assert scores.dtype == np.float64
    assert scores.tolist() == [counted[v] for v in range(n)]


def test_presample_scores_count_rows() -> None:
    sampler = NeighborSampler(Topology.from_edge_index(random_graph(60, 300), 60), [3, 2])
    order = SeedOrder(35, 8, shuffle=True)
    seeds = [order.batch(order.epoch(0), i) for i in range(len(order))]
    seeds.append(np.array([7, 7, 7, 2]))  # three rows for the same node
    batches = [sampler.sample(s, SampleKey(0, batch=i)).n_id for i, s in enumerate(seeds)]
    counted = Counter(int(v) for n_id in batches for v in n_id)

    scores = presample_scores(iter(batches), 60)

    assert scores.dtype == np.float64
    assert scores.tolist() == [counted[v] for v in range(60)]
    assert scores[7] >= 4
    assert presample_scores([], 3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("n_id", "message"),
    [
        (np.array([0, 5]), "`batches` must hold node ids from 0 to 4 (5 nodes), but found 5. HINT"),
        (np.array([-1]), "`batches` must hold node ids from 0 to 4 (5 nodes), but found -1. HINT"),
        (np.array([1.0]), "`batches` must be a one-dimensional array of integers, but got float64 of shape (1,)."),
    ],
)
def test_presample_refuses(n_id: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        presample_scores([np.array([0, 1]), n_id], 5)


SCORES = hnp.arrays(
    st.sampled_from([np.float64, np.float32, np.int64]),
    st.integers(0, 12),
    elements=st.integers(-1, 4),
)


@given(SCORES, st.integers(0, 14))
def test_hot_nodes_are_the_first_of_a_sort(scores: NDArray[Any], budget_rows: int) -> None:
    ranked = sorted((v for v in range(len(scores)) if scores[v] > 0), key=lambda v: (-scores[v], v))
    hot = hot_nodes(scores, budget_rows)
    assert hot.dtype == np.int64
    assert hot.tolist() == sorted(ranked[:budget_rows])


def test_hot_nodes_of_infinite_and_tiny_scores() -> None:
    assert hot_nodes(np.array([1.0, np.inf, 5e-324, -np.inf, np.inf]), 2).tolist() == [1, 4]
    assert hot_nodes(np.array([0.0, 5e-324, -1.0]), 2).tolist() == [1]


@pytest.mark.parametrize(
    ("scores", "budget_rows", "message"),
    [
        (np.ones(3), -1, "`budget_rows` must be at least 0, but got -1. HINT"),
        (np.array([1.0, np.nan]), 1, "`scores` must be a one-dimensional array with a number per node, but got a NaN."),
        (np.ones((2, 2)), 1, "but got float64 of shape (2, 2). HINT"),
        (np.array(["a"]), 1, "but got <U1 of shape (1,). HINT"),
    ],
)
def test_hot_nodes_refuse(scores: NDArray[Any], budget_rows: int, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        hot_nodes(scores, budget_rows)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(0, 8))
def test_no_cache_of_as_many_rows_is_better_than_the_best(counts: list[int], budget_rows: int) -> None:
    total = sum(counts)
    rows = min(budget_rows, len(counts))
    served = max(sum(counts[v] for v in cached) for cached in itertools.combinations(range(len(counts)), rows))
    expected = served / total if total else 0.0
    assert best_hit_rate(np.array(counts), budget_rows) == expected
    assert best_hit_rate(np.array(counts, float), budget_rows) == expected


def test_hit_rate() -> None:
    counts = np.array([5, 1, 0, 4], np.uint8)
    assert hit_rate(counts, np.array([3, 1])) == 0.5
    assert hit_rate(counts, np.array([3, 3, 3], np.int32)) == 0.4  # a row is cached once
    assert hit_rate(counts, np.arange(4)) == 1.0
    assert hit_rate(counts, np.array([])) == 0.0
    assert hit_rate(np.zeros(4), np.arange(4)) == 0.0
    assert hit_rate(np.full(200, 200, np.uint8), np.arange(100)) == 0.5  # the sums need more than 8 bits


@pytest.mark.parametrize(
    ("counts", "cached", "message"),
    [
        ([1, -2], [0], "`counts` must be finite and not negative, but got values from -2 to 1. HINT"),
        ([1, np.inf], [0], "got values from 1 to inf. HINT"),
        ([1, np.nan], [0], "`counts` must be a one-dimensional array with a number per node, but got a NaN."),
        ([1, 2], [2], "`cached` must hold node ids from 0 to 1 (2 nodes), but found 2. HINT"),
        ([1, 2], [True], "`cached` must be a one-dimensional array of integers, but got bool of shape (1,)."),
    ],
)
def test_hit_rate_refuses(counts: list[float], cached: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        hit_rate(np.array(counts), np.array(cached))


def test_policies_come_close_to_the_best_static_cache() -> None:
    """Other epochs than those that were counted judge. All draws are keyed, so the numbers are the same each time."""
    data = load_dataset("rmat", num_nodes=8_192, avg_degree=30, num_features=1, num_classes=2)
    graph, fanouts, batch_size = Topology.from_data(data), [10, 5], 128
    n, train = graph.num_nodes, np.random.default_rng(0).permutation(graph.num_nodes)[:1_024]
    sampler, order = NeighborSampler(graph, fanouts), SeedOrder(1_024, batch_size, shuffle=True, seed=1)

    def counts_of(epochs: range) -> NDArray[np.float64]:
        keyed = ((SampleKey(1, epoch, b), order.batch(order.epoch(epoch), b)) for epoch in epochs for b in range(8))
        return presample_scores((sampler.sample(train[places], key).n_id for key, places in keyed), n)

    p = np.zeros(n)
    p[train] = batch_size / len(train)
    inclusion = inclusion_probabilities(graph, p, fanouts)
    counts = counts_of(range(10, 20))
    best = best_hit_rate(counts, n // 10)
    assert hit_rate(counts, hot_nodes(counts_of(range(3)), n // 10)) > 0.95 * best
    assert hit_rate(counts, hot_nodes(inclusion, n // 10)) > 0.97 * best
    assert inclusion.sum() == pytest.approx(counts.sum() / 80, rel=0.05)
