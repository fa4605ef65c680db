"""How important edges are: a batch that is too large loses those that score lowest.

The less important edge is the one between the more important ends: these have others (Wang, 2021, chapter 5).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt._names import unknown_name
from lightning_gnnopt.memory.score_kernels import page_rank, products_of_degrees, products_of_ranks, uniform_floats
from lightning_gnnopt.sampling import SampleKey

Score = Callable[..., NDArray[np.float32]]


def degree_scores(row: NDArray[np.integer], col: NDArray[np.integer], num_nodes: int) -> NDArray[np.float32]:
    """Score each edge ``1 / (deg(u) * deg(v))``.

    Degrees are counted in the batch, in-edges and out-edges alike; a self loop counts twice.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        num_nodes: Number of nodes ``N``.

    Returns:
        Float32 of shape ``(E,)``, higher means keep.

    Raises:
        ValueError: If shapes differ, or an id is negative or not below `num_nodes`.

    Examples:
        >>> degree_scores(np.array([0, 1, 2]), np.array([1, 2, 1]), 3)
        array([0.33333334, 0.16666667, 0.16666667], dtype=float32)
    """
    _check_edges(row, col, num_nodes)
    scores = np.empty(len(row), np.float32)
    products_of_degrees(row, col, np.zeros(num_nodes, np.int32), scores)
    return scores


def pagerank_scores(
    row: NDArray[np.integer],
    col: NDArray[np.integer],
    num_nodes: int,
    *,
    damping: float = 0.85,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> NDArray[np.float32]:
    """Score each edge ``1 / (N * pr(u) * N * pr(v))``, with the nodes' PageRank in the batch.

    Rank flows as messages do, from `row` to `col`; a node without out-edges spreads its rank over all (Page, Brin,
    Motwani and Winograd: The PageRank Citation Ranking, 1999). The ranks sum to 1, and an average node has ``1 / N``.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        num_nodes: Number of nodes ``N``.
        damping: The share of its rank that a node passes on along its edges.
        tolerance: Stop when the ranks, taken together, change by no more than this.
        max_iterations: Stop after so many steps in any case.

    Returns:
        Float32 of shape ``(E,)``, higher means keep.

    Raises:
        ValueError: If a number is out of its range, shapes differ, or an id is negative or not below `num_nodes`.

    Examples:
        >>> pagerank_scores(np.array([0, 1, 2]), np.array([1, 2, 1]), 3).round(2)
        array([4.57, 0.49, 0.49], dtype=float32)
    """
    _check_edges(row, col, num_nodes)
    if not 0 <= damping < 1:
        raise ValueError(f"`damping` must be at least 0 and below 1, but got {damping}. HINT: 0.85 is the usual one.")
    if not tolerance >= 0:
        raise ValueError(f"`tolerance` must be at least 0, but got {tolerance}. HINT: 1e-5.")
    if max_iterations < 1:
        raise ValueError(f"`max_iterations` must be at least 1, but got {max_iterations}. HINT: 100.")
    scores = np.empty(len(row), np.float32)
    products_of_ranks(row, col, page_rank(row, col, num_nodes, damping, tolerance, max_iterations), scores)
    return scores


def random_scores(
    row: NDArray[np.integer], col: NDArray[np.integer], num_nodes: int, *, key: SampleKey
) -> NDArray[np.float32]:
    """Score each edge by chance, as a function of its place and `key` alone.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        num_nodes: Number of nodes ``N``.
        key: Keys the random numbers.

    Returns:
        Float32 of shape ``(E,)``, uniform in [0, 1).

    Raises:
        ValueError: If shapes differ, or an id is negative or not below `num_nodes`.
    """
    _check_edges(row, col, num_nodes)
    scores = np.empty(len(row), np.float32)
    uniform_floats(key.fold(), scores)
    return scores


def inverse_weight_scores(
    row: NDArray[np.integer], col: NDArray[np.integer], num_nodes: int, *, weight: NDArray[np.floating]
) -> NDArray[np.float32]:
    """Score each edge by its weight: the larger the inverse of its weight, the sooner it is cut.

    Heavy edges stay, those of weight 0, which add nothing to a weighted sum, go first.

    Args:
        row: Local sources, shape ``(E,)``.
        col: Local destinations, shape ``(E,)``.
        num_nodes: Number of nodes ``N``.
        weight: Weights of the edges, at least 0, shape ``(E,)``.

    Returns:
        The weights as float32 of shape ``(E,)``, higher means keep.

    Raises:
        ValueError: If shapes differ, an id is negative or not below `num_nodes`, or a weight is negative or NaN.

    Examples:
        >>> inverse_weight_scores(np.array([0, 1]), np.array([1, 2]), 3, weight=np.array([2.0, 0.5]))
        array([2. , 0.5], dtype=float32)
    """
    _check_edges(row, col, num_nodes)
    weight = np.asarray(weight)
    if weight.shape != row.shape:
        raise ValueError(
            f"`weight` must have one number for each of the {len(row):,} edges, but its shape is {weight.shape}."
            " HINT: name an attribute of edges with a single column."
        )
    if len(weight) and not weight.min() >= 0:
        raise ValueError(
            f"`weight` must be at least 0, but the smallest is {weight.min()}."
            " HINT: pass the weights' absolute values, or use another score."
        )
    return weight.astype(np.float32)


SCORES: MappingProxyType[str, Score] = MappingProxyType(
    {
        "degree": degree_scores,
        "pagerank": pagerank_scores,
        "random": random_scores,
        "inverse_weight": inverse_weight_scores,
    }
)
"""The scores by name. `random` needs a `key`, `inverse_weight` a `weight`."""


def resolve_score(name: str) -> Score:
    """Look up a score.

    Raises:
        ValueError: If `name` is none of :data:`SCORES`.

    Examples:
        >>> resolve_score("degree") is degree_scores
        True
    """
    if name not in SCORES:
        raise ValueError(unknown_name("score", name, SCORES))
    return SCORES[name]


def _check_edges(row: NDArray[np.integer], col: NDArray[np.integer], num_nodes: int) -> None:
    if row.ndim != 1 or row.shape != col.shape:
        raise ValueError(
            f"`row` and `col` must be of one shape (E,), but are of {row.shape} and {col.shape}."
            " HINT: they are the two rows of a batch's `edge_index`."
        )
    for name, ids in (("row", row), ("col", col)):
        if len(ids) and (ids.min() < 0 or ids.max() >= num_nodes):
            worst = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(
                f"`{name}` must hold local ids from 0 to {num_nodes - 1}, but found {worst}."
                " HINT: the ids of a batch's edges are places among the batch's own nodes."
            )
