from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lightning_gnnopt.memory.counting import Counts, count
from lightning_gnnopt.memory.pruning import DoesNotFit, keep_order, prune
from lightning_gnnopt.memory.scores import degree_scores
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
from lightning_gnnopt.sampling import NeighborSampler, SampleKey, Topology

KEY = SampleKey(7)


def structure_of(sizes: tuple[int, ...] = (8, 6), *, hops: bool = True, num_seeds: int = 30) -> BatchStructure:
    edge_index = torch.randint(400, (2, 6000), generator=torch.Generator().manual_seed(0))
    topology = Topology.from_edge_index(edge_index, num_nodes=400)
    subgraph = NeighborSampler(topology, list(sizes)).sample(np.arange(num_seeds), SampleKey(1))
    structure = BatchStructure.of_subgraph(subgraph)
    if hops:
        return structure
    return BatchStructure(structure.row, structure.col, structure.num_nodes, structure.num_seeds, None)


def star(num_edges: int) -> BatchStructure:
    return BatchStructure(np.arange(1, num_edges + 1), np.zeros(num_edges, np.int64), num_edges + 1, 1, 1)


# The order


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(width=32, allow_nan=False), max_size=60))
def test_the_order_descends_for_any_floats(values: list[float]) -> None:
    scores = np.array(values, np.float32)
    order = keep_order(star(len(scores)), scores, key=KEY)
    assert sorted(order.tolist()) == list(range(len(scores)))
    np.testing.assert_array_equal(scores[order], np.sort(scores)[::-1])


def test_the_order_of_many_is_that_of_numpy() -> None:
    scores = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    order = keep_order(star(len(scores)), scores, key=KEY)
    np.testing.assert_array_equal(scores[order], np.sort(scores)[::-1])


def test_zeros_of_either_sign_are_ties() -> None:
    scores = np.array([0.0, -0.0] * 500, np.float32)
    order = keep_order(star(1000), scores, key=KEY)
    # Hypergeometric, mean 250 and standard deviation 7.9: wrongly fails for 1 key in 10,000.
    assert 219 < np.signbit(scores[order[:500]]).sum() < 281


def test_ties_stand_in_a_random_order() -> None:
    """Each of four places of four tied edges is equally likely: chi-square on 9 degrees of freedom, at 1 in 10,000."""
    seen = np.zeros((4, 4))
    for seed in range(4000):
        order = keep_order(star(6), np.array([2, 1, 1, 1, 1, 0], np.float32), key=SampleKey(seed))
        assert (order[0], order[5]) == (0, 5)
        seen[np.arange(4), order[1:5] - 1] += 1
    # Rows and columns sum to 4000 each.
    assert stats.chi2.sf(((seen - 1000) ** 2 / 1000).sum(), 9) > 1e-4


def test_ties_of_a_large_batch_do_not_go_by_place() -> None:
    order = keep_order(star(50_000), np.ones(50_000, np.float32), key=KEY)
    kept = np.sort(order[:25_000])
    assert stats.kstest(kept / 50_000, "uniform").pvalue > 1e-4  # wrongly fails for 1 key in 10,000
    assert abs(stats.spearmanr(order, np.arange(50_000)).statistic) < 4 / np.sqrt(50_000)  # 4 standard errors


def test_the_order_is_a_function_of_the_key() -> None:
    scores = np.repeat(np.float32([1, 2]), 50)
    first, second, other = (keep_order(star(100), scores, key=SampleKey(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_connected_puts_the_best_in_edge_of_each_node_first() -> None:
    structure = structure_of(sizes=(5, 4, 3))
    scores = np.random.default_rng(0).random(structure.num_edges).astype(np.float32)
    order = keep_order(structure, scores, key=KEY, keep_connected=True)
    expected: list[int] = []
    frontier, seen = list(range(structure.num_seeds)), set(range(structure.num_seeds))
    for _ in range(3):
        step, reached = [], []
        for node in frontier:
            there = [e for e in np.flatnonzero(structure.col == node) if structure.row[e] != node]
            if there:
                best = max(there, key=lambda e: scores[e])
                step.append(int(best))
                if structure.row[best] not in seen:
                    seen.add(int(structure.row[best]))
                    reached.append(int(structure.row[best]))
        expected += sorted(step, key=lambda e: -scores[e])
        frontier = reached
    rest = set(range(structure.num_edges)) - set(expected)
    assert order.tolist() == expected + sorted(rest, key=lambda e: -scores[e])


def test_connected_without_hops_goes_on_as_far_as_there_are_edges() -> None:
    # 0 <- 1 <- 2 <- 3, and node 1 has a better loop; the fourth edge 0 <- 3 scores higher than the path's.
    structure = BatchStructure(np.array([3, 1, 2, 1, 3]), np.array([2, 0, 1, 1, 0]), 4, 1, None)
    scores = np.array([1, 4, 1, 9, 3], np.float32)
    order = keep_order(structure, scores, key=KEY, keep_connected=True)
    assert order.tolist() == [1, 2, 0, 3, 4]


@pytest.mark.parametrize("keep_connected", [False, True])
def test_by_destination_each_node_loses_its_worst_edges_and_about_the_same_share(keep_connected: bool) -> None:
    structure = structure_of((9, 5))
    scores = np.random.default_rng(3).random(structure.num_edges).astype(np.float32)
    order = keep_order(structure, scores, key=KEY, keep_connected=keep_connected, by_destination=True)
    assert sorted(order.tolist()) == list(range(structure.num_edges))
    degree = np.bincount(structure.col, minlength=structure.num_nodes)
    for num_kept in range(structure.num_edges // 4, structure.num_edges, 37):
        keep = np.zeros(structure.num_edges, bool)
        keep[order[:num_kept]] = True
        for node in np.flatnonzero(degree):
            mine = structure.col == node
            loops = structure.row == node  # these are of no use to be connected
            kept, lost = scores[mine & keep & ~loops], scores[mine & ~keep & ~loops]
            assert not len(kept) or not len(lost) or kept.min() >= lost.max()
        if not keep_connected:
            kept_of = np.bincount(structure.col[keep], minlength=structure.num_nodes)[degree > 0]
            # There is one share that all of them have, to an edge.
            assert ((kept_of - 1) / degree[degree > 0]).max() <= ((kept_of + 1) / degree[degree > 0]).min()


def test_scores_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"`scores` must have one number for each of the 3 edges, but its shape is \(2,"
    ):
        keep_order(star(3), np.ones(2, np.float32), key=KEY)
    with pytest.raises(ValueError, match=r"`scores` must be numbers, but 1 of 3 are NaN\. HINT"):
        keep_order(star(3), np.array([1, np.nan, 2], np.float32), key=KEY)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_seed_keeps_an_in_edge_as_long_as_there_is_room_for_one_each(data: st.DataObject) -> None:
    num_nodes, num_seeds = 9, data.draw(st.integers(1, 6))
    ends = st.integers(0, num_nodes - 1)
    edges = data.draw(st.lists(st.tuples(ends, ends), min_size=1, max_size=30))
    row, col = np.array(edges).T
    structure = BatchStructure(row, col, num_nodes, num_seeds, data.draw(st.sampled_from([1, 2, None])))
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(row), max_size=len(row))), np.float32)
    order = keep_order(structure, scores, key=KEY, keep_connected=True)
    assert sorted(order.tolist()) == list(range(len(row)))
    connected = {int(v) for u, v in edges if u != v and v < num_seeds}
    for num_kept in range(len(row) + 1):
        leading = order[:num_kept]
        with_edge = {int(col[e]) for e in leading if row[e] != col[e] and col[e] < num_seeds}
        assert len(with_edge) >= min(num_kept, len(connected))


# Pruning

PIECES = {
    "edges": [[1e4, *[100, 100, 100], *[1000, 900]]],
    "nodes": [[5e4, *[500, 2000, 3000], *[50, 60]]],
    "several": [[3e5, *[10, 20, 30], *[5, 5]], [0, *[0, 4000, 500], *[0, 0]], [1e4, *[0, 0, 100], *[300, 800]]],
}


def cost_of(pieces: NDArray[np.float64], calls: list[Counts] | None = None) -> Callable[[Counts], float]:
    def cost(counts: Counts) -> float:
        if calls is not None:
            calls.append(counts)
        row = np.concatenate([counts.nodes, counts.edges])
        return float((pieces[:, 0] + pieces[:, 1:] @ row).max())

    return cost


def check_largest(
    structure: BatchStructure,
    order: NDArray[np.int64],
    cost: Callable[[Counts], float],
    budget_bytes: float,
    selection: Selection,
) -> None:
    """Try all numbers of edges: the result must fit, and with one edge more it must not.

    Where the cost never falls, there is one such number only.
    """
    ranks = np.argsort(order)
    costs = np.array([cost(count(structure, ranks < k)) for k in range(structure.num_edges + 1)])
    last = np.flatnonzero((costs[:-1] <= budget_bytes) & (costs[1:] > budget_bytes)).tolist()
    last += [structure.num_edges] if costs[-1] <= budget_bytes else []
    assert len(last) == 1 or (costs[1:] < costs[:-1]).any()
    assert selection.edges.tolist() in [select(structure, keep=ranks < k).edges.tolist() for k in last]


@pytest.mark.parametrize("share", [0.97, 0.75, 0.5, 0.25, 0.03])
@pytest.mark.parametrize("with_pieces", [True, False])
@pytest.mark.parametrize("name", PIECES)
def test_as_many_edges_are_kept_as_fit(name: str, with_pieces: bool, share: float) -> None:
    structure, pieces = structure_of((5, 4)), np.array(PIECES[name], np.float64)
    order = keep_order(structure, degree_scores(structure.row, structure.col, structure.num_nodes), key=KEY)
    cost = cost_of(pieces)
    nothing, all_of_it = cost(count(structure, np.zeros(structure.num_edges, bool))), cost(count(structure))
    budget_bytes = nothing + share * (all_of_it - nothing)
    selection = prune(structure, order, cost, budget_bytes, pieces=pieces if with_pieces else None)
    check_largest(structure, order, cost, budget_bytes, selection)


@pytest.mark.parametrize("hops", [True, False])
def test_pieces_that_are_the_cost_save_calls_of_it(hops: bool) -> None:
    structure = structure_of((10, 10), hops=hops)
    pieces = np.array(PIECES["several"] if hops else [[1e4, 100, 100, 1000]], np.float64)
    order = keep_order(structure, np.zeros(structure.num_edges, np.float32), key=KEY)
    calls: list[Counts] = []
    budget_bytes = cost_of(pieces)(count(structure)) * 0.6
    prune(structure, order, cost_of(pieces, calls), budget_bytes, pieces=pieces)
    assert len(calls) <= 4  # of all edges, of none, of the answer, of one more


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.2, 3.0])
def test_pieces_that_are_not_the_cost_do_no_harm(factor: float) -> None:
    structure, pieces = structure_of((5, 4)), np.array(PIECES["several"], np.float64)
    order = keep_order(structure, np.zeros(structure.num_edges, np.float32), key=KEY)
    cost = cost_of(pieces)
    budget_bytes = cost(count(structure)) * 0.6
    for wrong in (pieces * factor, np.full((1, 4), 1.0), pieces[:, :1] + np.zeros((1, 8))):
        selection = prune(structure, order, cost, budget_bytes, pieces=wrong)
        check_largest(structure, order, cost, budget_bytes, selection)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 60), st.sampled_from(["step", "jump", "square", "inf"]))
def test_costs_of_any_shape_fit(num_that_fit: int, shape: str) -> None:
    structure = star(60)
    shapes: dict[str, Callable[[float], float]] = {
        "step": lambda n: n // 20 * 100.0,
        "jump": lambda n: 1e12 if n > num_that_fit else float(n),
        "square": lambda n: n * n,
        "inf": lambda n: np.inf if n > num_that_fit else 0.0,
    }
    budget_bytes = {"step": num_that_fit * 5.0, "square": num_that_fit**2}.get(shape, 100.0)

    def cost(counts: Counts) -> float:
        return shapes[shape](float(counts.edges.sum()))

    order = np.random.default_rng(0).permutation(60)
    selection = prune(structure, order, cost, budget_bytes)
    check_largest(structure, order, cost, budget_bytes, selection)
    assert set(selection.edges.tolist()) == set(order[: len(selection.edges)].tolist())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.booleans(), st.booleans())
def test_random_affine_costs_fit(seed: int, share: float, hops: bool, with_pieces: bool) -> None:
    rng = np.random.default_rng(seed)
    structure = structure_of((4, 3), hops=hops, num_seeds=8)
    width = 1 + (5 if hops else 3)
    pieces = rng.exponential(100.0, (3, width)) * rng.integers(0, 2, (3, width))
    order = rng.permutation(structure.num_edges)
    cost = cost_of(pieces)
    nothing, all_of_it = cost(count(structure, np.zeros(structure.num_edges, bool))), cost(count(structure))
    used = []
    for budget_bytes in (nothing + part * (all_of_it - nothing) for part in (share, share + 0.2)):
        selection = prune(structure, order, cost, budget_bytes, pieces=pieces if with_pieces else None)
        check_largest(structure, order, cost, budget_bytes, selection)
        used.append(len(selection.edges))
    assert used[0] <= used[1]  # more room never leaves less


def test_stranded_nodes_go_with_the_edges() -> None:
    # 0 <- 1 <- 2 <- 3; the middle edge is cut first, and node 3 costs nothing any more.
    structure = BatchStructure(np.array([1, 2, 3]), np.array([0, 1, 2]), num_nodes=4, num_seeds=1, num_hops=3)
    selection = prune(structure, np.array([0, 2, 1]), lambda counts: float(counts.nodes.sum()), 2)
    assert (selection.nodes.tolist(), selection.edges.tolist()) == ([0, 1], [0])
    assert (selection.num_sampled_nodes, selection.num_sampled_edges) == ([1, 1, 0, 0], [1, 0, 0])


def test_what_fits_is_not_touched() -> None:
    structure = structure_of()
    order = keep_order(structure, np.zeros(structure.num_edges, np.float32), key=KEY)
    assert prune(structure, order, lambda counts: 10, 10).is_identity


def test_seeds_that_are_too_large_are_named() -> None:
    structure = structure_of()
    order = keep_order(structure, np.zeros(structure.num_edges, np.float32), key=KEY)
    with pytest.raises(DoesNotFit, match=r"need 3,000 bytes, more than the `budget` of 2,999\. HINT") as error:
        prune(structure, order, lambda counts: 100 * counts.nodes.sum(), 2999)
    assert (error.value.seeds_bytes, error.value.budget_bytes) == (3000, 2999)


def test_seeds_alone_are_left_where_no_edge_fits() -> None:
    structure = structure_of()
    order = keep_order(structure, np.zeros(structure.num_edges, np.float32), key=KEY)
    selection = prune(structure, order, lambda counts: 100 * counts.nodes.sum(), 3000)
    assert (selection.num_sampled_nodes, selection.num_seeds) == ([30, 0, 0], 30)


@pytest.mark.parametrize("order", [[0, 1], [0, 1, 1], [0, 1, 3], [-1, 0, 1]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    with pytest.raises(ValueError, match="`order` must name each of the 3 edges once, but is of shape"):
        prune(star(3), np.array(order), lambda counts: 1.0, 2.0)


def test_keeping_seeds_connected_strands_fewer() -> None:
    structure = structure_of()
    scores = degree_scores(structure.row, structure.col, structure.num_nodes)
    stranded = []
    for keep_connected in (False, True):
        order = keep_order(structure, scores, key=KEY, keep_connected=keep_connected)
        selection = prune(structure, order, lambda counts: float(counts.edges.sum()), 60)
        stranded.append(structure.num_seeds - len(np.unique(selection.col[selection.col < structure.num_seeds])))
    assert stranded[1] == 0 < stranded[0]


def test_the_selection_is_that_of_the_leading_edges() -> None:
    structure = structure_of()
    order = keep_order(structure, degree_scores(structure.row, structure.col, structure.num_nodes), key=KEY)
    ranks = np.argsort(order)
    selection = prune(structure, order, lambda counts: float(counts.edges.sum()), 200)
    same = [
        k for k in range(structure.num_edges) if len(select(structure, keep=ranks < k).edges) == len(selection.edges)
    ]
    np.testing.assert_array_equal(selection.edges, select(structure, keep=ranks < same[0]).edges)
