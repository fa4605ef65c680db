"""Prune a batch to a budget: as few of its least important edges go as will do."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_gnnopt.memory.counting import Counts, LeadingCounts
from lightning_gnnopt.memory.score_kernels import by_share, connected_first, ranks_of, sort_descending
from lightning_gnnopt.memory.structure import BatchStructure, Selection, select
from lightning_gnnopt.sampling import SampleKey

Cost = Callable[[Counts], float]
_PATIENCE = 3  # steps along the line that do not halve what is left; then it is halved


class DoesNotFit(ValueError):  # noqa: N818 - a statement of fact, and the name that callers know
    """A batch is too large even without any edge.

    Args:
        seeds_bytes: Bytes at the peak with the seeds alone.
        budget_bytes: The budget.
    """

    def __init__(self, seeds_bytes: float, budget_bytes: float) -> None:
        super().__init__(
            f"The seeds alone, without any edge, need {seeds_bytes:,.0f} bytes, more than the `budget` of"
            f" {budget_bytes:,.0f}. HINT: use a smaller `batch_size`, or raise `budget`."
        )
        self.seeds_bytes = seeds_bytes
        self.budget_bytes = budget_bytes


def keep_order(
    structure: BatchStructure,
    scores: NDArray[np.float32],
    *,
    key: SampleKey,
    keep_connected: bool = False,
    by_destination: bool = False,
) -> NDArray[np.int64]:
    """Order edges from the one to keep first to the one to cut first.

    Edges of equal score stand in random order: that of their places would cut a whole hop first.

    Args:
        structure: The batch.
        scores: Score of each edge, higher means keep; shape ``(E,)``, read as float32.
        key: Keys the random order.
        keep_connected: Put the best in-edge of each seed first, then the best in-edge of each node these lead to, and
            so on for as many steps as there are hops; self loops do not count. No seed is left without a neighbour
            then as long as there is room for one edge each.
        by_destination: Compare scores only among the in-edges of a node: every node loses about the same share of them,
            its worst ones. Otherwise whole neighbourhoods can go: in a sampled batch the nodes of inner hops have more
            in-edges than those of outer ones, whatever they are in the graph.

    Returns:
        Places of the edges, int64 of shape ``(E,)``.

    Raises:
        ValueError: If `scores` has the wrong shape, or one of them is NaN.
    """
    scores = np.ascontiguousarray(scores, np.float32)
    if scores.shape != (structure.num_edges,):
        raise ValueError(
            f"`scores` must have one number for each of the {structure.num_edges:,} edges, but its shape is"
            f" {scores.shape}. HINT: score the edges of the same batch."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"`scores` must be numbers, but {int(np.isnan(scores).sum()):,} of {len(scores):,} are NaN."
            " HINT: infinite scores are fine."
        )
    order = np.empty(len(scores), np.int64)
    # Adding 0 makes -0.0 and 0.0 the same.
    sort_descending((scores + np.float32(0)).view(np.uint32), key.fold(), order)
    if by_destination:
        shared = np.empty_like(order)
        by_share(structure.col, order, np.zeros(structure.num_nodes, np.int32), shared)
        order = shared
    if not keep_connected:
        return order
    connected = np.empty_like(order)
    max_hops = structure.num_nodes if structure.num_hops is None else structure.num_hops
    connected_first(*structure.in_edges(), structure.num_seeds, max_hops, order, _ranks(order, len(order)), connected)
    return connected


def prune(
    structure: BatchStructure,
    order: NDArray[np.integer],
    cost: Cost,
    budget_bytes: float,
    *,
    pieces: NDArray[np.float64] | None = None,
) -> Selection:
    """Keep as many leading edges of `order` as fit the budget, and drop the nodes that are stranded without the others.

    The number of edges is searched between two, one that fits and one that does not, which close in by a straight line
    through their costs (Illinois's rule, Dowell and Jarratt, BIT 1971) or by halving, until they are neighbours. If the
    cost is known to be about a maximum of affine functions, that is searched first, which takes no call of `cost`, and
    both sides of the answer are checked: if it is the cost, `cost` is called four times.

    Args:
        structure: The batch.
        order: Places of all edges, the one to keep first in front; shape ``(E,)``.
        cost: Gives the bytes at the peak for the counts of a batch. It should not fall as edges are added; should it
            all the same, the result fits, but more edges might.
        budget_bytes: The budget.
        pieces: Rows ``[c, a_1 .. a_P]`` of affine functions whose maximum is about the cost, shape ``(K, P + 1)``; the
            columns are nodes by hop, edges by hop and, if there are so many, self loops by hop. Others are not used.

    Returns:
        What is left. Its cost is never above the budget.

    Raises:
        DoesNotFit: If the seeds alone are too large.
        ValueError: If `order` is no order of the edges.

    Examples:
        >>> star = BatchStructure(np.array([1, 2, 3]), np.array([0, 0, 0]), num_nodes=4, num_seeds=1, num_hops=1)
        >>> prune(star, np.array([2, 0, 1]), lambda counts: 10 * counts.nodes.sum(), 30).nodes
        array([0, 1, 3])
    """
    ranks = _ranks(order, structure.num_edges)
    leading = LeadingCounts(structure, ranks)

    def cost_at(num_kept: int) -> float:
        return float(cost(leading.at(num_kept)))

    high = _Tried(structure.num_edges, cost_at(structure.num_edges))
    if high.cost <= budget_bytes:
        return select(structure)
    low = _Tried(0, cost_at(0))
    if not low.cost <= budget_bytes:
        raise DoesNotFit(low.cost, budget_bytes)
    affine_at = None if pieces is None else _affine(pieces, leading, high)
    if affine_at is not None and (least := affine_at(0)) <= budget_bytes:
        for guess in _search(affine_at, _Tried(0, least), high, budget_bytes):
            if low.num_kept < guess.num_kept < high.num_kept:
                tried = _Tried(guess.num_kept, cost_at(guess.num_kept))
                low, high = (tried, high) if tried.cost <= budget_bytes else (low, tried)
    low, _ = _search(cost_at, low, high, budget_bytes)
    return select(structure, keep=ranks < low.num_kept)


class _Tried(NamedTuple):
    num_kept: int
    cost: float


def _search(cost_at: Callable[[int], float], low: _Tried, high: _Tried, budget: float) -> tuple[_Tried, _Tried]:
    """Close in from two numbers of edges, one that fits and one that does not, to two neighbours."""
    below, above = budget - low.cost, high.cost - budget
    moved, slow = None, 0
    while high.num_kept - low.num_kept > 1:
        gap = high.num_kept - low.num_kept
        share = 0.5 if slow == _PATIENCE else below / (below + above)
        num_kept = min(max(low.num_kept + round(share * gap), low.num_kept + 1), high.num_kept - 1)
        tried = _Tried(num_kept, cost_at(num_kept))
        fits = tried.cost <= budget
        # An end that stays twice pulls the line to its side: it counts half from then on.
        if fits:
            low, below, above = tried, budget - tried.cost, above / 2 if moved is fits else above
        else:
            high, above, below = tried, tried.cost - budget, below / 2 if moved is fits else below
        slow = 0 if slow == _PATIENCE or high.num_kept - low.num_kept <= gap / 2 else slow + 1
        moved = fits
    return low, high


def _affine(pieces: NDArray[np.float64], leading: LeadingCounts, known: _Tried) -> Callable[[int], float] | None:
    """Make what evaluates pieces for a number of edges, moved to a known cost; None if their columns are others."""
    constants, slopes = pieces[:, 0], pieces[:, 1:]

    def row_of(num_kept: int) -> NDArray[np.int64]:
        counts = leading.at(num_kept)
        return np.concatenate([counts.nodes, counts.edges, counts.loops])

    row = row_of(known.num_kept)
    width, num_hops = slopes.shape[1], len(row) // 3  # L + 1, L and L numbers
    if width not in (len(row), len(row) - num_hops):
        return None
    offset = known.cost - float((constants + slopes @ row[:width]).max())
    return lambda num_kept: float((constants + slopes @ row_of(num_kept)[:width]).max()) + offset


def _ranks(order: NDArray[np.integer], num_edges: int) -> NDArray[np.int32]:
    places: NDArray[np.int64] = np.ascontiguousarray(order, np.int64)
    ranks = np.full(num_edges, -1, np.int32)
    if places.shape != (num_edges,) or not ranks_of(places, ranks):
        raise ValueError(
            f"`order` must name each of the {num_edges:,} edges once, but is of shape {places.shape} and does not."
            " HINT: `keep_order` makes it."
        )
    return ranks
