from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lightning_gnnopt.memory.scores import (
    SCORES,
    degree_scores,
    inverse_weight_scores,
    pagerank_scores,
    random_scores,
    resolve_score,
)
from lightning_gnnopt.sampling import SampleKey

Edges = tuple[NDArray[np.int64], NDArray[np.int64]]


def edges(num_nodes: int = 40, num_edges: int = 300, seed: int = 0) -> Edges:
    row, col = np.random.default_rng(seed).integers(num_nodes, size=(2, num_edges))
    return row, col


def multigraph(row: NDArray[np.int64], col: NDArray[np.int64], num_nodes: int) -> nx.MultiDiGraph:
    graph = nx.MultiDiGraph()
    graph.add_nodes_from(range(num_nodes))
    graph.add_edges_from(zip(row.tolist(), col.tolist(), strict=True))
    return graph


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_degree_scores_are_those_of_networkx(dtype: type) -> None:
    row, col = edges()
    degree = dict(multigraph(row, col, 40).degree())  # in and out, loops twice
    expected = [1 / (degree[u] * degree[v]) for u, v in zip(row.tolist(), col.tolist(), strict=True)]
    scores = degree_scores(row.astype(dtype), col.astype(dtype), 40)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


@pytest.mark.parametrize("num_edges", [60, 300])  # 60: with nodes that have no out-edges
@pytest.mark.parametrize("is_grouped", [True, False])
def test_pagerank_scores_are_those_of_networkx(num_edges: int, is_grouped: bool) -> None:
    row, col = edges(num_edges=num_edges)
    if is_grouped:
        order = np.argsort(col, kind="stable")
        row, col = row[order], col[order]
    rank = nx.pagerank(multigraph(row, col, 40), alpha=0.85, tol=1e-12, max_iter=1000)
    expected = [1 / (40 * rank[u] * 40 * rank[v]) for u, v in zip(row.tolist(), col.tolist(), strict=True)]
    scores = pagerank_scores(row, col, 40, tolerance=1e-12, max_iterations=1000)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    np.testing.assert_allclose(pagerank_scores(row, col, 40), expected, rtol=1e-3)


def test_pagerank_stops_after_max_iterations() -> None:
    # One step on 0 -> 1: node 1 gets 0.15 / 2, the half of its own (it has no out-edge) and all of node 0's.
    rank = np.array([0.15 / 2 + 0.85 / 4, 0.15 / 2 + 0.85 / 4 + 0.85 / 2])
    (score,) = pagerank_scores(np.array([0]), np.array([1]), 2, max_iterations=1)
    assert score == pytest.approx(1 / (4 * rank.prod()), rel=1e-6)


def test_the_edge_between_hubs_scores_lowest() -> None:
    # Two stars of five, whose centres 0 and 1 are joined.
    spokes = [(leaf, 0) for leaf in range(2, 7)] + [(leaf, 1) for leaf in range(7, 12)]
    row, col = np.array([*spokes, (0, 1), (1, 0)]).T
    for score in (degree_scores, pagerank_scores):
        assert set(np.argsort(score(row, col, 12))[:2].tolist()) == {10, 11}


def test_random_scores_are_uniform_and_a_function_of_the_key() -> None:
    row, col = edges(num_edges=50_000)
    scores = random_scores(row, col, 40, key=SampleKey(3))
    assert stats.kstest(scores, "uniform").pvalue > 1e-4  # wrongly fails for 1 key in 10,000
    assert abs(np.corrcoef(scores[1:], scores[:-1])[0, 1]) < 4 / np.sqrt(50_000)  # 4 standard errors
    np.testing.assert_array_equal(scores, random_scores(row, col, 40, key=SampleKey(3)))
    np.testing.assert_array_equal(scores[:10], random_scores(row[:10], col[:10], 40, key=SampleKey(3)))
    other = random_scores(row, col, 40, key=SampleKey(4))
    assert abs(np.corrcoef(scores, other)[0, 1]) < 4 / np.sqrt(50_000)


def test_heavy_edges_stay() -> None:
    row, col = edges(num_edges=4)
    weight = np.array([0.5, 3.0, 0.0, 1.0])
    assert np.argsort(-inverse_weight_scores(row, col, 40, weight=weight)).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("name", SCORES)
def test_no_edges_have_no_scores(name: str) -> None:
    none = np.empty(0, np.int64)
    options = {"random": {"key": SampleKey(0)}, "inverse_weight": {"weight": np.empty(0)}}.get(name, {})
    assert SCORES[name](none, none, 3, **options).shape == (0,)
    assert SCORES[name](none, none, 0, **options).shape == (0,)


def test_scores_go_by_name() -> None:
    assert resolve_score("pagerank") is pagerank_scores
    with pytest.raises(ValueError, match=r"Unknown score 'degre'\. Did you mean 'degree'"):
        resolve_score("degre")


def test_wrong_arguments_are_refused() -> None:
    row, col = np.array([0, 1]), np.array([1, 2])
    with pytest.raises(ValueError, match=r"`row` must hold local ids from 0 to 1, but found -1"):
        degree_scores(np.array([0, -1]), np.array([1, 0]), 2)
    with pytest.raises(ValueError, match=r"`col` must hold local ids from 0 to 1, but found 2"):
        degree_scores(row, col, 2)
    with pytest.raises(ValueError, match=r"`row` and `col` must be of one shape \(E,\), but are of \(2,\) and \(1,\)"):
        pagerank_scores(row, col[:1], 3)
    with pytest.raises(ValueError, match="`damping` must be at least 0 and below 1, but got 1"):
        pagerank_scores(row, col, 3, damping=1)
    with pytest.raises(ValueError, match="`tolerance` must be at least 0, but got nan"):
        pagerank_scores(row, col, 3, tolerance=float("nan"))
    with pytest.raises(ValueError, match="`max_iterations` must be at least 1, but got 0"):
        pagerank_scores(row, col, 3, max_iterations=0)
    with pytest.raises(
        ValueError, match=r"`weight` must have one number for each of the 2 edges, but its shape is \(3,\)"
    ):
        inverse_weight_scores(row, col, 3, weight=np.ones(3))
    with pytest.raises(ValueError, match=r"`weight` must be at least 0, but the smallest is -1\.0"):
        inverse_weight_scores(row, col, 3, weight=np.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="`weight` must be at least 0, but the smallest is nan"):
        inverse_weight_scores(row, col, 3, weight=np.array([1.0, np.nan]))
